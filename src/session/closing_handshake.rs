//! The closing handshake (RFC 6455, section 7).

use std::{net::IpAddr, sync::Arc, time::Duration};

use thin_vec::ThinVec;

use super::disconnect::Disconnect;
use crate::{
    access::AddressSlot,
    config::Limit,
    protocol::CloseCode,
    state::Shared,
    transport::{Reader, Writer},
    websocket::Frame,
};

/// How long a client has to read its Close frame and to close its side. A stopping server grants its drain
/// time instead.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);

/// The last frames for a client whose session or connection has ended, and the wait for its end of the
/// connection.
pub(super) struct ClosingHandshake {
    shared: Arc<Shared>,
    disconnect: Disconnect,
    writer: Writer,
    /// The frames that are still to be written before the Close frame.
    waiting: ThinVec<Frame>,
    /// The slot of the connection, or the limit that leaves it none.
    slot: Result<Option<AddressSlot>, Limit>,
}

impl ClosingHandshake {
    /// For the connection of a session that has ended. The caller holds the session's slot.
    pub(super) fn of_session(
        shared: Arc<Shared>,
        disconnect: Disconnect,
        writer: Writer,
        waiting: ThinVec<Frame>,
    ) -> ClosingHandshake {
        ClosingHandshake {
            shared,
            disconnect,
            writer,
            waiting,
            slot: Ok(None),
        }
    }

    /// For a connection from `address` that has no session. It takes a slot of its own.
    pub(super) fn of_connection(
        shared: Arc<Shared>,
        disconnect: Disconnect,
        writer: Writer,
        address: Option<IpAddr>,
    ) -> ClosingHandshake {
        ClosingHandshake {
            slot: shared.admission.connect(address),
            shared,
            disconnect,
            writer,
            waiting: ThinVec::new(),
        }
    }

    /// The same handshake, with a frame before the Close frame.
    pub(super) fn after(mut self, frame: Option<Frame>) -> ClosingHandshake {
        self.waiting.extend(frame);
        self
    }

    /// Writes what waits and the Close frame, and waits until the client closes its side. A client that
    /// was too slow gets only the rest of the frame that was being written, and the Close frame. A
    /// client that does not close in time, or whose address has too many connections, is cut off.
    pub(super) async fn run(mut self, mut reader: Reader) {
        let Ok(_slot) = self.slot else {
            return reader.abort();
        };
        if let Some(close) = self.disconnect.close() {
            self.shared.metrics.closes(close.code.number()).inc();
        }
        let (frame, limit) = match &self.disconnect {
            Disconnect::Lost | Disconnect::Expired | Disconnect::Migrated => return,
            Disconnect::Eof => (None, HANDSHAKE_LIMIT),
            Disconnect::Left(code) => {
                let frame = Frame::close(code.map(|code| (code, "")));
                (Some(frame), HANDSHAKE_LIMIT)
            }
            Disconnect::Detached(close) => (Some(close.frame()), HANDSHAKE_LIMIT),
            Disconnect::Closed(close) => {
                let limit = match close.code {
                    CloseCode::ServiceRestart => self.shared.config.stopping.drain(),
                    _ => HANDSHAKE_LIMIT,
                };
                if let CloseCode::TryAgainLater = close.code {
                    self.writer.clear();
                }
                (Some(close.frame()), limit)
            }
        };
        let last_frames = self.waiting.into_iter().chain(frame);
        let handshake = async {
            self.writer.close(last_frames).await?;
            reader.discard().await
        };
        let finished = self.shared.in_time(limit, handshake).await;
        if finished.is_none() && !self.shared.stopped.is_cancelled() {
            reader.abort();
        }
    }
}
