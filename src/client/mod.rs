//! A client for Rust programs: joins a room, and loses no message when the connection is lost (cargo feature
//! `client`).
//!
//! [`Join`] describes how to join, and [`Join::open`] returns two halves: a [`Room`] sends, [`Events`] is what happens,
//! as a [`Stream`](futures_util::Stream). Both belong to a task that connects, and connects again after a growing
//! random delay, or the delay that the server asks for. It resumes the session: nothing is lost, doubled or reordered,
//! in either direction, and the room notices nothing. If the session is gone after all, [`Opened`] says so: the session
//! has another id, and `lost` is what was sent without a receipt and may not have arrived.
//!
//! ```
//! use anteroom::{Config, Server, client::{Event, Join}};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut config = Config::default();
//!     config.serving.listen = ([127, 0, 0, 1], 0).into();
//!     let server = Server::bind(config)?;
//!     let address = server.local_addr()?;
//!     tokio::spawn(server.serve(std::future::pending()));
//!
//!     let join = Join::room(format!("ws://{address}/room/tea").parse()?);
//!     let (alice, mut events) = join.clone().open();
//!     alice.set_state("Alice").await?;
//!     let (bob, mut bobs_events) = join.open();
//!     while let Some(event) = bobs_events.next().await {
//!         if let Event::Opened(opened) = event {
//!             assert_eq!(opened.peers[0].state::<String>()?, "Alice");
//!             break;
//!         }
//!     }
//!     let receivers = bob.send_with_receipt("all", "chat", "Hello!").await?;
//!     assert_eq!(receivers, 1);
//!     while let Some(event) = events.next().await {
//!         match event {
//!             Event::Opened(opened) => println!("{} others are here", opened.peers.len()),
//!             Event::Joined(peer) => println!("{} joined", peer.id),
//!             Event::Message(message) if message.kind == "chat" => {
//!                 assert_eq!(message.data::<String>()?, "Hello!");
//!                 break;
//!             }
//!             event => println!("{event:?}"),
//!         }
//!     }
//!     bob.leave().await;
//!     Ok(())
//! }
//! ```
//!
//! Every buffer is bounded: [`Room`] refuses messages when too much is not acknowledged, and nothing is read from the
//! server while too many events wait. Nothing waits for ever: a server that is silent is asked for a sign of life, and
//! its connection is given up if none comes. Whoever drops both halves leaves the room, with a Close frame.
//!
//! [`Connection`] is the layer below: one WebSocket connection, which [`Connect`] opens to a URL or over a stream that is
//! open already. `wss` needs the cargo feature `tls`, and trusts the authorities of the system.
//!
//! The log of the library below, `tungstenite`, shows whole messages at the level `trace`, with resume tokens.

mod command;
mod connect;
mod connection;
mod disconnect;
mod event;
mod events;
mod handle;
mod join;
mod message;
mod receipts;
mod retry;
mod room;
mod room_url;
mod send_error;
mod sent;
mod settings;
mod task;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;
mod token;
mod transport;

pub use self::{
    connect::Connect,
    connection::{Connection, Frame, Pings},
    disconnect::Disconnect,
    event::{Event, Opened},
    events::Events,
    join::Join,
    message::{HistoryMessage, HistoryPage, Limits, Message, Peer},
    room::{Answer, Receipt, Room},
    room_url::{RoomUrl, UrlError},
    send_error::SendError,
    transport::{ByteStream, Transport},
};
