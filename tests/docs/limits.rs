//! The table of limits in `docs/reliability.md` and the code say the same: names and values, the conditions that devices see,
//! and tests that exist. No bound of the code is missing.

use std::collections::{BTreeMap, BTreeSet};

use super::{code_spans, files, read};

const PAGE: &str = "docs/reliability.md";
const TABLE: &str = "src/endpoint/limits.rs";
const ATTRIBUTES: &str = "src/config/table.rs";

/// Constants that have a limit's name and bound nothing that a peer can bring about.
const OTHERS: [(&str, &str); 15] = [
    // Fields and names.
    ("src/amqp/edit.rs", "MAX_MESSAGE_SIZE"),
    ("src/amqp/condition.rs", "RESOURCE_LIMIT_EXCEEDED"),
    ("src/amqp/condition.rs", "TRANSFER_LIMIT_EXCEEDED"),
    // What an operator writes.
    ("src/config/build/failover.rs", "MAX_URLS"),
    ("src/config/build/mod.rs", "MAX_ROUTER_ID"),
    ("src/config/build/mod.rs", "MAX_SESSIONS"),
    ("src/config/build/mod.rs", "MIN_MAX_FRAME_SIZE"),
    ("src/config/lexer.rs", "MAX_SYNTAX_ERRORS"),
    ("src/daemon/run.rs", "PASSWORD_INPUT_MAX"),
    // What is shown, and to whom.
    ("src/amqp/display.rs", "MAX_SHOWN_DEPTH"),
    ("src/daemon/detach.rs", "REPORT_MAX"),
    ("src/daemon/probe/examination.rs", "STEP_LIMIT"),
    ("src/daemon/probe/exchange.rs", "SHUTDOWN_LIMIT"),
    ("src/daemon/service.rs", "STATUS_MAX"),
    ("src/shard/tls/certificate.rs", "NAME_LIMIT"),
];

/// One row of the table.
struct Row {
    place: String,
    name: String,
    value: String,
    consequence: String,
    tests: String,
}

fn rows() -> Vec<Row> {
    let page = read(PAGE);
    let mut rows = Vec::new();
    let mut is_table = false;
    for (index, line) in page.lines().enumerate() {
        let cells: Vec<&str> = line.trim_matches('|').split("|").map(str::trim).collect();
        if line.starts_with("| Limit ") {
            is_table = true;
        } else if !line.starts_with('|') {
            is_table = false;
        } else if let ([name, value, consequence, tests], true) =
            (cells.as_slice(), is_table && !line.starts_with("|---"))
        {
            rows.push(Row {
                place: format!("{PAGE}:{}", index + 1),
                name: code_spans(name).next().unwrap_or_default().to_owned(),
                value: (*value).to_owned(),
                consequence: (*consequence).to_owned(),
                tests: (*tests).to_owned(),
            });
        } else if is_table && !line.starts_with("|---") {
            panic!("{PAGE}:{}: not four cells: {line}", index + 1);
        }
    }
    rows
}

/// All constants of a file, with the text of their values.
fn constants(file: &str) -> BTreeMap<String, String> {
    let source = read(file);
    let program = source.split("mod tests {").next().unwrap_or(&source);
    program
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once("const ")?.1.split_once(": ")?;
            let value = rest.split_once(" = ")?.1.strip_suffix(';')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// A number, a product, a shift or a time; a time in milliseconds.
fn evaluate(expression: &str) -> Option<u64> {
    let time = |prefix: &str| expression.strip_prefix(prefix)?.strip_suffix(')');
    if let Some(seconds) = time("Duration::from_secs(") {
        return Some(evaluate(seconds)? * 1000);
    }
    if let Some(milliseconds) = time("Duration::from_millis(") {
        return evaluate(milliseconds);
    }
    if let Some((value, places)) = expression.split_once(" << ") {
        return Some(evaluate(value)? << evaluate(places)?);
    }
    expression
        .split(" * ")
        .map(|factor| {
            let digits = factor.replace('_', "");
            match digits.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => digits.parse().ok(),
            }
        })
        .product()
}

/// A value as the page writes it; a time in milliseconds.
fn written(value: &str) -> Option<u64> {
    if value == "none" {
        return Some(0);
    }
    let (number, unit) = value.split_once(' ').unwrap_or((value, ""));
    let factor = match unit {
        "" | "ms" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "s" => 1000,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * factor)
}

