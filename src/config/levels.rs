//! The `enable` attribute of a log section.

use super::model::{LevelSet, LogLevel};
use super::names::{quoted, suggestion};

/// Reads `info+`, `trace debug`, `i+, err`: items separated by blank, comma, colon or semicolon, each a level or a
/// level with `+`, or `none`, or `default`. Any case, and abbreviated as far as one likes: the first word of qdrouterd's
/// list that starts so is meant. `None`: as module `DEFAULT`.
pub(super) fn read(text: &str) -> Result<Option<LevelSet>, String> {
    let mut levels = LevelSet::NONE;
    let mut is_default = false;
    for item in text
        .split([' ', '\t', ',', ':', ';'])
        .filter(|item| !item.is_empty())
    {
        let (word, and_above) = item.strip_suffix('+').map_or((item, false), |word| (word, true));
        match meant(word).ok_or_else(|| wrong(item))? {
            Word::Default => is_default = true,
            Word::None => {}
            Word::Level(level) if and_above => levels = levels.union(LevelSet::at_least(level)),
            Word::Level(level) => levels = levels.union(LevelSet::only(level)),
        }
    }
    Ok((!is_default).then_some(levels))
}

enum Word {
    Default,
    None,
    Level(LogLevel),
}

fn meant(word: &str) -> Option<Word> {
    let starts = |name: &str| {
        name.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    if word.is_empty() {
        None
    } else if starts("default") {
        Some(Word::Default)
    } else if starts("none") {
        Some(Word::None)
    } else {
        LogLevel::ALL
            .into_iter()
            .find(|level| starts(level.as_str()))
            .map(Word::Level)
    }
}

fn wrong(item: &str) -> String {
    let names = LogLevel::ALL.map(LogLevel::as_str);
    let hint = suggestion(
        item.trim_end_matches('+'),
        names.into_iter().chain(["none", "default"]),
    );
    format!(
        "holds {}, which is no log level: levels are {}, each with or without `+`, or `none`, or `default`{hint}",
        quoted(item),
        names.map(|name| format!("`{name}`")).join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(text: &str) -> String {
        match read(text) {
            Ok(None) => "default".to_owned(),
            Ok(Some(levels)) => {
                let names: Vec<_> = LogLevel::ALL
                    .into_iter()
                    .filter(|level| levels.contains(*level))
                    .collect();
                names
                    .into_iter()
                    .map(LogLevel::as_str)
                    .collect::<Vec<_>>()
                    .join(" ")
            }
            Err(error) => error,
        }
    }

    #[test]
    fn levels_combine_and_abbreviate_as_in_qdrouterd() {
        let cases = [
            ("info+", "info notice warning error critical"),
            ("i+", "info notice warning error critical"),
            ("trace+", "trace debug info notice warning error critical"),
            ("err", "error"),
            ("TRACE, error+", "trace error critical"),
            ("debug;warning : critical", "debug warning critical"),
            ("d", "default"),
            ("n", ""),
            ("none", ""),
            ("default", "default"),
            ("critical+", "critical"),
        ];
        for (text, levels) in cases {
            assert_eq!(text_of(text), levels, "{text}");
        }
    }

    #[test]
    fn wrong_levels_are_named_with_the_nearest() {
        for text in ["blah", "+", "infos", "info++"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(text_of("wraning").contains("did you mean `warning`?"));
    }

    #[test]
    fn the_lowest_level_of_a_set() {
        assert_eq!(LevelSet::NONE.lowest(), None);
        assert_eq!(
            LevelSet::at_least(LogLevel::Notice).lowest(),
            Some(LogLevel::Notice)
        );
    }
}
