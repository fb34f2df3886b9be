//! From a configuration file to everything that the process is made from.
//!
//! The only place that knows both the configuration's words and the settings of log, router and shard. What can be
//! found out about a configuration without opening a socket is found here, so that `--check` and a start say the same.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::logging::{self, Level, LevelSet, LogSettings, Module, ModuleSettings, Output};
use crate::config::{self, Config, Finding, Severity};
use crate::router::settings::{
    ConnectorRole, ConnectorSettings, Destination, Direction, ErrorConditions, ListenerSettings, Matcher,
    PeerLimits, RouteSettings, RouterSettings, Secret,
};
use crate::shard::dial::DialSettings;
use crate::shard::tls::{TlsSettings, TlsVersion, inspect_ca_file};
use crate::shard::{AddressFamily, ListenSettings, ShardSettings};

/// From the name look-up to the hub's open: several times what a handshake over a bad mobile link takes.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an attach waits for its connector: less than the 60 s after which common client libraries give up, so
/// that the device learns the reason from us.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(45);
/// How long an on-demand connection outlives its last device: long enough for one that reconnects at once.
const LINGER: Duration = Duration::from_secs(60);

/// Everything that the process is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For the log.
    pub log: LogSettings,
    /// For the shard, and the router in it.
    pub shard: ShardSettings,
    /// The names of the TLS profiles, for the start-up lines.
    pub profiles: Vec<String>,
}

/// A file, read and looked into.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to run; `None` if any finding is an error.
    pub plan: Option<Plan>,
    /// What to tell the operator, in line order.
    pub findings: Vec<Finding>,
}

/// What of the surroundings decides about a configuration, besides its file.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Today, for certificates.
    pub now: SystemTime,
}

/// Reads a configuration file, and what it refers to.
pub fn load(path: &Path, surroundings: &Surroundings<'_>) -> Loaded {
    let report = config::load(path, surroundings.environment);
    let mut findings = report.findings;
    let Some(config) = report.config else {
        return Loaded { plan: None, findings };
    };
    let mut inspection = Inspection {
        file: path.display().to_string(),
        findings: Vec::new(),
    };
    inspection.log(&config);
    inspection.certificates(&config, surroundings.now);
    inspection.routes(&config);
    findings.append(&mut inspection.findings);
    findings.sort_by_key(|finding| finding.line);
    let usable = findings.iter().all(|finding| finding.severity != Severity::Error);
    let plan = usable.then(|| Plan {
        log: log_settings(&config, surroundings.environment),
        shard: shard_settings(&config),
        profiles: config
            .ssl_profiles
            .iter()
            .map(|profile| profile.name.clone())
            .collect(),
    });
    Loaded { plan, findings }
}

/// Looks at what a configuration refers to outside of its file.
struct Inspection {
    file: String,
    findings: Vec<Finding>,
}

