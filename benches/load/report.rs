//! The table, and the same as JSON.

use std::fmt::Write as _;

use super::rows::Measured;

const HEADINGS: [&str; 9] = [
    "row",
    "msg/s",
    "MiB/s",
    "CPU us/msg",
    "CPU share",
    "frames/record",
    "peak RSS MiB",
    "RSS/device KiB",
    "p50 / p99 us",
];

/// A table in Markdown, columns aligned.
pub(crate) fn table(rows: &[Measured]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths = [0; HEADINGS.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Writing to a string cannot fail.
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                text.push('|');
                text.push_str(&"-".repeat(width + 1));
                text.push(if column == 0 { '-' } else { ':' });
            }
            text.push_str("|\n");
        }
    }
    text
}

fn cells(row: &Measured) -> [String; HEADINGS.len()] {
    let number =
        |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
    [
        row.name.clone(),
        number(row.messages_per_second, 0),
        number(row.mebibytes_per_second, 1),
        number(row.cpu_micros_per_message, 2),
        row.cpu_share
            .map_or("-".into(), |share| format!("{:.0} %", share * 100.0)),
        number(row.frames_per_record, 1),
        number(row.peak_memory_kib.map(|kib| kib as f64 / 1024.0), 1),
        number(row.memory_per_device_kib, 1),
        match (row.p50, row.p99) {
            (Some(p50), Some(p99)) => format!("{} / {}", p50.as_micros(), p99.as_micros()),
            _ => "-".into(),
        },
    ]
}

/// One object a row; what does not apply is null.
pub(crate) fn json(rows: &[Measured]) -> String {
    let objects: Vec<String> = rows.iter().map(object).collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

fn object(row: &Measured) -> String {
    let number = |value: Option<f64>| value.map_or("null".into(), |value| format!("{value:.3}"));
    let micros = |value: Option<std::time::Duration>| number(value.map(|value| value.as_secs_f64() * 1e6));
    format!(
        "  {{\"row\": \"{}\", \"messages\": {}, \"messages_per_second\": {}, \"mebibytes_per_second\": {}, \
         \"cpu_micros_per_message\": {}, \"cpu_share\": {}, \"frames_per_record\": {}, \"peak_memory_kib\": {}, \
         \"memory_per_device_kib\": {}, \"p50_micros\": {}, \"p99_micros\": {}}}",
        row.name,
        row.messages,
        number(row.messages_per_second),
        number(row.mebibytes_per_second),
        number(row.cpu_micros_per_message),
        number(row.cpu_share),
        number(row.frames_per_record),
        row.peak_memory_kib.map_or("null".into(), |kib| kib.to_string()),
        number(row.memory_per_device_kib),
        micros(row.p50),
        micros(row.p99),
    )
}
