//! What can be found out about a configuration without opening a socket, but not from its file alone.

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use super::policy::unknown_hosts;
use crate::config::{self, Config, Finding, Severity};
use crate::daemon::logging;
use crate::shard::tls::inspect_ca_file;

/// Looks at what a configuration refers to outside of its file.
pub(super) struct Inspection {
    file: String,
    findings: Vec<Finding>,
}

impl Inspection {
    /// Everything to say about the configuration that was read from `file`.
    pub(super) fn findings(file: &Path, config: &Config, now: SystemTime) -> Vec<Finding> {
        let mut inspection = Inspection {
            file: file.display().to_string(),
            findings: Vec::new(),
        };
        inspection.log(config);
        inspection.certificates(config, now);
        inspection.remote_hosts(config);
        inspection.findings
    }

    fn remote_hosts(&mut self, config: &Config) {
        for (vhost, line, name) in unknown_hosts(&config.policy) {
            self.findings.push(Finding {
                severity: Severity::Warning,
                file: vhost.file.clone(),
                line,
                message: format!(
                    "group: the host name `{name}` of `remoteHosts` cannot be resolved now, so it lets nobody in; an \
                     address needs no resolving"
                ),
            });
        }
    }

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
            let fault = if directory.is_some_and(|directory| !directory.is_dir()) {
                "there is no such directory"
            } else if Path::new(path).is_dir() {
                "it is a directory; name a file in it"
            } else {
                continue;
            };
            let message = format!("Failed to open log file '{path}': {fault}");
            self.add(Severity::Error, log.line, message);
        }
    }

    fn certificates(&mut self, config: &Config, now: SystemTime) {
        // The files of listeners were just read, for use; this is about those of connectors.
        let of_listeners_only = |profile: &config::SslProfile| {
            let is_it = |name: &Option<String>| name.as_ref() == Some(&profile.name);
            config
                .listeners
                .iter()
                .any(|listener| is_it(&listener.ssl_profile))
                && !config
                    .connectors
                    .iter()
                    .any(|connector| is_it(&connector.ssl_profile))
        };
        for profile in config
            .ssl_profiles
            .iter()
            .filter(|profile| !of_listeners_only(profile))
        {
            let hosts: Vec<_> = config
                .connectors
                .iter()
                .filter(|connector| connector.ssl_profile.as_ref() == Some(&profile.name))
                .map(|connector| Some(connector.server_name.as_ref().unwrap_or(&connector.host).as_str()))
                .collect();
            if let Some(path) = &profile.ca_cert_file {
                for host in if hosts.is_empty() { &[None][..] } else { &hosts } {
                    match inspect_ca_file(Path::new(path), now, *host) {
                        Ok(warnings) => {
                            for warning in warnings {
                                self.add(Severity::Warning, profile.line, warning);
                            }
                        }
                        Err(error) => self.warn_of_file(profile.line, &error.to_string()),
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
                    self.warn_of_file(profile.line, &format!("cannot read {role} file {path}: {reason}"));
                }
            }
        }
    }

    /// No error: the files are read at every dial, and may come later than the daemon.
    fn warn_of_file(&mut self, line: u32, what: &str) {
        let message = format!("{what}; connectors with this profile cannot connect before that is mended");
        self.add(Severity::Warning, line, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::build::site::Site;

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
            (
                "log {\n    module: DEFAULT\n    outputFile: DIR\n}\n",
                "it is a directory",
            ),
        ];
        for (text, part) in cases {
            let loaded = Site::new().load(text, &[]);
            // A log that cannot be written stops the start; certificates are read at every dial.
            assert_eq!(loaded.plan.is_none(), text.starts_with("log"), "{text}");
            let named: Vec<_> = loaded
                .findings
                .iter()
                .filter(|finding| finding.message.contains(part))
                .collect();
            assert!(
                named.iter().any(|finding| finding.line == 1),
                "{:#?}",
                loaded.findings
            );
        }
    }

    #[test]
    fn settings_that_do_nothing_are_named() {
        let text = "router {\n    timestampFormat: %!\n}\n";
        let loaded = Site::new().load(text, &[]);
        assert!(loaded.plan.is_some(), "{:#?}", loaded.findings);
        let found = |finding: &Finding| {
            finding.line == 1
                && finding.severity == Severity::Warning
                && finding.message.contains("timestampFormat")
        };
        assert!(loaded.findings.iter().any(found), "{:#?}", loaded.findings);
    }
}
