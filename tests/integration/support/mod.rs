//! What the tests share: the server under test, in this process or as a program; a client made of another
//! WebSocket implementation; a raw connection for what no client would send; waiting with a deadline.

mod answer;
mod client;
mod file;
mod operator;
mod program;
mod raw;
mod server;
mod stream;
mod time;
#[cfg(feature = "turn")]
mod turn_client;

#[cfg(feature = "turn")]
pub use self::turn_client::{FromPeer, TurnClient, turn_server};
pub use self::{
    answer::Answer,
    client::Client,
    file::{File, Folder},
    operator::{operator, operator_at, operator_with},
    program::{Log, Program},
    raw::{Raw, RawFrame, frame, handshake, handshake_with, text},
    server::{RunningServer, TestServer, hold_little, metric_value, total},
    stream::{EventStream, poll, request},
    time::{DEADLINE, eventually, eventually_async, in_seconds, within_deadline},
};
