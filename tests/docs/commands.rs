//! Every command block of the documents says, in a comment above it, who runs it:
//!
//! - `<!-- run here -->`: [`what_can_be_run_here_is_run`], as it stands, with the program under test, and the files that a
//!   package installs in a scratch folder. Of a `console` block the output is compared, too; a line `...` stands for any lines, `…` for any text.
//! - `<!-- run by FILE: NAME, NAME -->`: functions of that file. Of a shell script, one must have a line with all words of
//!   the command, in that order.
//! - `<!-- needs: WHAT -->`: nobody; the command is then in the list of `docs/conformance.md`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{code_spans, documents, files, read, root};

/// Languages of fenced blocks that are no commands.
const OTHERS: [&str; 7] = ["conf", "text", "json", "ini", "dockerfile", "rust", "python"];
/// How long the commands of one block may take.
const SECONDS: &str = "60";
/// What the machine of a reader has; here, it is in a scratch folder.
const INSTALLED: [&str; 3] = [
    "/etc/linkrouterd",
    "/usr/share/doc/linkrouterd",
    "/etc/qpid-dispatch",
];
/// The list of commands that nobody runs.
const LIST: &str = "docs/conformance.md";

#[derive(Debug)]
struct Block {
    place: String,
    /// Of its fence, as in a list; it is no part of the lines.
    indent: usize,
    language: String,
    said: String,
    lines: Vec<String>,
}

impl Block {
    fn of(document: &str) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        let mut above = String::new();
        for (index, line) in read(document).lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(language), None) => {
                    open = Some(Block {
                        place: format!("{document}:{}", index + 1),
                        indent: line.len() - line.trim_start().len(),
                        language: language.to_owned(),
                        said: std::mem::take(&mut above),
                        lines: Vec::new(),
                    });
                }
                (None, Some(block)) => {
                    let indent = line.len() - line.trim_start().len();
                    block.lines.push(line[indent.min(block.indent)..].to_owned());
                }
                (None, None) => above = comment(line).unwrap_or_default().to_owned(),
            }
        }
        assert!(open.is_none(), "{document}: a block without an end");
        blocks
    }

    fn is_console(&self) -> bool {
        self.language == "console"
    }

    /// What is typed, without the comments behind it.
    fn commands(&self) -> Vec<String> {
        let typed = self.lines.iter().filter_map(|line| match self.is_console() {
            true => line.strip_prefix("$ "),
            false => Some(line.trim_start()).filter(|line| !line.is_empty() && !line.starts_with('#')),
        });
        typed
            .map(|line| line.split("  #").next().unwrap_or(line).trim().to_owned())
            .collect()
    }

    /// What is to be seen after that.
    fn output(&self) -> Vec<&str> {
        let lines = self.lines.iter().map(String::as_str);
        lines.filter(|line| !line.starts_with("$ ")).collect()
    }

    fn runner(&self) -> Option<Runner<'_>> {
        if self.said == "run here" {
            return Some(Runner::Here);
        }
        if let Some(what) = self.said.strip_prefix("needs: ") {
            return Some(Runner::Nobody(what));
        }
        let (file, names) = self.said.strip_prefix("run by ")?.split_once(": ")?;
        Some(Runner::Functions(file, names.split(", ").collect()))
    }
}

enum Runner<'a> {
    Here,
    Functions(&'a str, Vec<&'a str>),
    Nobody(&'a str),
}

fn comment(line: &str) -> Option<&str> {
    line.trim().strip_prefix("<!-- ")?.strip_suffix(" -->")
}

fn command_blocks() -> Vec<Block> {
    let blocks = documents().into_iter().flat_map(|document| Block::of(&document));
    blocks
        .filter(|block| !OTHERS.contains(&block.language.as_str()))
        .collect()
}

