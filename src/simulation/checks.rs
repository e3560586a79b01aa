//! What must be true once all faults have ended and nothing happens any more.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    schedule::{KEPT_ROOM, Kind},
    session_log::{End, SessionLog, To, is_kept},
    world::{State, World},
};
use crate::state::Shared;

/// The tasks of a node without sessions: the ticker, and the one that talks to other nodes.
const OWN_TASKS: usize = 2;

/// The sessions that are connected, by their numbers.
fn connected(state: &State) -> Vec<usize> {
    let clients = state.clients.iter();
    clients.filter_map(|client| client.session).collect()
}

/// Every client that wants a session has one, and every `hello` lists exactly the sessions that are connected, in
/// the same order everywhere.
pub(super) fn rosters(world: &World) {
    let state = &mut *world.state.lock();
    for client in 0..state.clients.len() {
        if state.clients[client].wants.is_some() && !state.clients[client].is_connected() {
            world.violation(state, "a client is not back", format!("client {client}"));
        }
    }
    let alive = connected(state);
    let rooms: BTreeSet<usize> = alive.iter().map(|it| state.sessions[*it].room).collect();
    for room in rooms {
        let mut here: Vec<usize> = alive.clone();
        here.retain(|session| state.sessions[*session].room == room);
        let ids: BTreeSet<String> = here
            .iter()
            .filter_map(|session| state.sessions[*session].id.clone())
            .collect();
        let mut wrong = Vec::new();
        for session in &here {
            let log = &state.sessions[*session];
            let mut others = ids.clone();
            others.remove(log.id.as_deref().unwrap_or_default());
            let listed: BTreeSet<String> = log.view.order.iter().cloned().collect();
            let states = here.iter().filter(|other| *other != session);
            let states = states.filter_map(|other| {
                let other = &state.sessions[*other];
                Some((other.id.clone()?, other.state?))
            });
            let states: BTreeMap<String, u64> = states.collect();
            if log.view.states != states {
                let known = &log.view.states;
                wrong.push(format!(
                    "{:?} knows the states {known:?}, not {states:?}",
                    log.id
                ));
            }
            if listed != others {
                wrong.push(format!("{:?} lists {listed:?}, not {others:?}", log.id));
            }
        }
        if wrong.is_empty() {
            wrong.extend(wrong_order(world.kind, state, &here));
        }
        for what in wrong {
            world.violation(state, "a roster is wrong", what);
        }
    }
}

/// Two sessions that stand in another order in the last `hello` of one session than in that of another, or than
/// they joined.
fn wrong_order(kind: Kind, state: &State, here: &[usize]) -> Option<String> {
    let logs = here.iter().map(|session| &state.sessions[*session]);
    let mut pairs = BTreeSet::new();
    for log in logs.clone() {
        let order = &log.view.order;
        for (place, early) in order.iter().enumerate() {
            pairs.extend(order[place + 1..].iter().map(|late| (early, late)));
        }
    }
    let wrong = pairs
        .iter()
        .find(|(early, late)| pairs.contains(&(*late, *early)));
    if let Some((early, late)) = wrong {
        return Some(format!("the order of {early} and {late} differs"));
    }
    let has_joined_before = |early: &SessionLog, late: &SessionLog| {
        early.greeted.is_some_and(|greeted| greeted < late.began)
    };
    for early in logs.clone() {
        for late in logs.clone().filter(|late| has_joined_before(early, late)) {
            let (Some(early), Some(late)) = (&early.id, &late.id) else {
                continue;
            };
            if kind == Kind::Calm && pairs.contains(&(late, early)) {
                return Some(format!("{early} joined before {late}"));
            }
        }
    }
    None
}

/// Every message has come exactly where its receipt says.
pub(super) fn deliveries(world: &World) {
    let state = &mut *world.state.lock();
    let alive = connected(state);
    let mut wrong = Vec::new();
    for sender in 0..state.sessions.len() {
        let log = &state.sessions[sender];
        let is_alive = alive.contains(&sender);
        for (number, sent) in log.sent.iter().enumerate() {
            if is_alive && sent.has_ref && sent.acks.is_empty() && sent.errors.is_empty() {
                wrong.push((
                    "a message without a receipt",
                    format!("{:?}: {}", log.id, sent.text),
                ));
            }
            if sent.acks.len() > 1 {
                wrong.push(("two receipts", format!("{:?}: {number}", log.id)));
            }
        }
        if is_alive && log.view.leaving > 0 && world.kind != Kind::Harsh {
            wrong.push(("a wrong count in a receipt", format!("{:?}", log.id)));
        }
        for receiver in &alive {
            let other = &state.sessions[*receiver];
            if other.room == log.room && *receiver != sender {
                delivered(world.kind, log, other, is_alive, &mut wrong);
                remembered(log, other, &mut wrong);
            }
        }
    }
    for receiver in &alive {
        let log = &state.sessions[*receiver];
        if log.room == KEPT_ROOM && log.view.history.is_none() {
            wrong.push(("no history", format!("{:?}", log.id)));
        }
    }
    for (class, what) in wrong {
        world.violation(state, class, what);
    }
}