impl Inspection {
    fn add(&mut self, severity: Severity, line: u32, message: String) {
        let finding = Finding {
            severity,
            file: self.file.clone(),
            line,
            message,
        };
        // Two connectors with one profile have the same to say of it.
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn log(&mut self, config: &Config) {
        if let Some(format) = &config.router.timestamp_format
            && let Err(reason) = logging::check_format(format)
        {
            let message = format!("timestampFormat is printed in part as it stands: {reason}");
            self.add(Severity::Warning, config.router.line, message);
        }
        for log in &config.logs {
            let Some(config::LogOutput::File(path)) = &log.output else {
                continue;
            };
            let directory = Path::new(path)
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            if directory.is_some_and(|directory| !directory.is_dir()) {
                let message = format!("Failed to open log file '{path}': there is no such directory");
                self.add(Severity::Error, log.line, message);
            }
        }
    }

    fn certificates(&mut self, config: &Config, now: SystemTime) {
        for profile in &config.ssl_profiles {
            let hosts: Vec<_> = config
                .connectors
                .iter()
                .filter(|connector| connector.ssl_profile.as_ref() == Some(&profile.name))
                .map(|connector| Some(connector.host.as_str()))
                .collect();
            if let Some(path) = &profile.ca_cert_file {
                for host in if hosts.is_empty() { &[None][..] } else { &hosts } {
                    match inspect_ca_file(Path::new(path), now, *host) {
                        Ok(warnings) => {
                            for warning in warnings {
                                self.add(Severity::Warning, profile.line, warning);
                            }
                        }
                        Err(error) => self.add(Severity::Error, profile.line, error.to_string()),
                    }
                }
            }
            let own = [
                ("certificate", &profile.cert_file),
                ("private key", &profile.private_key_file),
            ];
            for (role, path) in own {
                if let Some(path) = path
                    && let Err(reason) = File::open(path)
                {
                    self.add(
                        Severity::Error,
                        profile.line,
                        format!("cannot read {role} file {path}: {reason}"),
                    );
                }
            }
        }
    }

    fn routes(&mut self, config: &Config) {
        for route in &config.link_routes {
            for (attribute, value) in [
                ("addExternalPrefix", &route.add_external_prefix),
                ("delExternalPrefix", &route.del_external_prefix),
            ] {
                if value.is_some() {
                    let message = format!(
                        "{attribute} is not run by this version: the hub gets the address as the device writes it"
                    );
                    self.add(Severity::Warning, route.line, message);
                }
            }
        }
    }
}

fn log_settings(config: &Config, environment: &dyn Fn(&str) -> Option<String>) -> LogSettings {
    LogSettings {
        modules: config.logs.iter().filter_map(module_settings).collect(),
        timestamps_in_utc: config.router.timestamps_in_utc,
        timestamp_format: config.router.timestamp_format.clone(),
        trace_frames: environment("PN_TRACE_FRM").is_some_and(|value| is_on(&value)),
    }
}

/// How Proton reads its switches.
fn is_on(value: &str) -> bool {
    ["1", "on", "true", "yes"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(value))
}

/// `None` for a module that is in no release's list; the reader has refused it already.
fn module_settings(log: &config::Log) -> Option<ModuleSettings> {
    Some(ModuleSettings {
        module: Module::from_name(&log.module)?,
        levels: log.levels.map(level_set),
        include_timestamp: log.include_timestamp,
        include_source: log.include_source,
        output: log.output.as_ref().map(|output| match output {
            config::LogOutput::File(path) => Output::File(PathBuf::from(path)),
            config::LogOutput::Stderr => Output::Stderr,
            config::LogOutput::Stdout => Output::Stdout,
            config::LogOutput::Syslog => Output::Syslog,
        }),
    })
}

fn level_set(levels: config::LevelSet) -> LevelSet {
    config::LogLevel::ALL
        .into_iter()
        .filter(|level| levels.contains(*level))
        .map(level)
        .collect()
}

fn level(level: config::LogLevel) -> Level {
    match level {
        config::LogLevel::Trace => Level::Trace,
        config::LogLevel::Debug => Level::Debug,
        config::LogLevel::Info => Level::Info,
        config::LogLevel::Notice => Level::Notice,
        config::LogLevel::Warning => Level::Warning,
        config::LogLevel::Error => Level::Error,
        config::LogLevel::Critical => Level::Critical,
    }
}

fn shard_settings(config: &Config) -> ShardSettings {
    ShardSettings {
        router: RouterSettings {
            container_id: config.router.id.clone(),
            listeners: config.listeners.iter().map(listener_settings).collect(),
            connectors: config
                .connectors
                .iter()
                .map(|connector| connector_settings(config, connector))
                .collect(),
            routes: config.link_routes.iter().map(route_settings).collect(),
            max_connections: config.policy.max_connections.try_into().unwrap_or(usize::MAX),
            error_conditions: match config.router.error_conditions {
                config::ErrorConditions::Amqp => ErrorConditions::Amqp,
                config::ErrorConditions::Qd => ErrorConditions::Qd,
            },
            attach_timeout: ATTACH_TIMEOUT,
            linger: LINGER,
        },
        listeners: config.listeners.iter().map(listen_settings).collect(),
        connectors: config
            .connectors
            .iter()
            .map(|connector| dial_settings(config, connector))
            .collect(),
    }
}

fn listener_settings(listener: &config::Listener) -> ListenerSettings {
    ListenerSettings {
        name: listener.name.clone(),
        address: host_and_port(&listener.host, listener.port),
        limits: PeerLimits {
            max_frame_size: listener.max_frame_size,
            channel_max: listener.max_sessions.saturating_sub(1),
            incoming_window: listener.max_session_frames,
            idle_timeout: listener.idle_timeout,
        },
        handshake_timeout: listener.initial_handshake_timeout.unwrap_or(Duration::ZERO),
        sasl_mechanisms: listener.sasl_mechanisms.clone(),
    }
}

fn listen_settings(listener: &config::Listener) -> ListenSettings {
    ListenSettings {
        host: listener.host.clone(),
        port: listener.port,
        family: family(listener.family),
    }
}

fn connector_settings(config: &Config, connector: &config::Connector) -> ConnectorSettings {
    let profile = profile_of(config, connector);
    ConnectorSettings {
        name: connector.name.clone(),
        address: host_and_port(&connector.host, connector.port),
        hostname: connector.host.clone(),
        role: match connector.role {
            config::ConnectorRole::OnDemand => ConnectorRole::OnDemand,
            config::ConnectorRole::Normal | config::ConnectorRole::RouteContainer => {
                ConnectorRole::Persistent
            }
        },
        role_name: connector.role.as_str().to_owned(),
        limits: PeerLimits {
            max_frame_size: connector.max_frame_size,
            channel_max: connector.max_sessions.saturating_sub(1),
            incoming_window: connector.max_session_frames,
            idle_timeout: connector.idle_timeout,
        },
        sasl_mechanisms: connector.sasl_mechanisms.clone(),
        sasl_username: connector.sasl_username.clone(),
        sasl_password: connector
            .sasl_password
            .as_ref()
            .map(|password| Secret::new(password.expose().to_owned())),
        has_client_certificate: profile.is_some_and(|profile| profile.cert_file.is_some()),
        dial_timeout: DIAL_TIMEOUT,
    }
}

fn dial_settings(config: &Config, connector: &config::Connector) -> DialSettings {
    DialSettings {
        host: connector.host.clone(),
        port: connector.port,
        family: family(connector.family),
        tls: profile_of(config, connector).map(|profile| Arc::new(tls_settings(profile, connector))),
    }
}

fn tls_settings(profile: &config::SslProfile, connector: &config::Connector) -> TlsSettings {
    TlsSettings {
        profile: profile.name.clone(),
        server_name: connector.host.clone(),
        verify_hostname: connector.verify_hostname,
        ca_file: profile.ca_cert_file.as_ref().map(PathBuf::from),
        cert_file: profile.cert_file.as_ref().map(PathBuf::from),
        key_file: profile.private_key_file.as_ref().map(PathBuf::from),
        versions: profile
            .protocols
            .iter()
            .map(|version| match version {
                config::TlsVersion::Tls12 => TlsVersion::Tls12,
                config::TlsVersion::Tls13 => TlsVersion::Tls13,
            })
            .collect(),
    }
}

fn profile_of<'a>(config: &'a Config, connector: &config::Connector) -> Option<&'a config::SslProfile> {
    connector
        .ssl_profile
        .as_deref()
        .and_then(|name| config.ssl_profile(name))
}