#[test]
fn every_command_block_says_who_runs_it() {
    let mut faults = Vec::new();
    let blocks = command_blocks();
    assert!(blocks.len() > 8, "only {} blocks found", blocks.len());
    for block in &blocks {
        if block.language != "sh" && block.language != "console" {
            faults.push(format!("{}: unknown language '{}'", block.place, block.language));
        }
        match block.runner() {
            None => faults.push(format!("{}: no word on who runs it", block.place)),
            Some(Runner::Functions(file, names)) => {
                faults.extend(faults_of_functions(block, file, &names));
            }
            Some(Runner::Here | Runner::Nobody(_)) => {}
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn faults_of_functions(block: &Block, file: &str, names: &[&str]) -> Vec<String> {
    if !root().join(file).is_file() {
        return vec![format!("{}: there is no {file}", block.place)];
    }
    let source = read(file);
    let mut bodies = Vec::new();
    let mut faults = Vec::new();
    let is_script = !file.ends_with(".rs") && !file.ends_with(".py");
    for name in names {
        let marks = [
            format!("\n{name}() {{\n"),
            format!("fn {name}("),
            format!("def {name}("),
        ];
        match marks.iter().find_map(|mark| source.split_once(mark.as_str())) {
            None => faults.push(format!("{}: {file} has no {name}", block.place)),
            Some((_, rest)) => bodies.push(rest.split("\n}\n").next().unwrap_or(rest)),
        }
    }
    if is_script {
        let runs = |command: &str| {
            bodies
                .iter()
                .any(|body| body.lines().any(|line| has_words(line, command)))
        };
        let missing = block.commands().into_iter().filter(|command| !runs(command));
        faults.extend(missing.map(|command| format!("{}: {file} does not run `{command}`", block.place)));
    }
    faults
}

/// Whether the words of the command are all in the line, in this order.
fn has_words(line: &str, command: &str) -> bool {
    let mut words = line.split_whitespace();
    let wanted = command.split_whitespace().filter(|word| *word != "sudo");
    wanted.into_iter().all(|wanted| words.any(|word| word == wanted))
}

#[test]
fn words_are_found_in_their_order_only() {
    assert!(has_words(
        "    cargo test --locked --test x",
        "cargo test --test x"
    ));
    assert!(has_words(
        "apt-get install -qy ./a.deb",
        "sudo apt-get install ./a.deb"
    ));
    assert!(!has_words("cargo test --locked", "cargo test --test x"));
    assert!(!has_words("b a", "a b"));
}

#[test]
fn what_nobody_runs_is_listed() {
    let mut unlisted = BTreeSet::new();
    for block in command_blocks() {
        if let Some(Runner::Nobody(what)) = block.runner() {
            let commands = block.commands().into_iter();
            unlisted.extend(commands.map(|command| format!("| `{command}` | {what} |")));
        }
    }
    let text = read(LIST);
    let table = text.split("| Command | Needs |\n|---|---|\n").nth(1);
    let rows = table
        .unwrap_or_default()
        .lines()
        .take_while(|line| line.starts_with('|'));
    let listed: BTreeSet<String> = rows.map(str::to_owned).collect();
    let missing: Vec<&String> = unlisted.difference(&listed).collect();
    let stale: Vec<&String> = listed.difference(&unlisted).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "\n{LIST} lacks {missing:#?}\nand lists for nothing {stale:#?}\n"
    );
}

#[test]
fn what_can_be_run_here_is_run() {
    let mut faults = Vec::new();
    let mut count = 0;
    for document in documents() {
        let blocks = Block::of(&document);
        let here = blocks
            .iter()
            .filter(|block| matches!(block.runner(), Some(Runner::Here)));
        let here: Vec<&Block> = here.collect();
        count += here.len();
        if here.is_empty() {
            continue;
        }
        let scratch = tempfile::TempDir::with_prefix("linkrouterd-docs-").expect("a folder");
        furnish(scratch.path());
        faults.extend(
            here.into_iter()
                .filter_map(|block| run(block, scratch.path()).err()),
        );
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    assert!(count > 2, "only {count} blocks were run");
}

/// A folder to run commands in: with what an installed package has, the configuration of a `qdrouterd` of 2016, the
/// program, and a `sudo` that does without.
fn furnish(scratch: &Path) {
    let [etc, doc, former] = INSTALLED.map(|path| scratch.join(path.trim_start_matches('/')));
    let [bin, examples] = [scratch.join("bin"), doc.join("examples")];
    for folder in [&bin, &etc, &examples, &former] {
        fs::create_dir_all(folder).expect("a folder");
    }
    for example in files("conf", "conf").iter().chain(&files("docs", "py")) {
        let name = Path::new(example).file_name().expect("a name");
        fs::copy(root().join(example), examples.join(name)).expect("a copy");
    }
    let articles = read("tests/config/ex06_iothub.conf").replace("<iotHub>", "my-hub");
    fs::write(former.join("qdrouterd.conf"), articles).expect("a file");
    fs::write(scratch.join("password"), "of somebody").expect("a file");
    let config = etc.join("linkrouterd.conf");
    fs::copy(root().join("conf/linkrouterd.conf"), &config).expect("a copy");
    let program = env!("CARGO_BIN_EXE_linkrouterd");
    for (name, body) in [
        (
            "linkrouterd",
            format!("exec {program} --config {} \"$@\"", config.display()),
        ),
        ("sudo", "exec \"$@\"".to_owned()),
    ] {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
}

fn run(block: &Block, scratch: &Path) -> Result<(), String> {
    let base = scratch.display().to_string();
    let commands = INSTALLED
        .iter()
        .fold(block.commands().join("\n"), |commands, path| {
            commands.replace(path, &format!("{base}{path}"))
        });
    // In a console a command may fail: its output says so, and is compared.
    let options = if block.is_console() { "-c" } else { "-euc" };
    let output = Command::new("timeout")
        .args([SECONDS, "bash", options])
        .arg(format!("exec 2>&1\n{commands}"))
        .current_dir(scratch)
        .env("PATH", format!("{base}/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", block.place))?;
    let text = String::from_utf8_lossy(&output.stdout).replace(&base, "");
    if block.is_console() {
        let lines: Vec<&str> = text.lines().collect();
        return match shows(&block.output(), &lines) {
            true => Ok(()),
            false => Err(format!("{}: there is to be seen:\n{text}", block.place)),
        };
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}:\n{text}", block.place, output.status)),
    }
}

/// Whether the lines are what a document shows: `...` stands for any lines, `…` for any text within one.
fn shows(shown: &[&str], lines: &[&str]) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((&"...", rest)), first) => {
            shows(rest, lines) || first.is_some_and(|(_, behind)| shows(shown, behind))
        }
        (Some((pattern, rest)), Some((line, behind))) => is_like(line, pattern) && shows(rest, behind),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn is_like(line: &str, pattern: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('…') else {
        return line == pattern;
    };
    let Some(rest) = line.strip_prefix(head) else {
        return false;
    };
    rest.char_indices()
        .map(|(at, _)| at)
        .chain([rest.len()])
        .any(|at| is_like(&rest[at..], tail))
}

#[test]
fn what_is_shown_is_compared() {
    assert!(shows(&["a", "...", "d"], &["a", "b", "c", "d"]));
    assert!(shows(&["a", "...", "d"], &["a", "d"]));
    assert!(shows(&["x … y …"], &["x 1 y 2"]));
    assert!(!shows(&["x … y"], &["x 1 z"]));
    assert!(!shows(&["a"], &["a", "b"]));
    assert!(!shows(&["a", "b"], &["a"]));
}

/// Options that a document names in passing are the program's.
#[test]
fn every_option_in_the_text_is_one() {
    let help = Command::new(env!("CARGO_BIN_EXE_linkrouterd"))
        .arg("--help")
        .output()
        .expect("the program");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let options: BTreeSet<&str> = help
        .split([' ', ',', '\n'])
        .filter(|word| word.starts_with("--"))
        .collect();
    let mut unknown = Vec::new();
    for document in documents() {
        let text = read(&document);
        for span in code_spans(&text).filter(|span| span.starts_with("linkrouterd -")) {
            let words = span.split_whitespace().filter(|word| word.starts_with("--"));
            // qdrouterd's `--conf`, an abbreviation that everybody uses.
            let bad = words.filter(|word| !options.contains(word) && *word != "--conf");
            unknown.extend(bad.map(|word| format!("{document}: `{span}`: no option {word}")));
        }
    }
    assert!(unknown.is_empty(), "\n{}\n", unknown.join("\n"));
}
