//! What all sessions share.

mod bodies;
mod expiry;
mod heartbeat;
mod ice;
mod lobbies;
mod remote_inlets;
mod resume;
mod saved_sessions;
mod sessions_file;
mod shared;
mod takeover;
mod token_keys;

#[cfg(fuzzing)]
pub(crate) use self::sessions_file::{decode as decode_sessions, encode as encode_sessions};
pub(crate) use self::{
    bodies::BodyGuard,
    expiry::{Expiries, ExpiryGuard},
    heartbeat::{Heartbeat, HeartbeatGuard},
    ice::IceServers,
    lobbies::Lobbies,
    remote_inlets::RemoteInlets,
    resume::{ResumeAttempt, ResumeRegistration, ResumeRequest, Resumes, SuspendedGuard},
    saved_sessions::{Save, SavedSession, SessionsToSave},
    sessions_file::SessionsFile,
    shared::Shared,
    takeover::{Reconnection, Takeover},
};