fn route_settings(route: &config::LinkRoute) -> RouteSettings {
    RouteSettings {
        name: route.name.clone(),
        matcher: match &route.matcher {
            config::Matcher::Prefix(prefix) => Matcher::Prefix(prefix.clone()),
            config::Matcher::Pattern(pattern) => Matcher::Pattern(pattern.clone()),
        },
        direction: match route.direction {
            config::Direction::In => Direction::In,
            config::Direction::Out => Direction::Out,
        },
        destination: match &route.destination {
            config::Destination::Connection(name) => Destination::Connection(name.clone()),
            config::Destination::Container(id) => Destination::Container(id.clone()),
        },
    }
}

fn family(family: Option<config::AddressFamily>) -> AddressFamily {
    match family {
        None => AddressFamily::Any,
        Some(config::AddressFamily::Ipv4) => AddressFamily::IPv4,
        Some(config::AddressFamily::Ipv6) => AddressFamily::IPv6,
    }
}

/// As an operator would type it: an IPv6 address needs brackets in front of a port.
fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;

    /// A directory whose path stands for `DIR` in configurations.
    struct Site(TempDir);

    impl Site {
        fn new() -> Self {
            Site(tempfile::tempdir().expect("a directory"))
        }

        fn load(&self, text: &str, environment: &[(&str, &str)]) -> Loaded {
            let path = self.0.path().join("test.conf");
            let text = text.replace("DIR", &self.0.path().display().to_string());
            fs::write(&path, text).expect("a file");
            let lookup = |name: &str| {
                let found = environment.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            load(
                &path,
                &Surroundings {
                    environment: &lookup,
                    now: SystemTime::now(),
                },
            )
        }

        fn plan(&self, text: &str, environment: &[(&str, &str)]) -> Plan {
            let loaded = self.load(text, environment);
            loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.findings))
        }

        fn write_ca(&self, name: &str, subject: &str, last_year: i32) {
            let mut parameters = CertificateParams::default();
            parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(DnType::CommonName, subject);
            parameters.not_before = date_time_ymd(2010, 1, 1);
            parameters.not_after = date_time_ymd(last_year, 8, 22);
            let key = KeyPair::generate().expect("a key");
            let certificate = parameters.self_signed(&key).expect("a certificate");
            fs::write(self.0.path().join(name), certificate.pem()).expect("a file");
        }
    }

    const GATEWAY: &str = "\
router {
    id: Router.A
    errorConditions: qd
}
listener {
    name: devices
    host: 0.0.0.0
    port: amqp
    maxSessions: 10
    maxFrameSize: 4096
    idleTimeoutSeconds: 30
    initialHandshakeTimeoutSeconds: 0
}
listener {
    host: ::1
    port: 0
    socketAddressFamily: IPv6
}
sslProfile {
    name: azure
    protocols: TLSv1.2
}
connector {
    name: HUB
    host: hub.azure-devices.net
    port: 5671
    role: on-demand
    sslProfile: azure
    saslMechanisms: PLAIN
    saslUsername: u
    saslPassword: env:HUB_PASSWORD
    verifyHostname: no
}
connector {
    name: LOCAL
    host: 10.0.0.1
    port: 5672
    role: route-container
}
linkRoute {
    prefix: devices/
    connection: HUB
    direction: in
}
linkRoute {
    pattern: a/*/#
    containerId: broker
    direction: out
}
policy {
    maxConnections: 7
}
";

    #[test]
    fn a_whole_gateway() {
        let plan = Site::new().plan(GATEWAY, &[("HUB_PASSWORD", "s3cret")]);
        let shard = &plan.shard;
        let router = &shard.router;
        assert_eq!(router.container_id, "Router.A");
        assert_eq!(router.error_conditions, ErrorConditions::Qd);
        assert_eq!(router.max_connections, 7);

        let listener = &router.listeners[0];
        assert_eq!(
            (listener.name.as_str(), listener.address.as_str()),
            ("devices", "0.0.0.0:5672")
        );
        assert_eq!(listener.limits.max_frame_size, 4096);
        assert_eq!(listener.limits.channel_max, 9);
        assert_eq!(listener.limits.idle_timeout, Some(Duration::from_secs(30)));
        assert_eq!(listener.handshake_timeout, Duration::ZERO);
        assert_eq!(router.listeners[1].address, "[::1]:0");
        assert!(
            router.listeners[1].handshake_timeout > Duration::ZERO,
            "safe by default"
        );
        assert_eq!(shard.listeners[1].host, "::1");
        assert_eq!(shard.listeners[1].family, AddressFamily::IPv6);

        let hub = &router.connectors[0];
        assert_eq!(
            (hub.name.as_str(), hub.address.as_str()),
            ("HUB", "hub.azure-devices.net:5671")
        );
        assert_eq!(hub.hostname, "hub.azure-devices.net");
        assert_eq!(
            (hub.role, hub.role_name.as_str()),
            (ConnectorRole::OnDemand, "on-demand")
        );
        assert_eq!(hub.sasl_username.as_deref(), Some("u"));
        assert_eq!(
            hub.sasl_password
                .as_ref()
                .map(|password| password.expose().as_str()),
            Some("s3cret")
        );
        assert!(!hub.has_client_certificate);
        let tls = shard.connectors[0].tls.as_ref().expect("TLS");
        assert_eq!(
            (tls.profile.as_str(), tls.server_name.as_str()),
            ("azure", "hub.azure-devices.net")
        );
        assert!(!tls.verify_hostname);
        assert_eq!(tls.versions, [TlsVersion::Tls12]);
        assert_eq!(tls.ca_file, None);
        assert_eq!(router.connectors[1].role, ConnectorRole::Persistent);
        assert!(shard.connectors[1].tls.is_none());
        assert_eq!(plan.profiles, ["azure"]);

        let routes: Vec<_> = router
            .routes
            .iter()
            .map(|route| (&route.matcher, route.direction, &route.destination))
            .collect();
        let expected = [
            (
                &Matcher::Prefix("devices/".to_owned()),
                Direction::In,
                &Destination::Connection("HUB".to_owned()),
            ),
            (
                &Matcher::Pattern("a/*/#".to_owned()),
                Direction::Out,
                &Destination::Container("broker".to_owned()),
            ),
        ];
        assert_eq!(routes, expected);
        assert!(!format!("{plan:?}").contains("s3cret"));
    }

    #[test]
    fn log_sections() {
        let text = "router {\n    timestampsInUTC: yes\n    timestampFormat: %H:%M\n}\n\
                    log {\n    module: DEFAULT\n    enable: err\n    outputFile: DIR/log\n}\n\
                    log {\n    module: PROTOCOL\n    enable: trace+\n    includeSource: yes\n    outputFile: syslog\n}\n";
        let site = Site::new();
        let log = site.plan(text, &[]).log;
        assert!(log.timestamps_in_utc);
        assert_eq!(log.timestamp_format.as_deref(), Some("%H:%M"));
        assert!(!log.trace_frames);
        let expected = [
            ModuleSettings {
                module: Module::DEFAULT,
                levels: Some(LevelSet::only(Level::Error)),
                include_timestamp: None,
                include_source: None,
                output: Some(Output::File(site.0.path().join("log"))),
            },
            ModuleSettings {
                module: Module::PROTOCOL,
                levels: Some(LevelSet::from(Level::Trace)),
                include_timestamp: None,
                include_source: Some(true),
                output: Some(Output::Syslog),
            },
        ];
        assert_eq!(log.modules, expected);
    }

    #[test]
    fn frame_trace_from_the_environment() {
        for (value, on) in [
            ("1", true),
            ("TRUE", true),
            ("yes", true),
            ("on", true),
            ("0", false),
            ("", false),
        ] {
            let plan = Site::new().plan("# nothing\n", &[("PN_TRACE_FRM", value)]);
            assert_eq!(plan.log.trace_frames, on, "{value}");
        }
    }

    #[test]
    fn an_expired_ca_file_is_a_warning_that_names_the_right_ones() {
        let site = Site::new();
        site.write_ca("old.pem", "Equifax Secure CA", 2018);
        let profile = "sslProfile {\n    name: azure\n    caCertFile: DIR/old.pem\n}\n";
        let connector = |name: &str| {
            format!(
                "connector {{\n    name: {name}\n    host: {name}.azure-devices.net\n    port: 5671\n    \
                 role: on-demand\n    sslProfile: azure\n}}\n"
            )
        };
        let loaded = site.load(&format!("{profile}{}{}", connector("one"), connector("two")), &[]);
        assert!(loaded.plan.is_some(), "{:#?}", loaded.findings);
        let messages: Vec<_> = loaded.findings.iter().map(ToString::to_string).collect();
        let expired: Vec<_> = messages
            .iter()
            .filter(|text| text.contains("2018-08-22"))
            .collect();
        assert_eq!(expired.len(), 1, "{messages:#?}");
        assert!(expired[0].contains("test.conf:1: warning: "), "{messages:#?}");
        for root in [
            "DigiCert Global Root G2",
            "Microsoft RSA Root Certificate Authority 2017",
        ] {
            assert!(messages.iter().any(|text| text.contains(root)), "{messages:#?}");
        }
    }

    #[test]
    fn what_a_file_refers_to_must_be_there() {
        let cases = [
            (
                "sslProfile {\n    name: p\n    caCertFile: DIR/no.pem\n}\n",
                "no.pem",
            ),
            (
                "sslProfile {\n    name: p\n    certFile: DIR/no.pem\n    privateKeyFile: DIR/no.key\n}\n",
                "no.key",
            ),
            (
                "log {\n    module: DEFAULT\n    outputFile: DIR/no/log\n}\n",
                "Failed to open log file",
            ),
        ];
        for (text, part) in cases {
            let loaded = Site::new().load(text, &[]);
            assert!(loaded.plan.is_none(), "{text}");
            let errors: Vec<_> = loaded
                .findings
                .iter()
                .filter(|finding| finding.severity == Severity::Error)
                .collect();
            assert!(errors.iter().all(|finding| finding.line == 1), "{errors:#?}");
            assert!(
                errors.iter().any(|finding| finding.message.contains(part)),
                "{errors:#?}"
            );
        }
    }

    #[test]
    fn settings_that_do_nothing_are_named() {
        let text = "router {\n    timestampFormat: %!\n}\nconnector {\n    name: H\n    host: h\n    port: 5672\n    \
                    role: on-demand\n}\nlinkRoute {\n    prefix: a\n    connection: H\n    direction: in\n    \
                    addExternalPrefix: x/\n}\n";
        let loaded = Site::new().load(text, &[]);
        assert!(loaded.plan.is_some(), "{:#?}", loaded.findings);
        for (line, part) in [(1, "timestampFormat"), (10, "addExternalPrefix")] {
            let found = |finding: &&Finding| {
                finding.line == line
                    && finding.severity == Severity::Warning
                    && finding.message.contains(part)
            };
            assert!(
                loaded.findings.iter().any(|finding| found(&finding)),
                "{:#?}",
                loaded.findings
            );
        }
    }
}
