//! Sessions that outlive the server process.

use std::{mem, net::IpAddr};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    cluster::{Permissions, SessionRecord},
    protocol::{self, RoomName, TokenHash},
    websocket::Frame,
};

/// A suspended session, as the next server process takes it up.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedSession {
    pub(crate) room: RoomName,
    pub(crate) member: SessionRecord,
    /// The client's address, which holds a slot.
    pub(crate) address: Option<IpAddr>,
    pub(crate) token: TokenHash,
    pub(crate) permissions: Option<Permissions>,
    /// How many messages the server has taken in from the client.
    pub(crate) taken_in: u64,
    /// How many of these were binary.
    #[serde(default)]
    pub(crate) binary: u64,
    /// What was said before the session joined has a lower number in the history of its room.
    pub(crate) first_number: u64,
    /// What the session owes to its rates, as in [`SessionTransfer`](crate::cluster::SessionTransfer).
    pub(crate) owed: [u64; 2],
    /// How many messages were sent to the client before those that follow.
    pub(crate) sent: u64,
    /// The messages that the client may not have received, each as its JSON.
    #[serde(serialize_with = "texts", deserialize_with = "frames")]
    pub(crate) missed: Vec<Frame>,
}

/// A suspended session of a server that stops.
pub(crate) trait Save: Send {
    /// Whether the session ends instead of being saved, for example because an operator closes it.
    fn is_ended(&self) -> bool;

    /// Takes the session out of its room without telling the others.
    fn save(self: Box<Self>) -> SavedSession;
}

/// The suspended sessions that a server saves when all others have ended. It takes none before the server
/// stops.
#[derive(Default)]
pub(crate) struct SessionsToSave(Mutex<Phase>);

#[derive(Default)]
enum Phase {
    #[default]
    Before,
    Open(Vec<Box<dyn Save>>),
    /// The sessions are saved. They are saved once, however often the server is shut down.
    After,
}

impl SessionsToSave {
    /// Takes sessions from now on, unless they are saved already.
    pub(crate) fn open(&self) {
        let mut phase = self.0.lock();
        if let Phase::Before = *phase {
            *phase = Phase::Open(Vec::new());
        }
    }

    /// Takes a session in, which goes on receiving messages.
    ///
    /// # Errors
    ///
    /// The session, if none are taken.
    pub(crate) fn add<S: Save + 'static>(&self, session: S) -> Result<(), S> {
        match &mut *self.0.lock() {
            Phase::Open(sessions) => sessions.push(Box::new(session)),
            Phase::Before | Phase::After => return Err(session),
        }
        Ok(())
    }

    /// Takes no more sessions, and saves those that are here. Those that end leave their rooms first, so that
    /// the others are told. `None` if no sessions were taken.
    pub(crate) fn close(&self) -> Option<Vec<SavedSession>> {
        let Phase::Open(sessions) = mem::replace(&mut *self.0.lock(), Phase::After) else {
            return None;
        };
        let (ended, saved): (Vec<_>, Vec<_>) =
            sessions.into_iter().partition(|session| session.is_ended());
        drop(ended);
        Some(saved.into_iter().map(Save::save).collect())
    }
}

fn texts<S: Serializer>(frames: &[Frame], serializer: S) -> Result<S::Ok, S::Error> {
    let texts = frames.iter().map(|frame| {
        let json = String::from_utf8(protocol::to_json(frame).into());
        json.expect("the server checks the text of a message, or has written it")
    });
    serializer.collect_seq(texts)
}

fn frames<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Frame>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    Ok(texts.iter().map(|text| protocol::from_json(text)).collect())
}
