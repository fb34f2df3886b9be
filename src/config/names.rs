//! Spellings: qdrouterd's name normalisation, and the nearest valid name for a wrong one.

/// Longest piece of a file's text that a finding repeats.
const SHOWN: usize = 60;

/// What stands before keys and signatures in the notations of Azure, in any case of letters.
const AZURE_KEYS: [&str; 2] = ["sharedaccess", "sig="];

/// A section or attribute name in its canonical spelling: pieces separated by blank, `_`, `-` or `.` are joined in
/// camel case (`ssl-profile` is `sslProfile`). The long prefixes of the management schema are dropped.
pub(super) fn normalise(name: &str) -> String {
    let name = name.strip_prefix("org.apache.qpid.dispatch.").unwrap_or(name);
    let name = name.strip_prefix("router.config.").unwrap_or(name);
    let mut canonical = String::with_capacity(name.len());
    for piece in name.split([' ', '_', '-', '.']).filter(|piece| !piece.is_empty()) {
        if canonical.is_empty() {
            canonical.push_str(piece);
        } else {
            let mut characters = piece.chars();
            canonical.extend(characters.next().map(|first| first.to_ascii_uppercase()));
            canonical.extend(characters.map(|character| character.to_ascii_lowercase()));
        }
    }
    canonical
}

/// The candidate that is most likely meant by `word`, if one is close enough to be worth naming.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(SHOWN).flat_map(char::to_lowercase).collect();
    let limit = (word.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.chars().count().abs_diff(word.len()) <= limit)
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `"; did you mean …?"`, or nothing.
pub(super) fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

/// A piece of the file, quoted for a finding: shortened, with control characters made visible, and without the passwords
/// that URLs and connection strings hold.
pub(super) fn quoted(text: &str) -> String {
    let text = &without_passwords(text);
    let mut shown = String::new();
    for character in text.chars().take(SHOWN) {
        if character.is_control() {
            shown.extend(character.escape_debug());
        } else {
            shown.push(character);
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// `amqps://USER:PASSWORD@HOST` without what is before the `@`, and connection strings of Azure up to the key.
fn without_passwords(text: &str) -> String {
    let lowercase = text.to_ascii_lowercase();
    let keys = AZURE_KEYS
        .iter()
        .filter_map(|key| Some(lowercase.find(key)? + key.len()));
    let (text, cut) = match keys.min() {
        Some(end) => (&text[..end], "…"),
        None => (text, ""),
    };
    let authority = text.find("://").map_or(0, |at| at + "://".len());
    let (scheme, rest) = text.split_at(authority);
    match rest.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => format!("{scheme}…@{host}{cut}"),
        _ => format!("{text}{cut}"),
    }
}

/// Edit distance with transpositions of neighbours, ignoring case.
fn distance(word: &[char], candidate: &str) -> usize {
    let candidate: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
    let width = candidate.len() + 1;
    let mut before: Vec<usize> = vec![0; width];
    let mut above: Vec<usize> = (0..width).collect();
    for (row, letter) in word.iter().enumerate() {
        let mut current = Vec::with_capacity(width);
        current.push(row + 1);
        for (column, other) in candidate.iter().enumerate() {
            let replace = above[column] + usize::from(letter != other);
            let mut best = replace.min(above[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && *letter == candidate[column - 1] && word[row - 1] == *other {
                best = best.min(before[column - 1] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut above, current);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyphen_underscore_and_camel_case_are_one_name() {
        let cases = [
            ("ssl-profile", "sslProfile"),
            ("sasl_mechanisms", "saslMechanisms"),
            ("idle-timeout-seconds", "idleTimeoutSeconds"),
            ("link-route", "linkRoute"),
            ("cert-DB", "certDb"),
            ("linkRoute", "linkRoute"),
            ("org.apache.qpid.dispatch.router.config.linkRoute", "linkRoute"),
            ("router.config.linkRoute", "linkRoute"),
            ("--", ""),
        ];
        for (written, canonical) in cases {
            assert_eq!(normalise(written), canonical, "{written}");
        }
    }

    #[test]
    fn nearest_name_forgives_typing_errors_and_case_only() {
        let names = ["port", "host", "role", "sslProfile"];
        assert_eq!(nearest("prot", names), Some("port"));
        assert_eq!(nearest("PORT", names), Some("port"));
        assert_eq!(nearest("sslprofil", names), Some("sslProfile"));
        assert_eq!(nearest("something", names), None);
        assert_eq!(nearest("", names), None);
    }

    #[test]
    fn quoted_text_is_short_and_printable() {
        assert_eq!(quoted("a\tb"), "`a\\tb`");
        assert_eq!(quoted(&"x".repeat(1000)).chars().count(), SHOWN + 3);
        for (text, shown) in [
            ("amqps://rule:k/e@y@h:1/q", "`amqps://…@h:1/q`"),
            ("rule:key@h", "`…@h`"),
            ("rule@h", "`rule@h`"),
            ("HostName=h;SharedAccessKey=k", "`HostName=h;SharedAccess…`"),
            ("é&SIG=k&sharedAccessKey=k", "`é&SIG=…`"),
        ] {
            assert_eq!(quoted(text), shown);
        }
    }
}
