//! The results, as a Markdown table and as a chart (SVG).

use std::{
    fmt::{self, Display, Write},
    time::Duration,
};

use crate::servers::Kind;

/// The unit of a figure. Less is better in every unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds of CPU time for each message, delivery or session.
    Micros,
    /// Seconds of CPU time.
    Seconds,
    /// Milliseconds of CPU time per minute.
    MillisPerMinute,
    /// Kilobytes (1,000 bytes) of memory for each session.
    Kilobytes,
    /// Microseconds of elapsed time.
    Latency,
    /// A part of the CPU time.
    Percent,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Micros | Unit::Latency => "µs",
            Unit::Seconds => "s",
            Unit::MillisPerMinute => "ms/min",
            Unit::Kilobytes => "KB",
            Unit::Percent => "%",
        }
    }
}

/// The result of one server for one workload in one run.
#[derive(Debug)]
pub struct Figure {
    label: String,
    unit: Unit,
    value: f64,
}

impl Figure {
    pub fn new(label: impl Into<String>, unit: Unit, value: f64) -> Figure {
        Figure {
            label: label.into(),
            unit,
            value,
        }
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} {}",
            self.label,
            digits(self.value),
            self.unit.name()
        )
    }
}

/// All results.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// The results of one workload.
struct Row {
    label: String,
    unit: Unit,
    /// The result of each run, in the order of the runs.
    cells: Vec<(Kind, f64)>,
}

impl Report {
    /// Adds a figure of a server to the row with the figure's label.
    pub fn add(&mut self, kind: Kind, figure: Figure) {
        let Figure { label, unit, value } = figure;
        if !self.rows.iter().any(|row| row.label == label) {
            let (label, cells) = (label.clone(), Vec::new());
            self.rows.push(Row { label, unit, cells });
        }
        let row = self.rows.iter_mut().find(|row| row.label == label);
        row.expect("it is there now").cells.push((kind, value));
    }

    /// The table. A cell has the median of the figures; in parentheses the median of their ratios to
    /// anteroom's figures in the same round; and, if there are several figures, half the distance between
    /// the least and the greatest.
    pub fn table(&self) -> String {
        let mut table = "| less is better |".to_owned();
        for kind in Kind::ALL {
            write!(table, " {} |", kind.name()).unwrap();
        }
        table += "\n| --- |";
        table += &" --- |".repeat(Kind::ALL.len());
        for row in &self.rows {
            write!(table, "\n| {}, {} |", row.label, row.unit.name()).unwrap();
            for kind in Kind::ALL {
                let cell = row.median(kind).map(|median| {
                    let ratio = match row.ratio(kind) {
                        Some(ratio) if kind != Kind::Anteroom && row.unit != Unit::Percent => {
                            format!(" ({})", digits(ratio))
                        }
                        _ => String::new(),
                    };
                    let spread = match row.spread(kind) {
                        Some(spread) => format!(" ±{:.0} %", spread * 100.0),
                        None => String::new(),
                    };
                    digits(median) + &ratio + &spread
                });
                write!(table, " {} |", cell.as_deref().unwrap_or("–")).unwrap();
            }
        }
        table
    }

