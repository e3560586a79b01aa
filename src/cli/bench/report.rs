//! What was measured, as a table or as one JSON document.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::printable::printable;

/// The longest latency that is told apart, in microseconds, and how many digits are.
const MAX_MICROSECONDS: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

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
            p99: quantile(0.99),
            max: milliseconds(self.0.max()),
        })
    }
}

/// The latencies that are shown, in milliseconds.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Milliseconds {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// What was measured in one phase.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Phase {
    pub(super) name: &'static str,
    /// How many sessions have joined, or messages have arrived.
    pub(super) count: u64,
    pub(super) per_second: f64,
    /// How many messages were on their way at once, at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_flight: Option<usize>,
    pub(super) milliseconds: Option<Milliseconds>,
    /// How often what has failed.
    pub(super) errors: Errors,
    /// Why the phase has ended.
    pub(super) stopped: String,
}

/// How often what has failed.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub(super) struct Errors(BTreeMap<String, u64>);

impl Errors {
    pub(super) fn add(&mut self, reason: impl Into<String>, count: u64) {
        if count > 0 {
            *self.0.entry(reason.into()).or_default() += count;
        }
    }
}

/// What was measured.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) url: String,
    pub(super) sessions: usize,
    pub(super) rooms: usize,
    pub(super) phases: Vec<Phase>,
}

impl Report {
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
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "max ms",
        ]
        .map(String::from));
        for phase in &self.phases {
            let shown = phase
                .milliseconds
                .map(|it| [it.p50, it.p90, it.p99, it.max]);
            let [p50, p90, p99, max] = match shown {
                Some(times) => times.map(|time| format!("{time:.1}")),
                None => [const { String::new() }; 4],
            };
            let in_flight = phase.in_flight.map(|it| it.to_string()).unwrap_or_default();
            let rate = format!("{:.0}", phase.per_second);
            text += &row([
                phase.name.into(),
                phase.count.to_string(),
                rate,
                in_flight,
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
        }
        text
    }
}

/// A row of the table: the first column to the left, numbers to the right.
fn row(cells: [String; 8]) -> String {
    let [name, numbers @ ..] = cells;
    let numbers = numbers.map(|number| format!("{number:>11}")).concat();
    format!("{name:<9}{numbers}\n")
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
        let report = Report {
            url: "ws://a/room".into(),
            sessions: 100,
            rooms: 10,
            phases: vec![
                Phase {
                    name: "joins",
                    count: 100,
                    per_second: 1234.5,
                    in_flight: None,
                    milliseconds: latencies.summary(),
                    errors,
                    stopped: "all joined".into(),
                },
                Phase {
                    name: "messages",
                    count: 0,
                    per_second: 0.0,
                    in_flight: Some(64),
                    milliseconds: Latencies::new().summary(),
                    errors: Errors::default(),
                    stopped: "skipped".into(),
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
            table.ends_with("joins: all joined\n    2 × full\\u{1b}\nmessages: skipped"),
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
    }
}