/// What one session has sent to another that is still there.
fn delivered(
    kind: Kind,
    sender: &SessionLog,
    receiver: &SessionLog,
    is_alive: bool,
    wrong: &mut Vec<(&'static str, String)>,
) {
    let (Some(from), Some(to)) = (&sender.id, &receiver.id) else {
        return;
    };
    let none = BTreeSet::new();
    let heard = receiver.view.heard.get(from).unwrap_or(&none);
    for number in heard {
        let sent = sender.sent.get(*number as usize);
        let is_addressed = sent.is_some_and(|sent| match &sent.to {
            Some(To::All) => true,
            Some(To::One(id)) => id == to,
            None => false,
        });
        if !is_addressed {
            wrong.push((
                "a message that was not sent",
                format!("{from} to {to}: {number}"),
            ));
        }
    }
    let span = heard.first().zip(heard.last());
    for (number, sent) in sender.sent.iter().enumerate() {
        let is_one = match &sent.to {
            Some(To::All) => false,
            Some(To::One(id)) if id == to => true,
            _ => continue,
        };
        let number = number as u64;
        let has_come = heard.contains(&number);
        let what = || {
            let (acks, errors) = (&sent.acks, &sent.errors);
            format!("{from} to {to}: {} {acks:?} {errors:?}", sent.text)
        };
        if is_one && has_come && !sent.errors.is_empty() {
            wrong.push(("an error, and the message has come", what()));
        }
        if kind != Kind::Calm {
            continue;
        }
        let is_between = span.is_some_and(|(first, last)| (first..=last).contains(&&number));
        let is_taken_in =
            is_alive || (number as usize) < sender.taken_in || sender.end == Some(End::Left(true));
        if !has_come && (is_between || is_taken_in && sent.known.contains(to)) {
            wrong.push(("a message is missing", what()));
        }
    }
}

/// What one session has sent to all is in the history of another, or has come to it.
fn remembered(sender: &SessionLog, receiver: &SessionLog, wrong: &mut Vec<(&'static str, String)>) {
    let (Some(from), Some(history)) = (&sender.id, &receiver.view.history) else {
        return;
    };
    let none = BTreeSet::new();
    let heard = receiver.view.heard.get(from).unwrap_or(&none);
    for (number, sent) in (0..).zip(&sender.sent) {
        let is_stored = is_kept(sender.room, sent) && !sent.acks.is_empty();
        let is_there = heard.contains(&number) || history.contains(&(from.clone(), number));
        // The last ones are said after the last request.
        if is_stored && !is_there {
            let what = format!("{from} to {:?}: {}", receiver.id, sent.text);
            wrong.push(("a message that is forgotten", what));
        }
    }
}

/// Nothing waits for anything, and what is counted is there.
pub(super) fn leftovers(world: &World, phase: &str) {
    let state = &mut *world.state.lock();
    let alive = connected(state).len();
    let (mut left, mut total) = (Vec::new(), 0);
    for (index, node) in state.nodes.iter().enumerate().filter(|(_, it)| it.is_up) {
        let shared = node.shared();
        let count = shared.rooms.session_count();
        total += count;
        left.extend(
            leftovers_of(shared, count)
                .into_iter()
                .map(|what| format!("{phase}, node {index}: {what}")),
        );
    }
    if total != alive {
        left.push(format!("{phase}: {total} sessions, not {alive}"));
    }
    for what in left {
        world.violation(state, "something is left", what);
    }
}

fn leftovers_of(shared: &Shared, sessions: usize) -> Vec<String> {
    let mut left = shared.rooms.leftovers();
    if let Some(cluster) = &shared.cluster {
        left.extend(cluster.outbound.leftovers());
    }
    let slots = 1000 - shared.admission.free_slots();
    let counts = [
        ("slots", slots, sessions),
        ("pings", shared.heartbeat.len(), sessions),
        ("suspended sessions", shared.resumes.count_suspended(), 0),
        (
            "resumable sessions",
            shared.resumes.len().saturating_sub(sessions),
            0,
        ),
        ("expiries", usize::from(!shared.expiries.is_empty()), 0),
        ("tasks", shared.tasks.len(), sessions + OWN_TASKS),
    ];
    for (what, is, should) in counts {
        if is != should {
            left.push(format!("{is} {what}, not {should}"));
        }
    }
    if sessions == 0 && shared.rooms.len() > 0 {
        left.push("a room".to_owned());
    }
    left
}
