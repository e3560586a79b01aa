//! Runs with many seeds.

use std::{
    env,
    time::{Duration, Instant},
};

use super::{run::run, schedule::Schedule, shrink::shrink};

/// How many seeds a test run has, unless the environment says otherwise.
const SEEDS: u64 = 120;

/// The number that a variable of the environment gives.
fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} must be a number, not {value}")))
}

/// Runs a seed. If it fails, prints its schedule, shrinks that, prints it too, and panics.
fn check(seed: u64) {
    let schedule = Schedule::new(seed);
    let outcome = run(&schedule, false);
    let Some((class, what)) = outcome.violations.first() else {
        return;
    };
    eprintln!("{schedule}\n{class}: {what}\n");
    let short = shrink(&schedule, class);
    let again = run(&short, true);
    eprintln!(
        "{}\nthe shortest that fails in the same way:\n{short}",
        again.text
    );
    for (class, what) in &again.violations {
        eprintln!("{class}: {what}");
    }
    panic!("seed {seed}: {class}");
}

#[test]
fn every_promise_holds() {
    if let Some(seed) = number("SEED") {
        return check(seed);
    }
    let first = number("FIRST_SEED").unwrap_or(0);
    if let Some(seconds) = number("SECONDS") {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut seed = first;
        while Instant::now() < end {
            check(seed);
            seed += 1;
        }
        return println!("{} seeds", seed - first);
    }
    let count = number("SEEDS").unwrap_or(SEEDS);
    (first..first + count).for_each(check);
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

#[test]
#[ignore = "prints what fails, and how often"]
fn survey() {
    let mut classes = std::collections::BTreeMap::<_, Vec<u64>>::new();
    let first = number("FIRST_SEED").unwrap_or(0);
    for seed in first..first + number("SEEDS").unwrap_or(SEEDS) {
        let schedule = Schedule::new(seed);
        let outcome = run(&schedule, env::var("TRACE").is_ok());
        print!("{}", outcome.text);
        if let Some((class, what)) = outcome.violations.first() {
            let all = classes.entry((*class, format!("{:?}", schedule.kind)));
            let all = all.or_default();
            all.push(seed);
            if all.len() < 4 {
                println!("{seed} {:?} {class}: {what}", schedule.kind);
            }
        }
    }
    println!("{classes:#?}");
}
