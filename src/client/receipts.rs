//! Who waits for which answer of the server.

use std::collections::HashMap;

use super::{
    command::Waiter,
    message::{Envelope, HistoryMessage, HistoryPage, HistoryPart, Message},
    send_error::SendError,
};

/// Who waits for which answer of the server. The server answers the requests of a session in order, and the receipt
/// of a request follows its answer. So the last answer of a type before a receipt belongs to it.
#[derive(Default)]
pub(super) struct Receipts {
    /// By number: the place of the message in the session, and who waits.
    waiting: HashMap<u64, (u64, Waiter)>,
    /// The last answer of each type that somebody waits for.
    held: HashMap<String, Message>,
    page: HistoryPage,
    /// The last `ping` of the client's own, if it is not answered yet.
    probe: Option<u64>,
}

impl Receipts {
    /// Adds who waits for the receipt of the message with this place.
    pub(super) fn add(&mut self, number: u64, place: u64, waiter: Waiter) {
        if let Waiter::Probe(_) = waiter {
            self.probe = Some(number);
        }
        self.waiting.insert(number, (place, waiter));
    }

    /// Whether a `ping` of the client's own is not answered yet.
    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some()
    }

    /// Whether this number is that of a `ping` of the client's own.
    pub(super) fn is_probe(&self, number: u64) -> bool {
        let waiting = self.waiting.get(&number);
        waiting.is_some_and(|(_, it)| matches!(it, Waiter::Probe(_)))
    }

    /// Whether nobody but the client itself waits for this number.
    pub(super) fn is_own(&self, number: u64) -> bool {
        let waiting = self.waiting.get(&number);
        waiting.is_some_and(|(_, it)| matches!(it, Waiter::Probe(_) | Waiter::Nobody))
    }

    /// Takes an answer that somebody waits for. Returns what the application gets as an event: the answer, if nobody
    /// waits for one of its type, or the one before, which belonged to nobody.
    pub(super) fn answered(&mut self, message: Message) -> Option<Message> {
        let mut waiting = self.waiting.values().map(|(_, waiter)| waiter);
        let is_awaited = waiting
            .any(|waiter| matches!(waiter, Waiter::Answer(kind, _) if *kind == message.kind));
        match is_awaited {
            true => self.held.insert(message.kind.clone(), message),
            false => Some(message),
        }
    }

    /// Takes a part of the history, if somebody waits for one.
    pub(super) fn history(&mut self, message: Message) -> Option<Message> {
        let mut waiting = self.waiting.values();
        if !waiting.any(|(_, waiter)| matches!(waiter, Waiter::History(_))) {
            return Some(message);
        }
        let Ok(part) = message.data::<HistoryPart>() else {
            return Some(message);
        };
        let Some(inner) = part.message else {
            self.page.more = part.more;
            return None;
        };
        let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(inner.get()) else {
            return Some(message);
        };
        self.page.messages.push(HistoryMessage {
            number: part.number,
            time: part.time,
            from: part.from,
            message: envelope.message(),
        });
        None
    }

    /// Takes a receipt or an error. Returns the place of its message; `None` if nobody waits for it.
    pub(super) fn settle(&mut self, number: u64, result: Result<u64, SendError>) -> Option<u64> {
        let (place, waiter) = self.waiting.remove(&number)?;
        if self.probe == Some(number) {
            self.probe = None;
        }
        let receivers = match result {
            Ok(receivers) => receivers,
            Err(error) => {
                waiter.fail(error);
                return Some(place);
            }
        };
        // Nobody may wait any longer.
        match waiter {
            Waiter::Receipt(reply) => _ = reply.send(Ok(receivers)),
            Waiter::Answer(kind, reply) => {
                let missing = || SendError::Rejected {
                    code: "no_answer".into(),
                    message: format!("the server sent a receipt, but no {kind} before"),
                };
                let answer = self.held.remove(&kind).map(|message| message.data);
                let _ = reply.send(answer.ok_or_else(missing));
            }
            Waiter::History(reply) => _ = reply.send(Ok(std::mem::take(&mut self.page))),
            Waiter::Probe(replies) => {
                for reply in replies {
                    let _ = reply.send(Ok(0));
                }
            }
            Waiter::Nobody => {}
        }
        Some(place)
    }

    /// Keeps who waits for this number until it is sent once more. `None` if it has been answered.
    pub(super) fn take(&mut self, number: u64) -> Option<Waiter> {
        self.waiting.remove(&number).map(|(_, waiter)| waiter)
    }

    /// Tells everyone that there is no answer.
    pub(super) fn fail(&mut self, error: &SendError) {
        for (_, (_, waiter)) in self.waiting.drain() {
            waiter.fail(error.clone());
        }
        self.held.clear();
        self.page = HistoryPage::default();
        self.probe = None;
    }
}
