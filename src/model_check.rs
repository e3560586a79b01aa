//! The model checker of threads, in builds with `--cfg shuttle`: shuttle runs a test again and again, and
//! chooses each time anew which thread runs next. The locks of these builds are scheduling points, and so is
//! [`OnceLock`].

use std::env;

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, ReplayScheduler, Schedule, Scheduler, Task, TaskId},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

/// The stack of a thread under the checker, in bytes. Shuttle's default is too small for a thread that formats
/// the message of a panic.
const STACK_BYTES: usize = 256 << 10;

/// The number of random schedules for a test, and of the preemptions in each.
const RANDOM_SCHEDULES: usize = 10_000;
const RANDOM_PREEMPTIONS: usize = 5;

/// The seed of the randomized schedules, so that a failure repeats.
const SEED: u64 = 18;

/// A [`std::sync::OnceLock`] whose accesses are scheduling points.
pub(crate) struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    access: AtomicBool,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> OnceLock<T> {
        OnceLock {
            value: std::sync::OnceLock::new(),
            access: AtomicBool::new(false),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.access.load(SeqCst);
        self.value.get()
    }

    pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        self.access.load(SeqCst);
        self.value.get_or_init(init)
    }
}

/// Runs `test` with every schedule that interrupts threads which could go on at most so many times. Each choice
/// between other threads, when one waits or ends, is made in every way.
pub(crate) fn check_all(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let scheduler = AllSchedules {
        preemptions,
        left: 0,
        choices: None,
        next: 0,
    };
    run(scheduler, test);
}

/// Runs `test` with [`RANDOM_SCHEDULES`] random schedules, the same in each run.
pub(crate) fn check_random(test: impl Fn() + Send + Sync + 'static) {
    let scheduler = PctScheduler::new_from_seed(SEED, RANDOM_PREEMPTIONS + 1, RANDOM_SCHEDULES);
    run(scheduler, test);
}

/// Runs `test` with the schedules of `scheduler`, or with the one that the variable `SCHEDULE` has.
fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    // Shuttle warns that it takes every atomic access as sequentially consistent.
    config.silence_warnings = true;
    let schedules = match env::var("SCHEDULE") {
        Ok(schedule) => Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(test),
        Err(_) => Runner::new(scheduler, config).run(test),
    };
    println!("{schedules} schedules");
}

/// Chooses all schedules with few preemptions, depth first.
struct AllSchedules {
    preemptions: usize,
    /// The preemptions that are left to this schedule.
    left: usize,
    /// The choices of this schedule, `None` before the first one. The next schedule repeats those before the
    /// last that can be made in another way.
    choices: Option<Vec<Choice>>,
    /// The index of the next choice.
    next: usize,
}

/// Which of several threads runs.
struct Choice {
    chosen: usize,
    count: usize,
}

impl Scheduler for AllSchedules {
    fn new_execution(&mut self) -> Option<Schedule> {
        match &mut self.choices {
            None => self.choices = Some(Vec::new()),
            Some(choices) => {
                while choices
                    .pop_if(|last| last.chosen + 1 == last.count)
                    .is_some()
                {}
                choices.last_mut()?.chosen += 1;
            }
        }
        self.left = self.preemptions;
        self.next = 0;
        Some(Schedule::new(SEED))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        _is_yielding: bool,
    ) -> Option<TaskId> {
        let current = current.filter(|id| runnable.iter().any(|task| task.id() == *id));
        let others = runnable.iter().map(|task| task.id());
        let others = others.filter(|id| Some(*id) != current);
        let mut candidates = current.into_iter().chain(others);
        if runnable.len() == 1 || (current.is_some() && self.left == 0) {
            return candidates.next();
        }
        let choices = self.choices.get_or_insert_default();
        if self.next == choices.len() {
            let count = runnable.len();
            choices.push(Choice { chosen: 0, count });
        }
        let chosen = choices[self.next].chosen;
        self.next += 1;
        if current.is_some() && chosen > 0 {
            self.left -= 1;
        }
        candidates.nth(chosen)
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("the tests use no random numbers of shuttle")
    }
}
