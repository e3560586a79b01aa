//! Runs with many seeds.

use std::{
    env,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{names, run::run, schedule::Schedule, shrink::shrink};

/// How many seeds a test run has, unless the environment says otherwise.
const SEEDS: u64 = 120;

/// The number that a variable of the environment gives.
fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} must be a number, not {value}")))
}

/// The smallest of these seeds that fails, among those that are run before `end`, and how many are run.
fn first_failure(
    seeds: RangeInclusive<u64>,
    end: Option<Instant>,
    fails: impl Fn(u64) -> bool + Sync,
) -> (Option<u64>, u64) {
    let next = AtomicU64::new(*seeds.start());
    let failed = AtomicU64::new(u64::MAX);
    let is_over = || end.is_some_and(|end| Instant::now() >= end);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if !seeds.contains(&seed) || seed > failed.load(Relaxed) || is_over() {
                return;
            }
            if fails(seed) {
                failed.fetch_min(seed, Relaxed);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
    let failed = failed.into_inner();
    let count = next.into_inner().min(seeds.end().saturating_add(1)) - seeds.start();
    ((failed < u64::MAX).then_some(failed), count)
}

/// Prints the schedule of a seed that fails. Then shortens it, prints what happens in the run, and panics.
fn explain(seed: u64) {
    let schedule = Schedule::new(seed);
    let outcome = run(&schedule, false);
    let Some((class, what)) = outcome.violations.first() else {
        return println!("seed {seed} does not fail");
    };
    println!("{schedule}\n{class}: {what}\n");
    let short = shrink(&schedule, class);
    let again = run(&short, true);
    println!(
        "{}\na shorter schedule that breaks the same promise:\n{short}",
        again.text
    );
    for (class, what) in &again.violations {
        println!("{class}: {what}");
    }
    panic!("seed {seed} fails, see above: {class}");
}

/// Runs the seeds that the environment asks for. Calls `explain`, which panics, with the first that fails, or with the
/// only one that is asked for.
fn try_seeds(fails: impl Fn(u64) -> bool + Sync, explain: impl Fn(u64)) {
    if let Some(seed) = number("SEED") {
        return explain(seed);
    }
    let first = number("FIRST_SEED").unwrap_or(0);
    let seconds = number("SECONDS_TO_SIMULATE").map(Duration::from_secs);
    let end = seconds.map(|seconds| Instant::now() + seconds);
    let seeds = match (number("SEEDS"), end) {
        (Some(count), _) => count,
        (None, Some(_)) => u64::MAX - first,
        (None, None) => SEEDS,
    };
    let (failed, count) = first_failure(first..=first + seeds - 1, end, fails);
    if let Some(seed) = failed {
        explain(seed);
    }
    println!("{count} seeds");
}

#[test]
fn every_promise_holds() {
    let fails = |seed| !run(&Schedule::new(seed), false).violations.is_empty();
    try_seeds(fails, explain);
}

#[test]
fn every_name_has_one_owner_who_gets_its_messages() {
    let fails = |seed| !names::run(seed).is_empty();
    try_seeds(fails, |seed| {
        let violations = names::run(seed);
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
        println!("seed {seed} does not fail");
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..6 {
        let schedule = Schedule::new(seed);
        let (one, other) = (run(&schedule, true), run(&schedule, true));
        if one.trace != other.trace {
            let lines = one.text.lines().zip(other.text.lines());
            let first = lines.enumerate().find(|(_, (one, other))| one != other);
            panic!("seed {seed} differs: {first:?}");
        }
    }
}
