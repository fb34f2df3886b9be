//! Files that are shipped or that people have, and the reference that documents every attribute.

use std::fs;
use std::path::{Path, PathBuf};

use linkrouterd::config::entity::{
    Attribute, Entity, Handling, Kind, Support, common_attributes, entities, group,
};
use linkrouterd::config::refusal::{REFUSALS, When};
use linkrouterd::config::{
    self, Config, ConnectorRole, Destination, Direction, ListenerRole, Matcher, Report,
};

use crate::shown;

fn in_package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Loads a file with `replacements` filled in.
fn load(path: &str, replacements: &[(&str, &str)]) -> Report {
    let mut text = fs::read_to_string(in_package(path)).expect("the file is in the package");
    for (placeholder, value) in replacements {
        assert!(text.contains(placeholder), "{placeholder} in {path}");
        text = text.replace(placeholder, value);
    }
    config::parse(path, &text, &|name| {
        name.ends_with("_KEY").then(|| "key".to_owned())
    })
}

/// Every route as `prefix direction connector`.
fn routes(config: &Config) -> Vec<String> {
    let route = |route: &config::LinkRoute| {
        let (Matcher::Prefix(address) | Matcher::Pattern(address)) = &route.matcher;
        let direction = if route.direction == Direction::In {
            "in"
        } else {
            "out"
        };
        let (Destination::Connection(to) | Destination::Container(to)) = &route.destination;
        format!("{address} {direction} {to}")
    };
    config.link_routes.iter().map(route).collect()
}

#[test]
fn the_default_file_is_flawless_and_lets_only_this_machine_in() {
    let report = config::load(&in_package("conf/linkrouterd.conf"), &|_| None);
    assert_eq!(shown(&report), "");
    let config = report.config.expect("no error");
    assert_eq!(
        (config.listeners[0].host.as_str(), config.listeners[0].port),
        ("127.0.0.1", 5672)
    );
    assert!(config.connectors.is_empty() && config.link_routes.is_empty());
}

#[test]
fn the_file_for_brokers_is_flawless() {
    let report = load("conf/linkrouterd-brokers.conf", &[]);
    assert_eq!(shown(&report), "");
    let config = report.config.expect("no error");
    let roles: Vec<_> = config.listeners.iter().map(|listener| listener.role).collect();
    assert_eq!(roles, [ListenerRole::Normal, ListenerRole::RouteContainer]);
    assert_eq!((config.connectors.len(), config.link_routes.len()), (0, 3));
}

#[test]
fn the_files_for_azure_are_flawless_once_filled_in() {
    let namespace = ("<namespace>", "ns");
    let rule = ("<keyRule>", "send-and-listen");
    let files = [
        (
            "conf/linkrouterd-iothub.conf",
            vec![("<iotHub>", "hub")],
            "hub.azure-devices.net",
            6,
        ),
        (
            "conf/linkrouterd-eventhub.conf",
            vec![namespace, rule, ("<ehName>", "eh")],
            "ns.servicebus.windows.net",
            3,
        ),
        (
            "conf/linkrouterd-servicebus.conf",
            vec![namespace, rule, ("<queue>", "q"), ("<topic>", "t")],
            "ns.servicebus.windows.net",
            4,
        ),
    ];
    for (path, replacements, host, route_count) in files {
        let report = load(path, &replacements);
        assert_eq!(shown(&report), "");
        let config = report.config.expect("no error");
        let connector = &config.connectors[0];
        assert_eq!((connector.host.as_str(), connector.port), (host, 5671));
        assert_eq!(
            (connector.role, connector.verify_hostname),
            (ConnectorRole::OnDemand, true)
        );
        let profile = connector
            .ssl_profile
            .as_deref()
            .and_then(|name| config.ssl_profile(name));
        assert!(
            profile.is_some_and(|profile| profile.ca_cert_file.is_none()),
            "built-in roots"
        );
        assert_eq!(config.link_routes.len(), route_count);

        let template = load(path, &[]);
        assert!(template.config.is_some(), "{}", shown(&template));
        assert!(
            template
                .findings
                .iter()
                .all(|finding| finding.message.contains("placeholder"))
        );
    }
}

