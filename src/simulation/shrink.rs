//! Makes the schedule of a failed run short: fewer actions, nodes, servers, clients and rooms, as long as it fails
//! in the same way.

use super::{run::run, schedule::Schedule};

/// How many runs a search may take.
const MAX_RUNS: usize = 600;

/// The shortest schedule found that breaks the same promise.
pub(super) fn shrink(schedule: &Schedule, class: &'static str) -> Schedule {
    let mut runs = 0;
    let mut fails = |candidate: &Schedule| {
        runs += 1;
        runs <= MAX_RUNS && {
            let outcome = run(candidate, false);
            outcome.violations.iter().any(|(of, _)| *of == class)
        }
    };
    let mut best = schedule.clone();
    loop {
        let before = best.size();
        // Without parts of the actions, first large ones.
        let mut part = best.actions.len().div_ceil(2).max(1);
        loop {
            let mut start = 0;
            while start < best.actions.len() {
                let mut candidate = best.clone();
                let end = (start + part).min(candidate.actions.len());
                candidate.actions.drain(start..end);
                match fails(&candidate) {
                    true => best = candidate,
                    false => start += part,
                }
            }
            if part == 1 {
                break;
            }
            part = part.div_ceil(2);
        }
        let smaller: [fn(&mut Schedule); 4] = [
            |schedule| schedule.nodes -= 1,
            |schedule| schedule.servers -= 1,
            |schedule| schedule.clients -= 1,
            |schedule| schedule.rooms -= 1,
        ];
        for make in smaller {
            let mut candidate = best.clone();
            make(&mut candidate);
            let is_possible = candidate.nodes.min(candidate.servers) > 0
                && candidate.clients.min(candidate.rooms) > 0;
            if is_possible && fails(&candidate) {
                best = candidate;
            }
        }
        if best.size() == before {
            return best;
        }
    }
}
