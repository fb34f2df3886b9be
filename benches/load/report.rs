//! The tables, and the same as JSON.

use std::fmt::Write as _;

/// The contender that the others are compared with.
pub(crate) const OURS: &str = "linkrouterd";
/// The one without a router, whose latency is what the sockets and the peers take.
pub(crate) const DIRECT: &str = "direct";

/// What a row came to, once. Absent: does not apply, or cannot be measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) messages_per_second: Option<f64>,
    pub(crate) mebibytes_per_second: Option<f64>,
    pub(crate) cpu_micros_per_message: Option<f64>,
    pub(crate) cpu_percent: Option<f64>,
    pub(crate) frames_per_record: Option<f64>,
    pub(crate) peak_memory_mib: Option<f64>,
    pub(crate) memory_per_device_kib: Option<f64>,
    pub(crate) start_millis: Option<f64>,
    pub(crate) p50_micros: Option<f64>,
    pub(crate) p99_micros: Option<f64>,
    pub(crate) p999_micros: Option<f64>,
    /// The 99th percentile of the slowest device, by that of the median one.
    pub(crate) unfairness: Option<f64>,
    /// The cipher suites of the connections to the hub.
    pub(crate) ciphers: Vec<String>,
}

/// One column of the table.
struct Column {
    heading: &'static str,
    /// Its name in JSON.
    key: &'static str,
    digits: usize,
    of: fn(&Figures) -> Option<f64>,
}

const CPU: Column = column("CPU us/msg", "cpu_micros_per_message", 2, |it| {
    it.cpu_micros_per_message
});
const MEMORY: Column = column("RSS/device KiB", "memory_per_device_kib", 1, |it| {
    it.memory_per_device_kib
});
const P50: Column = column("p50 us", "p50_micros", 0, |it| it.p50_micros);

const COLUMNS: [Column; 12] = [
    column("msg/s", "messages_per_second", 0, |it| it.messages_per_second),
    column("MiB/s", "mebibytes_per_second", 1, |it| it.mebibytes_per_second),
    CPU,
    column("CPU %", "cpu_percent", 0, |it| it.cpu_percent),
    column("frames/record", "frames_per_record", 1, |it| it.frames_per_record),
    column("peak RSS MiB", "peak_memory_mib", 1, |it| it.peak_memory_mib),
    MEMORY,
    column("start ms", "start_millis", 1, |it| it.start_millis),
    P50,
    column("p99 us", "p99_micros", 0, |it| it.p99_micros),
    column("p99.9 us", "p999_micros", 0, |it| it.p999_micros),
    column("unfairness", "unfairness", 2, |it| it.unfairness),
];

/// What contenders are compared by, in rows that have it.
const COMPARED: [Column; 3] = [CPU, MEMORY, P50];

const fn column(
    heading: &'static str,
    key: &'static str,
    digits: usize,
    of: fn(&Figures) -> Option<f64>,
) -> Column {
    Column {
        heading,
        key,
        digits,
        of,
    }
}

/// A row with one contender, measured in several rounds.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) row: String,
    pub(crate) contender: String,
    pub(crate) rounds: Vec<Figures>,
}

