//! One run, from its schedule to its verdict.

use std::{cell::RefCell, panic, sync::Once, time::Duration};

use tokio::{
    runtime,
    time::{Instant, sleep, sleep_until},
};

use super::{
    bus::Link,
    checks,
    schedule::{Action, Schedule, Target},
    world::{DOWN_SECONDS, DRAIN_SECONDS, RESUME_SECONDS, World},
};
use crate::random::seeded;

/// How long the first nodes need to find each other.
const BEGINNING: Duration = Duration::from_millis(2500);

/// How long it may take until all is well again after the last fault: lost sessions expire, silent nodes are
/// removed, and digests are compared twice.
const RECOVERY: Duration = Duration::from_secs(RESUME_SECONDS + DOWN_SECONDS + 21);

/// How long messages are under way, at most.
const SETTLING: Duration = Duration::from_secs(2);

/// What has come of a run.
pub(super) struct Outcome {
    /// A hash of all that the clients have seen, and when.
    pub(super) trace: u64,
    /// The promises that were broken: the kind, and the details.
    pub(super) violations: Vec<(&'static str, String)>,
    /// All that has happened, if it was asked for.
    pub(super) text: String,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs a schedule.
pub(super) fn run(schedule: &Schedule, with_text: bool) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            print(info);
        }));
    });
    PANICS.take();
    seeded::seed(Some(schedule.seed));
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let mut outcome = runtime.block_on(simulate(schedule, with_text));
    drop(runtime);
    seeded::seed(None);
    let panics = PANICS.take();
    outcome
        .violations
        .extend(panics.into_iter().map(|what| ("a panic", what)));
    outcome
}

/// Lets a node miss that a session joins on another. The next event of the room shows the gap, and the node must ask
/// at once: not when it repeats its requests, and not when digests are compared.
async fn lost_join(world: &World) {
    let Some((speaker, listener)) = world.apart() else {
        return;
    };
    let newcomer = world.add_client();
    let (room, from, to) = {
        let state = world.state.lock();
        let log = |client: usize| {
            let session = state.clients[client].session.unwrap_or_default();
            &state.sessions[session]
        };
        (log(speaker).room, log(speaker).node, log(listener).node)
    };
    world.bus.quicken();
    sleep(SETTLING).await;
    world.bus.disturb(Link::Down(to), 0, 1, None);
    world.act(&Action::Join {
        client: newcomer,
        room,
        node: from,
        is_resumable: false,
    });
    sleep(Duration::from_millis(30)).await;
    world.say(&mut world.state.lock(), speaker, Target::All, false);
    sleep(Duration::from_millis(100)).await;
    let state = &mut *world.state.lock();
    let peers = |client: usize| {
        let session = state.clients[client].session.unwrap_or_default();
        state.sessions[session].view.peers.len()
    };
    if peers(speaker) != peers(listener) {
        let what = format!("client {listener} does not know of client {newcomer}");
        world.violation(state, "a gap is not asked for", what);
    }
}

async fn simulate(schedule: &Schedule, with_text: bool) -> Outcome {
    let world = World::new(schedule, with_text);
    tokio::spawn(world.bus.clone().run());
    (0..schedule.nodes).for_each(|_| world.start_node());
    sleep(BEGINNING).await;

    let began = Instant::now();
    for (at, action) in &schedule.actions {
        sleep_until(began + Duration::from_millis(*at)).await;
        world.act(action);
    }

    world.bus.heal();
    sleep(RECOVERY).await;
    let clients = schedule.clients;
    for client in 0..clients {
        world.hello(client);
    }
    sleep(SETTLING).await;
    checks::rosters(&world);
    for client in 0..clients {
        world.say(&mut world.state.lock(), client, Target::All, true);
    }
    sleep(SETTLING).await;
    checks::deliveries(&world);
    // Acknowledgements follow with the next heartbeat.
    sleep(SETTLING).await;
    checks::leftovers(&world, "with sessions");

    lost_join(&world).await;
    let clients = world.state.lock().clients.len();
    for client in 0..clients {
        world.leave(&mut world.state.lock(), client);
    }
    sleep(Duration::from_secs(RESUME_SECONDS)).await;
    checks::leftovers(&world, "without sessions");

    world.stop_all();
    sleep(Duration::from_secs(DRAIN_SECONDS + 5)).await;
    let mut state = world.state.lock();
    for node in 0..state.nodes.len() {
        if !state.nodes[node].has_stopped() {
            world.violation(&mut state, "a node does not stop", format!("node {node}"));
        }
    }
    drop(state);
    let trace = world.trace();
    let state = &mut *world.state.lock();
    Outcome {
        trace,
        violations: std::mem::take(&mut state.violations),
        text: state.text.take().unwrap_or_default(),
    }
}