/// The default of `section.attribute`.
fn default_of(attribute: &str) -> Option<u64> {
    let (section, name) = attribute.split_once('.')?;
    let source = read(ATTRIBUTES);
    let head = format!("const {}: &[Attribute] = &[", section.to_uppercase());
    let attributes = source.split_once(&head)?.1.split_once("\n];")?.0;
    let line = attributes
        .lines()
        .find(|line| line.contains(&format!("(\"{name}\", ")))?;
    let default = line.split('"').nth(3)?;
    let factor = if name.ends_with("Seconds") { 1000 } else { 1 };
    if default.is_empty() {
        return Some(0);
    }
    Some(default.parse::<u64>().ok()? * factor)
}

/// The file and the name of a constant.
fn constant(name: &str) -> (String, String) {
    match name.split_once(": ") {
        Some((file, name)) => (format!("src/{file}"), name.to_owned()),
        None => (TABLE.to_owned(), name.to_owned()),
    }
}

#[test]
fn every_value_of_the_table_is_that_of_the_code() {
    let mut faults = Vec::new();
    let rows = rows();
    assert!(rows.len() > 60, "only {} rows found", rows.len());
    for row in &rows {
        let is_attribute = row.name.contains('.') && !row.name.contains(".rs");
        let actual = if is_attribute {
            default_of(&row.name)
        } else {
            let (file, name) = constant(&row.name);
            constants(&file).get(&name).and_then(|value| evaluate(value))
        };
        if actual.is_none() || actual != written(&row.value) {
            faults.push(format!(
                "{}: {} is {actual:?}, not {}",
                row.place, row.name, row.value
            ));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn no_bound_of_the_code_is_missing_in_the_table() {
    let listed: BTreeSet<(String, String)> = rows().iter().map(|row| constant(&row.name)).collect();
    let others: BTreeSet<(String, String)> = OTHERS
        .iter()
        .map(|&(file, name)| (file.to_owned(), name.to_owned()))
        .collect();
    let is_limit = |name: &str| {
        ["MAX", "LIMIT", "TIMEOUT", "BYTES"]
            .iter()
            .any(|word| name.split('_').any(|part| part == *word))
    };
    let mut bounds = BTreeSet::new();
    for file in files("src", "rs") {
        for name in constants(&file).into_keys() {
            if (file == TABLE || is_limit(&name)) && name != "MAX_RUN" {
                bounds.insert((file.clone(), name));
            }
        }
    }
    let missing: Vec<_> = bounds
        .iter()
        .filter(|bound| !listed.contains(bound) && !others.contains(bound))
        .collect();
    assert!(missing.is_empty(), "not in {PAGE}: {missing:#?}");
    let stale: Vec<_> = others
        .iter()
        .filter(|bound| !bounds.contains(bound) || listed.contains(bound))
        .collect();
    assert!(stale.is_empty(), "for nothing among the others: {stale:#?}");
}

#[test]
fn every_limit_has_its_tests_and_its_condition() {
    let sources: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|folder| files(folder, "rs"))
        .map(|file| read(&file))
        .collect();
    let is_test = |name: &str| {
        sources
            .iter()
            .any(|source| source.contains(&format!("fn {name}()")))
    };
    let conditions = read("src/amqp/condition.rs");
    let mut faults = Vec::new();
    for row in rows() {
        let names: Vec<&str> = code_spans(&row.tests).collect();
        if names.is_empty() && !row.tests.starts_with("none: ") {
            faults.push(format!("{}: no test", row.place));
        }
        let unknown = names.into_iter().filter(|name| !is_test(name));
        faults.extend(unknown.map(|name| format!("{}: no test {name}", row.place)));
        let wrong = code_spans(&row.consequence)
            .filter(|span| span.starts_with("amqp:") && !conditions.contains(&format!("\"{span}\"")));
        faults.extend(wrong.map(|span| format!("{}: no condition {span}", row.place)));
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn values_are_read_as_they_are_written() {
    for (expression, value) in [
        ("4095", 4095),
        ("32_767", 32767),
        ("0x7fff_ffff", 0x7fff_ffff),
        ("4 * 1024 * 1024", 4 << 20),
        ("1 << 20", 1 << 20),
        ("Duration::from_secs(25)", 25_000),
        ("Duration::from_millis(100)", 100),
    ] {
        assert_eq!(evaluate(expression), Some(value), "{expression}");
    }
    assert_eq!(evaluate("OTHER"), None);
    assert_eq!((written("4 MiB"), written("10 s")), (Some(4 << 20), Some(10_000)));
    assert_eq!((written("4 miles"), written("")), (None, None));
}
