//! What all sessions share.

mod expiry;
mod heartbeat;
mod ice;
mod resume;
mod shared;
mod takeover;
mod token_keys;

pub(crate) use self::{
    expiry::ExpiryGuard,
    heartbeat::{Heartbeat, HeartbeatGuard},
    ice::IceServers,
    resume::{ResumeRegistration, ResumeRequest, Resumes, SuspendedGuard},
    shared::Shared,
    takeover::{Reconnection, Takeover},
};
