//! What one session has sent and received, and the checks that each message must pass at its place in the
//! session's stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::schedule::{KEPT_ROOM, Kind};

/// A session as its client sees it.
pub(super) struct SessionLog {
    pub(super) room: usize,
    pub(super) id: Option<String>,
    /// When the client asked for it, and when the server answered its first `hello`, in milliseconds.
    pub(super) began: u64,
    pub(super) greeted: Option<u64>,
    /// Present once the session can be resumed.
    pub(super) token: Option<String>,
    /// All messages that it has received, without `resumed`.
    pub(super) received: Vec<String>,
    /// All messages that its client has sent, or will.
    pub(super) sent: Vec<Sent>,
    /// How many of them the server has certainly taken in.
    pub(super) taken_in: usize,
    pub(super) end: Option<End>,
    /// The node that it was on last.
    pub(super) node: usize,
    /// When its connection was lost last, in milliseconds.
    pub(super) lost: Option<u64>,
    /// Whether its node has stopped or died, so that it ends.
    pub(super) is_doomed: bool,
    /// The number of the message with which its client has set its state last.
    pub(super) state: Option<u64>,
    pub(super) view: View,
}

/// A message of a client.
pub(super) struct Sent {
    pub(super) text: String,
    /// `None` for a request to the server.
    pub(super) to: Option<To>,
    pub(super) has_ref: bool,
    /// Whether the client knew the receiver, or which sessions it knew, when it wrote the message.
    pub(super) known: BTreeSet<String>,
    pub(super) acks: Vec<usize>,
    /// When the last of them came, in milliseconds.
    pub(super) acked: u64,
    pub(super) errors: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum To {
    All,
    One(String),
}

/// Why a session is over for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client has closed it; `true` if all that it had sent before has reached its node.
    Left(bool),
    /// The client has lost it and does not come back.
    Lost,
    /// The server has ended it.
    Closed,
}

/// Who is in the room, as the messages to a session tell it.
#[derive(Default)]
pub(super) struct View {
    /// Whether the answer to a `hello` has come.
    pub(super) is_greeted: bool,
    /// The sessions that are there. Before the first `hello`: those that are known from their messages.
    pub(super) peers: BTreeSet<String>,
    closed: BTreeSet<String>,
    /// The number of the last message of each session.
    last: BTreeMap<String, u64>,
    /// The state of each session that has one.
    pub(super) states: BTreeMap<String, u64>,
    /// The number of the last of its own messages that has a receipt.
    acknowledged: Option<u64>,
    /// How many sessions were there that took nothing more, as a receipt or an error has shown: their `close` follows.
    pub(super) leaving: usize,
    /// The peers of the last `hello`, in order.
    pub(super) order: Vec<String>,
    /// The numbers of the messages of each session that have come.
    pub(super) heard: BTreeMap<String, BTreeSet<u64>>,
    /// The messages of the history, by session and number: those of the answer that has begun, and those of the last
    /// one that has ended.
    reading: BTreeSet<(String, u64)>,
    pub(super) history: Option<BTreeSet<(String, u64)>>,
}

