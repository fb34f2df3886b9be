//! The reader on any text, and on generated configurations.

use linkrouterd::config::{self, Severity};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{read_as, shown};

/// Lines that are nearly right, so that random files get past the first one.
fn line() -> impl Strategy<Value = String> {
    let names: Vec<String> = config::entity::entities()
        .iter()
        .flat_map(|entity| std::iter::once(entity.name).chain(entity.attribute_names()))
        .map(str::to_owned)
        .collect();
    let name = proptest::sample::select(names);
    let value = prop_oneof![
        Just("yes".to_owned()),
        Just("5672".to_owned()),
        Just("<hub>".to_owned()),
        Just("pass:x".to_owned()),
        Just("{".to_owned()),
        Just("{\"a\": {\"b\": [1, \"}\"]}}".to_owned()),
        "\\PC{0,12}",
    ];
    prop_oneof![
        4 => (name.clone(), value).prop_map(|(name, value)| format!("{name}: {value}")),
        2 => name.clone().prop_map(|name| format!("{name} {{")),
        2 => Just("}".to_owned()),
        1 => name,
        1 => Just("{".to_owned()),
        1 => "\\PC{0,20}",
    ]
}

fn lines_of(text: &str) -> u32 {
    u32::try_from(text.split('\n').count()).expect("a short text")
}

fn assert_total(name: &str, text: &str) -> Result<(), TestCaseError> {
    let report = read_as(name, text);
    let errors = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    prop_assert_eq!(report.config.is_some(), errors == 0);
    for finding in &report.findings {
        prop_assert!(
            finding.line >= 1 && finding.line <= lines_of(text),
            "{} of\n{}",
            finding,
            text
        );
        prop_assert!(!finding.message.contains('\n'));
    }
    prop_assert!(report.findings.is_sorted_by_key(|finding| finding.line));
    Ok(())
}

proptest! {
    #[test]
    fn any_text_yields_findings_within_the_file(text in "(?s).{0,200}") {
        assert_total("t.conf", &text)?;
        assert_total("t.json", &text)?;
    }

    #[test]
    fn any_lines_yield_findings_within_the_file(lines in vec(line(), 0..40)) {
        assert_total("t.conf", &lines.join("\n"))?;
    }

    #[test]
    fn any_json_shape_yields_findings_within_the_file(
        sections in vec((line(), vec((line(), "\\PC{0,8}|-?[0-9]{1,25}|\\[\\]|\\{\\}|null|true|\"[a-z]*\""), 0..5)), 0..5)
    ) {
        let members = |list: &[(String, String)]| {
            list.iter().map(|(name, value)| format!("{name:?}: {value}")).collect::<Vec<_>>().join(",\n")
        };
        let sections: Vec<_> = sections.iter().map(|(name, list)| format!("[{name:?}, {{{}}}]", members(list))).collect();
        assert_total("t.json", &format!("[{}\n]", sections.join(",\n")))?;
    }

    #[test]
    fn what_is_written_is_read(
        id in "[A-Za-z0-9._-]{1,20}",
        routes in vec(("[A-Za-z0-9$_-]{1,8}(/[A-Za-z0-9]{1,5}){0,3}", any::<bool>(), any::<bool>()), 0..8),
        port in 1_u16..,
        frame in 512_u32..,
        seconds in 0_u32..4_000_000,
        password in "[!-~&&[^\"#\\\\<]]{1,20}",
        indent in " {0,4}|\t",
        line_end in "\r?\n",
        is_json: bool,
    ) {
        let mut sections: Vec<(&str, Vec<(&str, String)>)> = vec![
            ("router", vec![("id", id.clone())]),
            ("listener", vec![
                ("host", "::1".to_owned()),
                ("port", port.to_string()),
                ("maxFrameSize", frame.to_string()),
                ("idleTimeoutSeconds", seconds.to_string()),
            ]),
            ("connector", vec![
                ("name", "HUB".to_owned()),
                ("host", "hub.example".to_owned()),
                ("saslUsername", "user".to_owned()),
                ("saslPassword", format!("pass:{password}")),
            ]),
        ];
        for (address, is_prefix, is_in) in &routes {
            sections.push(("linkRoute", vec![
                (if *is_prefix { "prefix" } else { "pattern" }, address.clone()),
                ("direction", if *is_in { "in" } else { "out" }.to_owned()),
                ("connection", "HUB".to_owned()),
            ]));
        }
        let (name, text) = if is_json { ("t.json", as_json(&sections)) } else { ("t.conf", as_conf(&sections, &indent, &line_end)) };
        let report = read_as(name, &text);
        let findings = shown(&report);
        let Some(config) = report.config else {
            return Err(TestCaseError::fail(format!("{findings}\nof\n{text}")));
        };
        prop_assert_eq!(config.router.id, id);
        let listener = &config.listeners[0];
        prop_assert_eq!((listener.port, listener.max_frame_size), (port, frame));
        prop_assert_eq!(listener.idle_timeout.map_or(0, |time| time.as_secs()), u64::from(seconds));
        let read_password = config.connectors[0].sasl_password.as_ref().map(|secret| secret.expose().to_owned());
        prop_assert_eq!(read_password, Some(password));
        let read_routes: Vec<_> = config
            .link_routes
            .iter()
            .map(|route| {
                let is_in = route.direction == config::Direction::In;
                match &route.matcher {
                    config::Matcher::Prefix(text) => (text.clone(), true, is_in),
                    config::Matcher::Pattern(text) => (text.clone(), false, is_in),
                }
            })
            .collect();
        prop_assert_eq!(read_routes, routes);
    }
}

fn as_conf(sections: &[(&str, Vec<(&str, String)>)], indent: &str, line_end: &str) -> String {
    let mut text = String::new();
    for (name, attributes) in sections {
        text.push_str(&format!("{name} {{{line_end}"));
        for (attribute, value) in attributes {
            text.push_str(&format!("{indent}{attribute}: {value}{line_end}"));
        }
        text.push_str(&format!("}}{line_end}"));
    }
    text
}

fn as_json(sections: &[(&str, Vec<(&str, String)>)]) -> String {
    let sections: Vec<String> = sections
        .iter()
        .map(|(name, attributes)| {
            let members: Vec<String> = attributes
                .iter()
                .map(|(name, value)| format!("{name:?}: {value:?}"))
                .collect();
            format!("[\"{name}\", {{{}}}]", members.join(", "))
        })
        .collect();
    format!("[\n{}\n]\n", sections.join(",\n"))
}