impl Series {
    fn median(&self, column: &Column) -> Option<f64> {
        median(self.rounds.iter().filter_map(column.of).collect())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// All figures: medians of the rounds.
pub(crate) fn table(all: &[Series]) -> String {
    let mut lines = vec![vec!["row".to_owned(), "router".to_owned()]];
    lines[0].extend(COLUMNS.iter().map(|column| column.heading.to_owned()));
    for series in all {
        let mut line = vec![series.row.clone(), series.contender.clone()];
        line.extend(
            COLUMNS
                .iter()
                .map(|column| number(series.median(column), column.digits)),
        );
        lines.push(line);
    }
    aligned(&lines, 2)
}

/// Ours by each of the others: the median of the rounds' ratios, and the least and the most if there are several.
pub(crate) fn ratios(all: &[Series]) -> String {
    let others = contenders(all);
    let mut lines = vec![vec!["row".to_owned(), "by".to_owned(), OURS.to_owned()]];
    for other in &others {
        lines[0].extend([(*other).to_owned(), format!("ours / {other}")]);
    }
    for ours in all.iter().filter(|series| series.contender == OURS) {
        for column in &COMPARED {
            let Some(value) = ours.median(column) else {
                continue;
            };
            let mut line = vec![ours.row.clone(), column.heading.to_owned()];
            line.push(number(Some(value), column.digits));
            let mut is_compared = false;
            for other in &others {
                let series = find(all, &ours.row, other);
                let value = series.and_then(|series| series.median(column));
                is_compared |= value.is_some();
                line.push(number(value, column.digits));
                line.push(series.map_or_else(|| "-".into(), |series| ratio(ours, series, column)));
            }
            if is_compared {
                lines.push(line);
            }
        }
    }
    if lines.len() == 1 {
        return String::new();
    }
    aligned(&lines, 2)
}

/// What routers add to the median round trip, where that without one was measured.
pub(crate) fn added(all: &[Series]) -> String {
    let mut text = String::new();
    for series in all.iter().filter(|series| series.contender != DIRECT) {
        let direct = find(all, &series.row, DIRECT).and_then(|direct| direct.median(&P50));
        if let (Some(direct), Some(median)) = (direct, series.median(&P50)) {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{}: {} adds {:.0} us to the p50 of {direct:.0} us without a router",
                series.row,
                series.contender,
                median - direct
            );
        }
    }
    text
}

fn contenders(all: &[Series]) -> Vec<&str> {
    let mut names = Vec::new();
    for series in all {
        if series.contender != OURS && !names.contains(&series.contender.as_str()) {
            names.push(series.contender.as_str());
        }
    }
    names
}

fn find<'a>(all: &'a [Series], row: &str, contender: &str) -> Option<&'a Series> {
    all.iter()
        .find(|series| series.row == row && series.contender == contender)
}

fn ratio(ours: &Series, other: &Series, column: &Column) -> String {
    let mut ratios: Vec<f64> = ours
        .rounds
        .iter()
        .zip(&other.rounds)
        .filter_map(|(ours, other)| Some((column.of)(ours)? / (column.of)(other)?))
        .collect();
    ratios.sort_by(f64::total_cmp);
    match (ratios.first(), ratios.last(), median(ratios.clone())) {
        (Some(least), Some(most), Some(median)) if ratios.len() > 1 => {
            format!("{median:.2} ({least:.2} to {most:.2})")
        }
        (.., Some(median)) => format!("{median:.2}"),
        _ => "-".into(),
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// A table in Markdown; the first columns are text.
fn aligned(lines: &[Vec<String>], text_columns: usize) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Writing to a string cannot fail.
            let _ = if column < text_columns {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                text.push('|');
                text.push_str(&"-".repeat(width + 1));
                text.push(if column < text_columns { '-' } else { ':' });
            }
            text.push_str("|\n");
        }
    }
    text
}

/// One object for each row and contender: the median of each figure, null if it does not apply, and that of every round.
pub(crate) fn json(all: &[Series]) -> String {
    let objects: Vec<serde_json::Value> = all
        .iter()
        .map(|series| {
            let mut object = object(|column| series.median(column));
            object.insert("row".into(), series.row.clone().into());
            object.insert("router".into(), series.contender.clone().into());
            let ciphers = series.rounds.last().map(|round| round.ciphers.clone());
            object.insert("ciphers".into(), ciphers.into());
            let rounds = series.rounds.iter().map(object_of).collect::<Vec<_>>();
            object.insert("rounds".into(), rounds.into());
            object.into()
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(objects))
}

fn object_of(round: &Figures) -> serde_json::Value {
    object(|column| (column.of)(round)).into()
}

fn object(value: impl Fn(&Column) -> Option<f64>) -> serde_json::Map<String, serde_json::Value> {
    COLUMNS
        .iter()
        .map(|column| (column.key.to_owned(), value(column).into()))
        .collect()
}
