//! The dialect of matchbox 0.15: the same rooms as ours in other words.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Author, Command, WireFormat, frame, invalid};
use crate::{
    protocol::{Invalid, Receiver, SessionId},
    websocket::Frame,
};

/// The messages of matchbox.
pub(super) struct Matchbox;

/// A message of a client.
#[derive(Deserialize)]
enum Request<'a> {
    Signal {
        receiver: SessionId,
        #[serde(borrow)]
        data: &'a RawValue,
    },
    KeepAlive,
}

/// A message of the server.
#[derive(Serialize)]
enum Event<'a> {
    /// The first message of a session, with its id.
    IdAssigned(SessionId),
    NewPeer(SessionId),
    PeerLeft(SessionId),
    Signal {
        sender: SessionId,
        data: &'a RawValue,
    },
}

impl WireFormat for Matchbox {
    fn read<'a>(&self, author: Author<'_>, text: &'a str) -> Result<Command<'a>, Invalid<'a>> {
        let request: Request<'_> = serde_json::from_str(text)
            .map_err(|error| invalid(format!("not a message of matchbox: {error}")))?;
        Ok(match request {
            Request::KeepAlive => Command::Ignore,
            Request::Signal { receiver, data } => {
                let sender = author.id;
                Command::Send {
                    receiver: Receiver::Session(receiver),
                    frame: frame(&Event::Signal { sender, data }),
                    reference: None,
                }
            }
        })
    }

    fn opened(&self, id: SessionId) -> Option<Frame> {
        Some(frame(&Event::IdAssigned(id)))
    }

    fn joined(&self, id: SessionId, _: Option<&RawValue>) -> Option<Frame> {
        Some(frame(&Event::NewPeer(id)))
    }

    fn left(&self, id: SessionId) -> Option<Frame> {
        Some(frame(&Event::PeerLeft(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_relayed_with_their_sender() {
        let [id, other] = [(); 2].map(|()| SessionId::random());
        let author = Author { id, name: None };
        let text = format!(r#"{{"Signal":{{"receiver":"{other}","data":{{"a":[1e999]}}}}}}"#);
        let Ok(Command::Send {
            receiver, frame, ..
        }) = Matchbox.read(author, &text)
        else {
            panic!("a signal is sent");
        };
        assert_eq!(receiver, Receiver::Session(other));
        let relayed = format!(r#"{{"Signal":{{"sender":"{id}","data":{{"a":[1e999]}}}}}}"#);
        assert_eq!(frame.payload(), relayed.as_bytes());
        assert!(matches!(
            Matchbox.read(author, r#""KeepAlive""#),
            Ok(Command::Ignore)
        ));
        for wrong in [
            "",
            "{}",
            r#""Signal""#,
            r#"{"Signal":{"receiver":"x","data":1}}"#,
        ] {
            assert!(Matchbox.read(author, wrong).is_err(), "{wrong}");
        }
    }
}
