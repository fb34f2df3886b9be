//! All sections of a file to one configuration: order does not matter, so everything is resolved before anything is
//! built, and built before references are checked.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use super::build;
use super::check;
use super::model::{Config, SslProfile, Vhost};
use super::names::{quoted, suggestion};
use super::report::Findings;
use super::resolve::{Environment, Fields, Resolver};
use super::source::Section;
use super::vhost_files;

/// Sections of 0.6 whose attributes are copied into those that name them.
const ANNOTATIONS: [&str; 2] = ["addrPort", "connectionRole"];

/// Builds and checks. `None` only if there is nothing to build from; findings tell whether it may be used.
pub(super) fn assemble(
    sections: Vec<Section>,
    environment: Environment<'_>,
    findings: &mut Findings,
) -> Option<Config> {
    let mut resolver = Resolver::new(environment);
    let mut entities: Vec<Fields> = sections
        .into_iter()
        .filter_map(|section| resolver.resolve(section, findings))
        .collect();
    expand(&mut entities, findings);
    for fields in &entities {
        resolver.judge(fields, findings);
    }

    let router = singleton(&entities, "router", findings)?;
    let container = singleton(&entities, "container", findings)?;
    let policy = singleton(&entities, "policy", findings)?;
    let of = |name: &'static str| entities.iter().filter(move |fields| fields.entity.name == name);

    let mut ssl_profiles: Vec<SslProfile> = of("sslProfile")
        .map(|fields| build::tls::ssl_profile(fields, findings))
        .collect();
    let mut connectors = Vec::new();
    for fields in of("connector") {
        let (connector, profile) = build::connector(fields, &ssl_profiles, findings);
        connectors.push(connector);
        ssl_profiles.extend(profile);
    }
    let mut names = HashMap::new();
    let mut vhosts: Vec<Vhost> = of("vhost")
        .filter_map(|fields| build::policy::vhost(fields, &mut names, findings))
        .collect();
    vhosts.extend(vhosts_of_directory(&policy, &mut resolver, &mut names, findings));
    let router = build::router(&router, &container, findings);
    let mut listeners = Vec::new();
    for fields in of("listener") {
        let built = build::listener::listener(fields, &router, &connectors, &ssl_profiles, findings);
        if let Some((listener, profile)) = built {
            listeners.push(listener);
            ssl_profiles.extend(profile);
        }
    }
    let routes = entities
        .iter()
        .filter(|fields| matches!(fields.entity.name, "linkRoute" | "linkRoutePattern"));
    let link_routes = build::route::link_routes(routes, &connectors, &listeners, findings);
    let config = Config {
        router,
        listeners,
        connectors,
        ssl_profiles,
        link_routes,
        logs: of("log")
            .filter_map(|fields| build::log(fields, findings))
            .collect(),
        policy: build::policy::policy(&policy, vhosts, findings),
    };
    check::check(&config, findings);
    Some(config)
}

/// The vhosts of `policyDir`.
fn vhosts_of_directory(
    policy: &Fields,
    resolver: &mut Resolver<'_>,
    names: &mut HashMap<String, String>,
    findings: &mut Findings,
) -> Vec<Vhost> {
    let Some(directory) = policy.text("policyDir").filter(|path| !path.is_empty()) else {
        return Vec::new();
    };
    let files = match vhost_files::read(Path::new(&directory)) {
        Ok(files) => files,
        Err(error) => {
            let line = policy.line_of("policyDir");
            let message = format!(
                "policy: the directory {} cannot be read: {error}",
                quoted(&directory)
            );
            match policy.boolean("enableVhostPolicy") {
                true => findings.error(line, message),
                false => findings.warning(line, message),
            }
            return Vec::new();
        }
    };
    let mut vhosts = Vec::new();
    for mut file in files {
        for section in file.sections {
            let Some(fields) = resolver.resolve(section, &mut file.findings) else {
                continue;
            };
            resolver.judge(&fields, &mut file.findings);
            if fields.entity.name == "vhost" {
                vhosts.extend(build::policy::vhost(&fields, names, &mut file.findings));
            }
        }
        findings.adopt(file.findings);
    }
    vhosts
}

/// The one section of this name, or one that says nothing.
fn singleton<'a>(entities: &'a [Fields], name: &str, findings: &mut Findings) -> Option<Cow<'a, Fields>> {
    let mut all = entities.iter().filter(|fields| fields.entity.name == name);
    let Some(first) = all.next() else {
        return Fields::absent(name).map(Cow::Owned);
    };
    for other in all {
        let message = format!(
            "{name}: there can be only one such section; the first is in line {}",
            first.line
        );
        findings.error(other.line, message);
    }
    Some(Cow::Borrowed(first))
}

/// Copies annotations into the sections that name them.
fn expand(entities: &mut [Fields], findings: &mut Findings) {
    for annotation in ANNOTATIONS {
        let (sources, mut users): (Vec<&mut Fields>, Vec<&mut Fields>) = entities
            .iter_mut()
            .partition(|fields| fields.entity.name == annotation);
        for user in &mut users {
            let Some(name) = user.text(annotation) else {
                continue;
            };
            if let Some(source) = sources
                .iter()
                .find(|source| source.text("name").as_deref() == Some(&name))
            {
                user.inherit(source);
                continue;
            }
            let known: Vec<String> = sources.iter().filter_map(|source| source.text("name")).collect();
            let hint = suggestion(&name, known.iter().map(String::as_str));
            let message = format!(
                "{}: there is no {annotation} {}{hint}",
                user.entity.name,
                quoted(&name)
            );
            findings.error(user.line_of(annotation), message);
        }
    }
}