#[test]
fn a_gateway_file_of_2016_loads_with_warnings_only() {
    let report = load("tests/config/ex06_iothub.conf", &[("<iotHub>", "hub")]);
    let text = shown(&report);
    assert!(
        text.contains("DigiCert Global Root G2 and Microsoft RSA Root Certificate Authority 2017"),
        "{text}"
    );
    assert!(!text.contains("placeholder"), "{text}");
    let config = report.config.expect("no error");
    assert_eq!(config.router.id, "Qpid.Dispatch.Router.A");
    let listener = &config.listeners[0];
    assert_eq!((listener.host.as_str(), listener.port), ("0.0.0.0", 5672));
    let connector = &config.connectors[0];
    assert_eq!(
        (connector.name.as_str(), connector.host.as_str()),
        ("IOTHUB", "hub.azure-devices.net")
    );
    assert_eq!((connector.role, connector.port), (ConnectorRole::OnDemand, 5671));
    assert_eq!(connector.sasl_mechanisms, ["ANONYMOUS"]);
    assert_eq!(connector.idle_timeout.map(|time| time.as_secs()), Some(120));
    let profile = connector
        .ssl_profile
        .as_deref()
        .and_then(|name| config.ssl_profile(name))
        .expect("a profile");
    assert_eq!(
        profile.ca_cert_file.as_deref(),
        Some("/opt/qdrouterd/Equifax_Secure_Certificate_Authority.pem")
    );
    assert_eq!(
        routes(&config),
        [
            "$cbs/ in IOTHUB",
            "$cbs/ out IOTHUB",
            "devices/ in IOTHUB",
            "devices/ out IOTHUB",
            "messages/devicebound in IOTHUB",
            "messages/servicebound/feedback out IOTHUB",
        ]
    );
}

#[test]
fn templates_of_2016_load_with_warnings_only() {
    let files = [
        ("tests/config/ex06_iothub.conf", 6),
        ("tests/config/ex06_eventhub.conf", 5),
        ("tests/config/ex06_servicebus.conf", 4),
    ];
    for (path, route_count) in files {
        let report = load(path, &[]);
        assert!(shown(&report).contains("placeholder"));
        assert_eq!(
            report.config.map(|config| config.link_routes.len()),
            Some(route_count),
            "{path}"
        );
    }
    let config = load(
        "tests/config/ex06_eventhub.conf",
        &[("<key>", "k3y"), ("<keyRule>", "rule")],
    )
    .config;
    let connector = &config.expect("no error").connectors[0];
    assert_eq!(connector.sasl_username.as_deref(), Some("rule"));
    assert_eq!(
        connector.sasl_password.as_ref().map(|secret| secret.expose()),
        Some("k3y")
    );
}

/// The columns of an attribute's row that the table decides; a note may follow.
fn row(entity: &str, attribute: &Attribute) -> String {
    let kind = match attribute.kind {
        Kind::Any => "any".to_owned(),
        Kind::Boolean => "yes or no".to_owned(),
        Kind::Enum { tags, more } => code(tags.iter().chain(more).copied()),
        Kind::Integer { .. } => "number".to_owned(),
        Kind::Groups => "groups".to_owned(),
        Kind::List => "list".to_owned(),
        Kind::Map => "map".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Port => "port".to_owned(),
        Kind::Secret { .. } => "password".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::Words => "words".to_owned(),
    };
    let refused: Vec<String> = REFUSALS
        .iter()
        .filter(|refusal| refusal.entity == entity && refusal.attribute == attribute.name)
        .map(|refusal| match refusal.when {
            When::Set => "refused".to_owned(),
            When::Is(values) => format!("refused: {}", code(values.iter().copied())),
        })
        .collect();
    let support = match attribute.support {
        Support::Run if !refused.is_empty() => refused.join("; "),
        Support::Run => "yes".to_owned(),
        Support::Accepted => "accepted".to_owned(),
        Support::Ignored { .. } => "warning".to_owned(),
        Support::ReadOnly => "read-only".to_owned(),
    };
    let columns = [
        code([attribute.name].into_iter()),
        code(attribute.old_names.iter().copied()),
        kind,
        code(
            [attribute.default]
                .into_iter()
                .filter(|default| !default.is_empty()),
        ),
        support,
    ];
    format!("| {} |", columns.join(" | ").replace("  ", " "))
}

fn code<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The rows that an entity must have in the reference.
fn rows(entity: &Entity) -> Vec<String> {
    entity
        .attributes
        .iter()
        .map(|attribute| row(entity.name, attribute))
        .collect()
}

