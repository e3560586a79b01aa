//! What was measured, as a table or as one JSON document.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::printable::printable;

/// The longest latency that is told apart, in microseconds, and how many digits are.
const MAX_MICROSECONDS: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

/// The least samples of which a 99th percentile is shown: of fewer, it would be the longest one.
const MIN_P99_SAMPLES: u64 = 100;

/// How many reasons for failures are told apart, and how much of each is kept: the server may name any.
const MAX_REASONS: usize = 32;
const MAX_REASON_CHARS: usize = 200;

/// The reason of failures that are not told apart.
const OTHER: &str = "others";

/// The reason that is given for messages that have not arrived.
pub(super) const MISSING: &str = "a message has not arrived";

/// The latencies of a phase.
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, MAX_MICROSECONDS, DIGITS);
        Latencies(histogram.expect("the bounds are valid"))
    }

    pub(super) fn add(&mut self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(microseconds);
    }

    /// Adds messages that have not arrived: each counts as the longest latency, and at least as this one, which is
    /// how long it was awaited. Returns what it counts as.
    pub(super) fn add_missing(&mut self, count: u64, least: Duration) -> Duration {
        let longest = least.max(Duration::from_micros(self.0.max()));
        let microseconds = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        // A count of zero would still raise the maximum.
        if count > 0 {
            self.0.saturating_record_n(microseconds, count);
        }
        longest
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of messages does not pass.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(share))
    }

    /// The latencies that are shown; `None` if there are none.
    pub(super) fn summary(&self) -> Option<Milliseconds> {
        let milliseconds = |microseconds: u64| microseconds as f64 / 1000.0;
        let quantile = |share: f64| milliseconds(self.0.value_at_quantile(share));
        (!self.0.is_empty()).then(|| Milliseconds {
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: (self.0.len() >= MIN_P99_SAMPLES).then(|| quantile(0.99)),
            max: milliseconds(self.0.max()),
            samples: self.0.len(),
        })
    }
}

/// The latencies that are shown, in milliseconds.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Milliseconds {
    p50: f64,
    p90: f64,
    /// `None` if there are too few samples.
    p99: Option<f64>,
    max: f64,
    /// How many latencies these were taken from.
    samples: u64,
}

/// What was measured in one phase.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Phase {
    pub(super) name: &'static str,
    /// How many sessions have joined, or messages have arrived.
    pub(super) count: u64,
    /// How many messages have not arrived.
    pub(super) missing: u64,
    pub(super) per_second: f64,
    /// How many messages a second were to be sent, and have left the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rates: Option<Rates>,
    /// How many messages were on their way at once, at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_flight: Option<usize>,
    /// How many percent of a core this program itself has used, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_percent: Option<f64>,
    pub(super) milliseconds: Option<Milliseconds>,
    /// How often what has failed.
    pub(super) errors: Errors,
    /// Why the phase has ended.
    pub(super) stopped: String,
}

impl Phase {
    /// A phase in which nothing was measured.
    pub(super) fn new(name: &'static str, stopped: String) -> Phase {
        Phase {
            name,
            count: 0,
            missing: 0,
            per_second: 0.0,
            rates: None,
            in_flight: None,
            cpu_percent: None,
            milliseconds: None,
            errors: Errors::default(),
            stopped,
        }
    }
}

/// How many messages a second were to be sent, and have left the process.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Rates {
    pub(super) asked: u64,
    pub(super) sent: f64,
}

/// How often what has failed.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub(super) struct Errors(BTreeMap<String, u64>);

impl Errors {
    pub(super) fn add(&mut self, reason: impl Into<String>, count: u64) {
        if count == 0 {
            return;
        }
        let mut reason: String = reason.into();
        if let Some((end, _)) = reason.char_indices().nth(MAX_REASON_CHARS) {
            reason.truncate(end);
        }
        if self.0.len() >= MAX_REASONS && !self.0.contains_key(&reason) {
            reason = OTHER.into();
        }
        *self.0.entry(reason).or_default() += count;
    }
}

/// What was measured.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) url: String,
    pub(super) sessions: usize,
    pub(super) rooms: usize,
    /// How many of the sessions were lost.
    pub(super) lost: usize,
    pub(super) phases: Vec<Phase>,
}

impl Report {
    /// Whether no session has joined, all were lost, or messages are missing.
    pub(super) fn has_failed(&self) -> bool {
        self.lost == self.sessions || self.phases.iter().any(|phase| phase.missing > 0)
    }

    /// The report as one line of JSON.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }

    /// The report for people.
    pub(super) fn table(&self) -> String {
        let (sessions, rooms) = (self.sessions, self.rooms);
        let mut text = format!(
            "{}: {sessions} sessions in {rooms} rooms\n\n",
            printable(&self.url)
        );
        text += &row([
            "phase",
            "count",
            "per second",
            "in flight",
            "samples",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "max ms",
        ]
        .map(String::from));
        for phase in &self.phases {
            let times = match phase.milliseconds {
                Some(it) => [
                    it.samples.to_string(),
                    digits(it.p50),
                    digits(it.p90),
                    it.p99.map_or_else(|| "-".into(), digits),
                    digits(it.max),
                ],
                None => [const { String::new() }; 5],
            };
            let [samples, p50, p90, p99, max] = times;
            let in_flight = phase.in_flight.map(|it| it.to_string()).unwrap_or_default();
            text += &row([
                phase.name.into(),
                phase.count.to_string(),
                digits(phase.per_second),
                in_flight,
                samples,
                p50,
                p90,
                p99,
                max,
            ]);
        }
        for phase in &self.phases {
            text += &format!("\n{}: {}", phase.name, printable(&phase.stopped));
            for (reason, count) in &phase.errors.0 {
                text += &format!("\n    {count} × {}", printable(reason));
            }
            if let Some(percent) = phase.cpu_percent {
                text += &format!("\n    bench itself used {percent:.0} % of a core");
            }
        }
        text
    }
}

/// A row of the table: the first column to the left, numbers to the right.
fn row(cells: [String; 9]) -> String {
    let [name, numbers @ ..] = cells;
    let numbers = numbers.map(|number| format!("{number:>11}")).concat();
    format!("{name:<9}{numbers}\n")
}

/// A number with three significant digits, but with all before the point, and at most three after it.
pub(super) fn digits(number: f64) -> String {
    match number {
        0.0 => "0".into(),
        ..1.0 => format!("{number:.3}"),
        ..10.0 => format!("{number:.2}"),
        ..100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_or_a_document() {
        let mut latencies = Latencies::new();
        for milliseconds in 1..=100 {
            latencies.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(latencies.count(), 100);
        assert!(
            latencies.quantile(0.5).abs_diff(Duration::from_millis(50)) < Duration::from_millis(1)
        );
        let mut errors = Errors::default();
        errors.add("full\u{1b}", 2);
        errors.add("nothing", 0);
        let mut report = Report {
            url: "ws://a/room".into(),
            sessions: 100,
            rooms: 10,
            lost: 0,
            phases: vec![
                Phase {
                    count: 100,
                    per_second: 1234.5,
                    cpu_percent: Some(88.0),
                    milliseconds: latencies.summary(),
                    errors,
                    ..Phase::new("joins", "all joined".into())
                },
                Phase {
                    in_flight: Some(64),
                    ..Phase::new("messages", "skipped".into())
                },
            ],
        };
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2].len(), lines[3].len());
        assert!(
            lines[3].starts_with("joins            100       1234 "),
            "{table}"
        );
        assert!(
            table.ends_with(
                "joins: all joined\n    2 × full\\u{1b}\n    bench itself used 88 % of a core\nmessages: skipped"
            ),
            "{table}"
        );
        let document: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(document["phases"][0]["errors"]["full\u{1b}"], 2);
        assert!(
            document["phases"][0]["milliseconds"]["p99"]
                .as_f64()
                .unwrap()
                > 98.0
        );
        assert_eq!(
            document["phases"][1]["milliseconds"],
            serde_json::Value::Null
        );
        assert_eq!(document["phases"][1]["inFlight"], 64);
        assert!(!report.has_failed());
        report.phases[1].missing = 1;
        assert!(report.has_failed());
        report.phases[1].missing = 0;
        report.lost = 100;
        assert!(report.has_failed());
    }

    #[test]
    fn few_samples_have_no_99th_percentile() {
        let mut latencies = Latencies::new();
        for _ in 0..99 {
            latencies.add(Duration::from_micros(123));
        }
        let times = latencies.summary().unwrap();
        assert_eq!((times.samples, times.p99), (99, None));
        latencies.add_missing(0, Duration::from_secs(5));
        assert!(latencies.summary().unwrap().max < 1.0);
        // Messages that are missing count as the longest latency.
        let longest = latencies.add_missing(2, Duration::from_secs(5));
        assert_eq!(longest, Duration::from_secs(5));
        let times = latencies.summary().unwrap();
        assert_eq!(times.samples, 101);
        assert!(times.p99.unwrap() > 4900.0 && times.p50 < 1.0);
        latencies.add(Duration::from_secs(9));
        assert!(latencies.add_missing(1, Duration::from_secs(5)) > Duration::from_secs(8));
    }

    #[test]
    fn small_numbers_have_three_digits() {
        let shown = [0.0, 0.0994, 0.5, 1.234, 56.78, 1234.5].map(digits);
        assert_eq!(shown, ["0", "0.099", "0.500", "1.23", "56.8", "1234"]);
    }

    #[test]
    fn reasons_are_bounded() {
        let mut errors = Errors::default();
        for number in 0..1000 {
            errors.add(format!("{number}"), 1);
        }
        errors.add("é".repeat(1000), 1);
        assert_eq!(errors.0.len(), MAX_REASONS + 1);
        assert_eq!(errors.0[OTHER], 1001 - MAX_REASONS as u64);
        let mut errors = Errors::default();
        errors.add("é".repeat(1000), 1);
        assert_eq!(errors.0["é".repeat(MAX_REASON_CHARS).as_str()], 1);
    }
}
