//! The manual pages and the shell completions are what the command line and the entity table say.
//!
//! They are committed, so that a package needs no generator; `LINKROUTERD_REFRESH=1 cargo test --test manual` writes
//! them anew.

mod page;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use linkrouterd::cli;
use linkrouterd::config::entity::{Handling, entities, group};

const REFRESH: &str = "LINKROUTERD_REFRESH";

const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "conf/completions/linkrouterd.bash"),
    (Shell::Fish, "conf/completions/linkrouterd.fish"),
    (Shell::Zsh, "conf/completions/_linkrouterd"),
];
const DAEMON_PAGE: &str = "docs/man/linkrouterd.8";
const FILE_PAGE: &str = "docs/man/linkrouterd.conf.5";

fn in_package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(in_package(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every generated file: where it is, and what it should hold.
fn generated() -> Vec<(&'static str, String)> {
    let mut files = vec![(DAEMON_PAGE, daemon_page()), (FILE_PAGE, file_page())];
    for (shell, path) in COMPLETIONS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut visible(cli::command()), "linkrouterd", &mut text);
        files.push((path, String::from_utf8(text).expect("UTF-8")));
    }
    files
}

/// linkrouterd(8): synopsis and options from the definition of the command line, between what people wrote.
fn daemon_page() -> String {
    let prose = read("docs/man/linkrouterd.8.md");
    let (description, rest) = prose
        .split_once("\n## ")
        .expect("a description, then further sections");
    let command = Man::new(cli::command());
    let mut options = Vec::new();
    command
        .render_synopsis_section(&mut options)
        .expect("written to memory");
    let synopsis = without_preamble(&options);
    options.clear();
    command
        .render_options_section(&mut options)
        .expect("written to memory");
    let options = without_preamble(&options);

    let name = head(
        "LINKROUTERD",
        "8",
        "linkrouterd",
        "link-routing AMQP 1.0 daemon, compatible with qdrouterd",
    );
    let description = page::of(description, &page::plain_table);
    let rest = page::of(&format!("## {rest}"), &page::plain_table);
    [
        name.render(),
        synopsis,
        without_preamble(description.render().as_bytes()),
        options,
        without_preamble(rest.render().as_bytes()),
    ]
    .concat()
}

/// linkrouterd.conf(5): the configuration reference, with what the entity table says of each attribute.
fn file_page() -> String {
    let mut page = head(
        "LINKROUTERD.CONF",
        "5",
        "linkrouterd.conf",
        "configuration file of linkrouterd(8)",
    );
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman("/etc/linkrouterd/linkrouterd.conf")]);
    page.control("SH", ["DESCRIPTION"]);
    let reference = page::of(&read("docs/configuration.md"), &settings::table);
    let end = page::of("## See also\n\n**linkrouterd**(8)\n", &page::plain_table);
    [
        page.render(),
        without_preamble(reference.render().as_bytes()),
        without_preamble(end.render().as_bytes()),
    ]
    .concat()
}

fn head(title: &str, section: &str, name: &str, purpose: &str) -> Roff {
    let mut page = Roff::new();
    // No date and no version: the pages change when what they say does.
    page.control(
        "TH",
        [title, section, "\"\"", "linkrouterd", "linkrouterd manual"],
    );
    // Option and attribute names stay in one piece.
    page.control("nr", ["HY", "0"]);
    page.control("ad", ["l"]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{name} - {purpose}"))]);
    page
}

/// A part of a page without the definitions that stand at the start of the whole.
fn without_preamble(text: &[u8]) -> String {
    let text = String::from_utf8(text.to_vec()).expect("UTF-8");
    let empty = Roff::new().render();
    text.strip_prefix(&empty)
        .map_or_else(|| text.clone(), str::to_owned)
}

/// The command without what it hides, which generators of completions would show.
fn visible(command: clap::Command) -> clap::Command {
    let shown = command.get_arguments().filter(|it| !it.is_hide_set()).cloned();
    clap::Command::new("linkrouterd")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(shown)
}

#[test]
fn the_manual_and_the_completions_are_up_to_date() {
    for (path, text) in generated() {
        let file = in_package(path);
        if std::env::var_os(REFRESH).is_some() {
            fs::write(&file, &text).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        if let Some((line, (found, wanted))) = (1..)
            .zip(
                found
                    .lines()
                    .map(Some)
                    .chain([None])
                    .zip(text.lines().map(Some).chain([None])),
            )
            .find(|(_, (found, wanted))| found != wanted)
        {
            panic!(
                "{path}:{line} is out of date; refresh it by `{REFRESH}=1 cargo test --test manual`\n\
                 found:  {found:?}\nwanted: {wanted:?}"
            );
        }
    }
}

#[test]
fn the_manual_has_every_option_and_every_attribute() {
    let text = words(&daemon_page());
    for option in cli::command().get_arguments() {
        let Some(long) = option.get_long() else { continue };
        assert_eq!(
            text.contains(&format!("--{long}")),
            !option.is_hide_set(),
            "--{long} in {DAEMON_PAGE}:\n{text}"
        );
    }
    let text = words(&file_page());
    let run = entities().iter().filter(|it| it.handling == Handling::Run);
    for entity in run.chain([group()]) {
        let heading = format!(".SS {}", entity.name);
        let section = text.lines().skip_while(|line| *line != heading).skip(1);
        let section: Vec<&str> = section.take_while(|line| !line.starts_with(".S")).collect();
        for attribute in entity.attributes {
            assert!(
                section
                    .iter()
                    .any(|line| line.split_whitespace().next() == Some(attribute.name)),
                "{} of {} in {FILE_PAGE}",
                attribute.name,
                entity.name
            );
        }
    }
}

/// A page without marks inside its lines.
fn words(page: &str) -> String {
    [r"\fB", r"\fI", r"\fR", r"\&"]
        .iter()
        .fold(page.replace(r"\-", "-"), |text, mark| text.replace(mark, ""))
}
