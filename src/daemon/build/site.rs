//! For the tests of the daemon: a configuration file and what lies around it.

use std::fs;
use std::time::SystemTime;

use rcgen::{CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::{Loaded, Plan, Surroundings, load};

/// A directory whose path stands for `DIR` in configurations.
pub(in crate::daemon) struct Site(pub(super) TempDir);

impl Site {
    pub(in crate::daemon) fn new() -> Self {
        Site(tempfile::tempdir().expect("a directory"))
    }

    pub(in crate::daemon) fn load(&self, text: &str, environment: &[(&str, &str)]) -> Loaded {
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
                trace_devices: &[],
            },
        )
    }

    pub(in crate::daemon) fn plan(&self, text: &str, environment: &[(&str, &str)]) -> Plan {
        let loaded = self.load(text, environment);
        loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.findings))
    }

    pub(in crate::daemon) fn write_ca(&self, name: &str, subject: &str, last_year: i32) {
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