/// The tables of the reference: heading, and the rows below it whose first column is code.
fn documented() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(in_package("docs/configuration.md")).expect("the reference");
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            sections.push((heading.to_owned(), Vec::new()));
        } else if line.starts_with("## ") {
            sections.push((String::new(), Vec::new()));
        } else if let Some((_, rows)) = sections.last_mut().filter(|_| line.starts_with("| `")) {
            rows.push(line.to_owned());
        }
    }
    sections.retain(|(heading, rows)| !heading.is_empty() && !rows.is_empty());
    sections
}

#[test]
fn the_reference_has_a_row_for_every_attribute_and_no_other() {
    let mut expected: Vec<(String, Vec<String>)> = entities()
        .iter()
        .filter(|entity| entity.handling == Handling::Run)
        .map(|entity| (entity.name.to_owned(), rows(entity)))
        .collect();
    expected.push((group().name.to_owned(), rows(group())));
    expected.push((
        "Every section".to_owned(),
        common_attributes().iter().map(|it| row("", it)).collect(),
    ));
    let not_run = entities().iter().filter_map(|entity| {
        let Handling::Ignored(consequence) = entity.handling else {
            return None;
        };
        let attributes = entity
            .attributes
            .iter()
            .flat_map(|it| std::iter::once(it.name).chain(it.old_names.iter().copied()));
        let attributes = if entity.is_open() {
            "any".to_owned()
        } else {
            code(attributes)
        };
        Some(format!("| `{}` | {attributes} | {consequence} |", entity.name))
    });
    expected.push(("Sections that are not run".to_owned(), not_run.collect()));

    let documented = documented();
    for (heading, rows) in &expected {
        let Some((_, found)) = documented.iter().find(|(found, _)| found == heading) else {
            panic!(
                "no table under the heading `### {heading}`; wanted\n{}",
                rows.join("\n")
            );
        };
        for row in rows {
            assert!(
                found.iter().any(|found| found.starts_with(row.as_str())),
                "{heading}: no row\n{row}"
            );
        }
        assert_eq!(
            found.len(),
            rows.len(),
            "{heading}: rows that no attribute has:\n{}",
            found.join("\n")
        );
    }
    assert_eq!(
        documented.len(),
        expected.len(),
        "tables for sections that do not exist"
    );
}

/// Numbers that a file may hold where nothing else is said: any, and of seconds those that fit in milliseconds.
const ANY_NUMBER: [u32; 2] = [u32::MAX, u32::MAX / 1000];

#[test]
fn the_reference_names_the_range_of_every_number_that_has_one() {
    let [any, seconds] = ANY_NUMBER;
    let text = fs::read_to_string(in_package("docs/configuration.md")).expect("the reference");
    assert!(text.contains(&format!("from 0 to {any}, seconds to {seconds}, unless")));
    let documented = documented();
    let mut count = 0;
    for entity in entities().iter().chain([group()]) {
        for attribute in entity.attributes.iter().filter(|it| it.support == Support::Run) {
            let range = match attribute.kind {
                Kind::Integer { min: 0, max } if ANY_NUMBER.contains(&max) => continue,
                Kind::Integer { min, max } if ANY_NUMBER.contains(&max) => format!("at least {min}"),
                Kind::Integer { min, max } => format!("{min} to {max}"),
                _ => continue,
            };
            let table = documented.iter().find(|(heading, _)| heading == entity.name);
            let name = format!("| `{}` |", attribute.name);
            let row = table.and_then(|(_, rows)| rows.iter().find(|row| row.starts_with(&name)));
            assert!(
                row.is_some_and(|row| row.contains(&range)),
                "{}: `{}` is {range}",
                entity.name,
                attribute.name
            );
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} numbers with a range");
}

#[test]
fn the_documents_show_text_that_the_reader_takes() {
    let mut count = 0;
    for entry in fs::read_dir(in_package("docs")).expect("the documents") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a document");
        let examples = text.split("```conf\n").skip(1);
        for example in examples.map(|rest| rest.split("```").next().unwrap_or_default()) {
            let report = config::parse("example.conf", example, &|_| Some("key".to_owned()));
            assert_eq!(shown(&report), "", "of {}:\n{example}", path.display());
            count += 1;
        }
    }
    assert!(count >= 6, "only {count} examples");
}
