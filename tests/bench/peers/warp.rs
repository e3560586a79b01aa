//! The same rooms on warp's own `warp::ws()`, like warp's chat example: one task of a session reads, and
//! another sends the messages of an unbounded channel.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::interval,
};
use uuid::Uuid;
use warp::{
    Filter,
    path::FullPath,
    ws::{Message, WebSocket, Ws},
};

type Room = Arc<Mutex<HashMap<String, UnboundedSender<Message>>>>;

static ROOMS: LazyLock<Mutex<HashMap<String, Room>>> = LazyLock::new(Mutex::default);

#[derive(Deserialize)]
struct Incoming<'a> {
    r#type: &'a str,
    receiver: &'a str,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Outgoing<'a> {
    r#type: &'a str,
    sender: &'a str,
    receiver: Option<&'a str>,
    data: Option<&'a RawValue>,
}

/// Serves until the process is ended.
pub fn serve() -> ! {
    let route = warp::path::full()
        .and(warp::ws())
        .map(|path: FullPath, ws: Ws| {
            ws.on_upgrade(async move |socket| session(path, socket).await)
        });
    let serving = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        println!(
            "warp listening on http://{}",
            listener.local_addr().unwrap()
        );
        tokio::spawn(ping_all());
        warp::serve(route).incoming(listener).run().await;
        unreachable!("the server never stops")
    };
    Runtime::new().unwrap().block_on(serving)
}

async fn session(path: FullPath, socket: WebSocket) {
    let id = Uuid::new_v4().to_string();
    let room = ROOMS
        .lock()
        .entry(path.as_str().to_owned())
        .or_default()
        .clone();
    let (mut sink, mut incoming) = socket.split();
    let (sender, mut outgoing) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                break;
            }
        }
    });

    broadcast(&room, &id, &encode("new", &id, Some("all"), None));
    room.lock().insert(id.clone(), sender);
    while let Some(Ok(message)) = incoming.next().await {
        let Ok(text) = message.to_str() else { continue };
        let Ok(Incoming {
            r#type,
            receiver,
            data,
        }) = serde_json::from_str(text)
        else {
            break;
        };
        let message = encode(r#type, &id, Some(receiver), data);
        if receiver == "all" {
            broadcast(&room, &id, &message);
        } else if let Some(receiver) = room.lock().get(receiver) {
            let _ = receiver.send(message);
        }
    }
    room.lock().remove(&id);
    broadcast(&room, &id, &encode("close", &id, None, None));
    ROOMS.lock().retain(|_, room| !room.lock().is_empty());
}

fn encode(r#type: &str, sender: &str, receiver: Option<&str>, data: Option<&RawValue>) -> Message {
    let message = Outgoing {
        r#type,
        sender,
        receiver,
        data,
    };
    Message::text(serde_json::to_string(&message).unwrap())
}

fn broadcast(room: &Room, from: &str, message: &Message) {
    for (_, receiver) in room.lock().iter().filter(|(id, _)| *id != from) {
        let _ = receiver.send(message.clone());
    }
}

async fn ping_all() {
    let mut seconds = interval(Duration::from_secs(20));
    loop {
        seconds.tick().await;
        for room in ROOMS.lock().values() {
            for session in room.lock().values() {
                let _ = session.send(Message::ping(""));
            }
        }
    }
}