    /// The chart: a panel for each of these rows, with a bar for each server.
    pub fn chart(&self, labels: &[&str]) -> String {
        const PANEL: (usize, usize) = (420, 180);
        const MARGIN: usize = 20;
        const NAME: usize = 90;
        const BAR: usize = 210;
        const STEP: usize = 22;
        let rows = labels
            .iter()
            .filter_map(|label| self.rows.iter().find(|row| row.label == *label));
        let rows: Vec<&Row> = rows.collect();
        let (width, height) = (2 * PANEL.0, rows.len().div_ceil(2) * PANEL.1 + MARGIN);
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="13" fill="#1f2933">
<rect width="{width}" height="{height}" rx="8" fill="#fff"/>
"##
        );
        for (index, row) in rows.iter().enumerate() {
            let (x, y) = (
                index % 2 * PANEL.0 + MARGIN,
                index / 2 * PANEL.1 + MARGIN + 12,
            );
            let label = format!("{}, {}", row.label, row.unit.name());
            writeln!(
                svg,
                r#"<text x="{x}" y="{y}" font-weight="600">{label}</text>"#
            )
            .unwrap();
            let medians: Vec<(Kind, f64)> = Kind::SERVERS
                .iter()
                .filter_map(|&kind| Some((kind, row.median(kind)?)))
                .collect();
            let most = medians.iter().map(|median| median.1).fold(0.0, f64::max);
            for (place, (kind, median)) in medians.into_iter().enumerate() {
                let y = y + 20 + place * STEP;
                let length = (median / most * BAR as f64).max(1.0);
                let color = if kind == Kind::Anteroom {
                    "#1d4ed8"
                } else {
                    "#cbd5e1"
                };
                let (bar, end) = (x + NAME, (x + NAME) as f64 + length + 6.0);
                writeln!(
                    svg,
                    r##"<text x="{x}" y="{y}">{}</text><rect x="{bar}" y="{}" width="{length:.1}" height="14" rx="2" fill="{color}"/><text x="{end:.1}" y="{y}">{}</text>"##,
                    kind.name(),
                    y - 11,
                    digits(median),
                )
                .unwrap();
            }
        }
        svg + "</svg>\n"
    }
}

impl Row {
    /// The figures of a server.
    fn figures(&self, kind: Kind) -> impl Iterator<Item = f64> {
        let own = self.cells.iter().filter(move |cell| cell.0 == kind);
        own.map(|cell| cell.1)
    }

    fn median(&self, kind: Kind) -> Option<f64> {
        median(self.figures(kind))
    }

    /// The median of the ratios to anteroom's figures. Both servers ran in the same round, one after the
    /// other, so whatever slowed the machine mostly slowed both.
    fn ratio(&self, kind: Kind) -> Option<f64> {
        let rounds = self.figures(kind).zip(self.figures(Kind::Anteroom));
        median(rounds.map(|(figure, ours)| figure / ours))
    }

    /// Half the distance between the least and the greatest figure, as a part of the median; `None` if
    /// there is only one figure.
    fn spread(&self, kind: Kind) -> Option<f64> {
        let (least, greatest) = (
            self.figures(kind).reduce(f64::min)?,
            self.figures(kind).reduce(f64::max)?,
        );
        let several = self.figures(kind).nth(1).is_some();
        several.then_some((greatest - least) / 2.0 / self.median(kind)?)
    }
}

/// Figures of several runs, by row and column.
pub struct Table<const COLUMNS: usize> {
    rows: Vec<(String, [Vec<f64>; COLUMNS])>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub fn new() -> Self {
        Table { rows: Vec::new() }
    }

    pub fn add(&mut self, column: usize, label: &str, figure: f64) {
        eprintln!("{column} {label}: {}", digits(figure));
        if !self.rows.iter().any(|row| row.0 == label) {
            self.rows
                .push((label.to_owned(), [const { Vec::new() }; COLUMNS]));
        }
        let row = self.rows.iter_mut().find(|row| row.0 == label);
        row.expect("it is there now").1[column].push(figure);
    }

    /// Prints the medians; if `ratios`, in parentheses also those of the ratios to the first column in the same round,
    /// unless the figures there are zero.
    pub fn print(&self, heading: &str, ratios: bool) {
        println!("| {heading} |\n|{}", " --- |".repeat(COLUMNS + 1));
        for (label, columns) in &self.rows {
            let cells = columns.iter().enumerate().map(|(column, figures)| {
                let Some(figure) = median(figures.iter().copied()).map(digits) else {
                    return " – |".to_owned();
                };
                let rounds = figures.iter().zip(&columns[0]);
                match median(rounds.map(|(figure, first)| figure / first)) {
                    Some(ratio) if ratios && column > 0 && ratio.is_finite() => {
                        format!(" {figure} ({}) |", digits(ratio))
                    }
                    _ => format!(" {figure} |"),
                }
            });
            println!("| {label} |{}", cells.collect::<String>());
        }
        println!();
    }
}

/// The median; `None` if there are no figures.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

/// The latency that this part of the sorted latencies does not exceed.
pub fn percentile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// A figure with three significant digits.
pub fn digits(figure: f64) -> String {
    match figure {
        ..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}