/// A promise that is broken: the kind, and the details.
type Broken = (&'static str, String);

#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    sender: &'a str,
    receiver: Option<&'a str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl SessionLog {
    pub(super) fn new(room: usize, began: u64) -> SessionLog {
        SessionLog {
            room,
            id: None,
            began,
            greeted: None,
            token: None,
            received: Vec::new(),
            sent: Vec::new(),
            taken_in: 0,
            end: None,
            node: 0,
            lost: None,
            is_doomed: false,
            state: None,
            view: View::default(),
        }
    }

    /// Adds a message to those that the client sends.
    pub(super) fn say(&mut self, kind: &str, to: Option<To>, has_ref: bool, data: &str) {
        let number = self.sent.len();
        let receiver = match &to {
            None => "server",
            Some(To::All) => "all",
            Some(To::One(id)) => id,
        };
        let reference = match has_ref {
            true => format!(r#","ref":{number}"#),
            false => String::new(),
        };
        let data = match data {
            "" => number.to_string(),
            data => data.to_owned(),
        };
        let text =
            format!(r#"{{"type":"{kind}","receiver":"{receiver}","data":{data}{reference}}}"#);
        self.sent.push(Sent {
            text,
            to,
            has_ref,
            known: self.view.peers.clone(),
            acks: Vec::new(),
            acked: 0,
            errors: Vec::new(),
        });
    }

    /// Has the client set its state to the number of the message.
    pub(super) fn set_state(&mut self, has_ref: bool) {
        self.state = Some(self.sent.len() as u64);
        self.say("state", None, has_ref, "");
    }

    /// Takes in the next message of the session's stream.
    ///
    /// # Errors
    ///
    /// The promise that is broken.
    pub(super) fn receive(&mut self, text: &str, now: u64, kind: Kind) -> Result<(), Broken> {
        let place = self.received.len();
        self.received.push(text.to_owned());
        let message: Incoming<'_> = serde_json::from_str(text)
            .map_err(|error| ("not a message", format!("{error}: {text}")))?;
        let own = self.id.get_or_insert_with(|| match message.receiver {
            Some(id) if message.sender == "server" => id.to_owned(),
            _ => String::new(),
        });
        if own.is_empty() {
            self.id = None;
        }
        let own = self.id.clone().unwrap_or_default();
        let sender = message.sender.to_owned();
        if sender == "server" {
            if message.receiver != Some(&own) {
                return Err(("an answer to another session", text.to_owned()));
            }
            return self.receive_answer(&message, place, now, kind);
        }
        let view = &mut self.view;
        match (message.kind, message.receiver) {
            ("new", Some("all")) => {
                if sender == own || !view.peers.insert(sender.clone()) {
                    return Err(("`new` of a session that was there", sender));
                }
                if view.closed.contains(&sender) && kind != Kind::Harsh {
                    return Err(("`new` after `close`", sender));
                }
            }
            ("close", None) => {
                let was_there = view.peers.remove(&sender);
                view.leaving = view.leaving.saturating_sub(1);
                if !was_there && (view.is_greeted || view.closed.contains(&sender)) {
                    return Err(("`close` of a session that was not there", sender));
                }
                view.states.remove(&sender);
                view.closed.insert(sender);
            }
            ("state", None) => {
                if sender == own || view.is_greeted && !view.peers.contains(&sender) {
                    return Err(("a state of a session that is not there", text.to_owned()));
                }
                let number = number(&message)?;
                let last = view.states.insert(sender.clone(), number);
                // Where messages are lost, a state may be learned from a list, after later messages.
                let said = view.last.get(&sender).copied();
                let said = said.filter(|_| kind == Kind::Calm);
                if last.max(said).is_some_and(|last| last >= number) {
                    return Err(("a state twice or out of order", text.to_owned()));
                }
            }
            ("say", receiver) => {
                if receiver != Some("all") && receiver != Some(&own) && !own.is_empty() {
                    return Err(("a message for another session", text.to_owned()));
                }
                if sender != own && !view.peers.contains(&sender) {
                    if view.is_greeted || view.closed.contains(&sender) {
                        return Err(("a message of a session that is not there", text.to_owned()));
                    }
                    view.peers.insert(sender.clone());
                }
                let number = number(&message)?;
                let heard = view.heard.entry(sender.clone()).or_default();
                let past = view.history.iter().flatten().chain(&view.reading);
                let is_past = past
                    .into_iter()
                    .any(|(id, said)| *id == sender && *said == number);
                if !heard.insert(number) || is_past {
                    return Err(("a message twice", text.to_owned()));
                }
                let state = view.states.get(&sender).copied();
                let last = view.last.insert(sender, number);
                if last.max(state).is_some_and(|last| last >= number) {
                    return Err(("a message out of order", text.to_owned()));
                }
            }
            _ => return Err(("an unknown message", text.to_owned())),
        }
        Ok(())
    }

    fn receive_answer(
        &mut self,
        message: &Incoming<'_>,
        place: usize,
        now: u64,
        kind: Kind,
    ) -> Result<(), Broken> {
        let data: Value =
            serde_json::from_str(message.data.get()).map_err(|it| ("not JSON", it.to_string()))?;
        let number = data["ref"].as_u64();
        match message.kind {
            "hello" => self.receive_hello(&data, now)?,
            "history" => self.receive_history(&data)?,
            "ack" => {
                let number = number.ok_or(("a receipt without `ref`", data.to_string()))?;
                let sent = self.sent.get_mut(number as usize);
                if let Some(sent) = sent.filter(|sent| is_kept(self.room, sent)) {
                    // It comes when the message is stored, and counts who was there before.
                    let receivers = data["receivers"].as_u64().unwrap_or(0) as usize;
                    sent.acks.push(receivers);
                    sent.acked = now;
                    self.taken_in = self.taken_in.max(number as usize + 1);
                    return Ok(());
                }
                let view = &mut self.view;
                if view.acknowledged.is_some_and(|last| last >= number) {
                    return Err(("a receipt twice or out of order", number.to_string()));
                }
                view.acknowledged = Some(number);
                let sent = self.sent.get_mut(number as usize);
                let sent = sent
                    .filter(|sent| sent.has_ref)
                    .ok_or(("a foreign `ref`", data.to_string()))?;
                let receivers = data["receivers"].as_u64().unwrap_or(0) as usize;
                sent.acks.push(receivers);
                let right = match &sent.to {
                    Some(To::All) if view.is_greeted => {
                        let count = view.peers.len();
                        view.leaving = view.leaving.max(count.saturating_sub(receivers));
                        receivers <= count
                    }
                    Some(To::All) => true,
                    Some(To::One(_)) | None => receivers == 1,
                };
                if !right {
                    return Err((
                        "a wrong count in a receipt",
                        format!(
                            "{receivers}, where {} are there: {}",
                            view.peers.len(),
                            sent.text
                        ),
                    ));
                }
                let own = self.id.clone().unwrap_or_default();
                let is_own = sent.to == Some(To::One(own.clone()));
                let has_come = view.heard.get(&own).is_some_and(|it| it.contains(&number));
                if is_own && !has_come {
                    return Err(("a receipt before the message", sent.text.clone()));
                }
                self.taken_in = self.taken_in.max(number as usize + 1);
            }
            "error" => match data["code"].as_str().unwrap_or_default() {
                "resume_failed" if place == 0 => {}
                // An answer does not come, or a message is not stored, while JetStream cannot be reached.
                "history_failed" if kind != Kind::Calm => {
                    let sent = number.and_then(|number| self.sent.get_mut(number as usize));
                    if let Some(sent) = sent {
                        sent.errors.push("history_failed".into());
                    }
                }
                code @ ("unknown_receiver" | "empty_room") => {
                    if let Some(number) = number {
                        let sent = self.sent.get_mut(number as usize);
                        let sent = sent
                            .filter(|sent| sent.has_ref)
                            .ok_or(("a foreign `ref`", data.to_string()))?;
                        sent.errors.push(code.to_owned());
                        if code == "empty_room" && self.view.is_greeted {
                            self.view.leaving = self.view.peers.len();
                        }
                        if sent.errors.len() > 1 {
                            return Err(("an error twice", number.to_string()));
                        }
                        self.taken_in = self.taken_in.max(number as usize + 1);
                    }
                }
                code => return Err(("an error", format!("{code}: {data}"))),
            },
            _ => return Err(("an unknown answer", message.kind.to_owned())),
        }
        Ok(())
    }

    fn receive_history(&mut self, data: &Value) -> Result<(), Broken> {
        let view = &mut self.view;
        if data["done"] == true {
            let read = mem::take(&mut view.reading);
            if data["more"] == true {
                return Err(("a history that is not whole", data.to_string()));
            }
            let known = view.history.replace(read);
            let (known, read) = (known.unwrap_or_default(), view.history.iter().flatten());
            let read: BTreeSet<&(String, u64)> = read.collect();
            return match known.iter().find(|message| !read.contains(message)) {
                Some(message) => Err(("a history that forgets", format!("{message:?}"))),
                None => Ok(()),
            };
        }
        let message = &data["message"];
        let sender = message["sender"].as_str().unwrap_or_default().to_owned();
        let number = message["data"].as_u64().unwrap_or(u64::MAX);
        let heard = view.heard.get(&sender);
        let is_heard = heard.is_some_and(|heard| heard.contains(&number));
        if is_heard || !view.reading.insert((sender.clone(), number)) {
            return Err(("a message twice", data.to_string()));
        }
        match self.id.as_ref() == Some(&sender) {
            true => Err(("an own message in the history", data.to_string())),
            false => Ok(()),
        }
    }

    fn receive_hello(&mut self, data: &Value, now: u64) -> Result<(), Broken> {
        let peers = data["peers"]
            .as_array()
            .ok_or(("no peers", data.to_string()))?;
        let order: Vec<String> = peers
            .iter()
            .map(|peer| peer["id"].as_str().unwrap_or_default().to_owned())
            .collect();
        let peers: BTreeSet<String> = order.iter().cloned().collect();
        let states = data["peers"].as_array().into_iter().flatten();
        let states = states.filter_map(|peer| {
            let id = peer["id"].as_str().unwrap_or_default().to_owned();
            Some((id, peer["state"].as_u64()?))
        });
        let states: BTreeMap<String, u64> = states.collect();
        let view = &mut self.view;
        let is_true = match view.is_greeted {
            true => peers == view.peers && states == view.states,
            false => {
                let mut gone = view.closed.difference(&view.peers);
                peers.is_superset(&view.peers) && !gone.any(|id| peers.contains(id))
            }
        };
        if !is_true || peers.len() != order.len() {
            return Err((
                "a `hello` that is not true",
                format!(
                    "{order:?} {states:?}, not {:?} {:?}",
                    view.peers, view.states
                ),
            ));
        }
        view.states = states;
        view.peers = peers;
        view.order = order;
        view.is_greeted = true;
        self.greeted.get_or_insert(now);
        if let Some(token) = data["resume"]["token"].as_str() {
            let known = self.token.get_or_insert_with(|| token.to_owned());
            if known != token {
                return Err(("another token", token.to_owned()));
            }
        }
        Ok(())
    }
}

/// Whether a message in a room is stored.
pub(super) fn is_kept(room: usize, sent: &Sent) -> bool {
    room == KEPT_ROOM && sent.to == Some(To::All)
}

/// The number that a message has as data.
fn number(message: &Incoming<'_>) -> Result<u64, Broken> {
    let data = message.data.get();
    data.parse().map_err(|_| ("not a number", data.to_owned()))
}
