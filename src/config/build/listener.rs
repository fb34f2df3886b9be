//! Listeners: where devices connect, and what they must bring.

use super::{FOREIGN_MECHANISMS, MECHANISMS, family, host, max_frame_size, max_sessions, seconds, tls};
use crate::config::model::{
    AddressFamily, ClientCertificates, Connector, Listener, ListenerRole, Router, SslProfile,
};
use crate::config::names::{quoted, suggestion};
use crate::config::report::Findings;
use crate::config::resolve::Fields;

const NO_PASSWORDS: &str = "it needs `saslPasswordFile` in the router section, whose lines `linkrouterd --hash-password USER` \
                            makes, or a connector that puts the tokens of devices";
const NO_AUTHORITY: &str =
    "it needs an `sslProfile` with `caCertFile`, the authorities that sign the certificates of devices";

/// A listener, and the TLS profile that a 0.6 file may hold in the listener itself; `None` for one that would serve
/// HTTP, which was already said.
pub(in crate::config) fn listener(
    fields: &Fields,
    router: &Router,
    connectors: &[Connector],
    profiles: &[SslProfile],
    findings: &mut Findings,
) -> Option<(Listener, Option<SslProfile>)> {
    if fields.is_http_listener() {
        return None;
    }
    let family = family(fields);
    if !fields.is_given("host") {
        let message = "listener: without `host` only this machine can connect (127.0.0.1, as in qdrouterd 0.6 to 0.8); \
                       qdrouterd 1.0 and later listened everywhere: for that, write `host: 0.0.0.0`";
        findings.warning(fields.line, message);
    }
    let mut host = host(fields, findings);
    if host.is_empty() {
        host = if family == Some(AddressFamily::Ipv6) {
            "::"
        } else {
            "0.0.0.0"
        }
        .to_owned();
    }
    let port = fields.port("port");
    let name = fields
        .text("name")
        .unwrap_or_else(|| format!("listener/{host}:{port}"));

    tls::check_reference(fields, profiles, findings);
    let own_profile = tls::inline_profile(fields, &name, profiles, findings);
    let ssl_profile = own_profile
        .as_ref()
        .map(|profile| profile.name.clone())
        .or_else(|| fields.text("sslProfile").filter(|name| !name.is_empty()));
    let profile = own_profile.as_ref().or_else(|| {
        profiles
            .iter()
            .find(|known| Some(&known.name) == ssl_profile.as_ref())
    });
    if profile.is_some_and(|profile| profile.cert_file.is_none()) {
        let message = "listener: its `sslProfile` needs `certFile` and `privateKeyFile`, the certificate that devices see";
        findings.error(fields.line_of("sslProfile"), message);
    }

    let role = match fields.tag("role") {
        "route-container" | "on-demand" => ListenerRole::RouteContainer,
        _ => ListenerRole::Normal,
    };
    let multi_tenant = fields.boolean("multiTenant");
    let security = Security {
        authenticate_peer: asks_for(fields, "authenticatePeer", "allowNoSasl", findings),
        require_encryption: asks_for(fields, "requireEncryption", "allowUnsecured", findings)
            || fields.boolean("requireSsl"),
        has_passwords: router.sasl_password_file.is_some(),
        // Which hub a tenant belongs to is not known before its open.
        has_hub: role == ListenerRole::Normal
            && !multi_tenant
            && connectors.iter().any(|connector| connector.puts_tokens(profiles)),
        ca_file: profile.and_then(|profile| {
            let trusted = fields.text("trustedCertsFile").filter(|path| !path.is_empty());
            trusted.or_else(|| profile.ca_cert_file.clone())
        }),
    };
    if security.require_encryption && ssl_profile.is_none() {
        let message = "listener: without `sslProfile` nobody could connect: encryption is required";
        findings.error(fields.line, message);
    }
    let sasl_mechanisms = security.mechanisms(fields, findings);
    let client_certificates = security.client_certificates(&sasl_mechanisms);
    security.warn(fields, &sasl_mechanisms, findings);
    let listener = Listener {
        line: fields.line,
        name,
        host,
        port,
        family,
        role,
        multi_tenant,
        policy_vhost: fields.text("policyVhost").filter(|vhost| !vhost.is_empty()),
        max_frame_size: max_frame_size(fields, findings),
        max_sessions: max_sessions(fields, findings),
        max_session_frames: fields.integer("maxSessionFrames").filter(|frames| *frames > 0),
        idle_timeout: seconds(fields, "idleTimeoutSeconds"),
        initial_handshake_timeout: seconds(fields, "initialHandshakeTimeoutSeconds"),
        ssl_profile,
        require_encryption: security.require_encryption,
        authenticate_peer: security.authenticate_peer,
        client_certificates,
        sasl_mechanisms,
        failover: super::failover::urls(fields, findings),
        on_hub_lost: super::sharing::hub_loss(fields),
    };
    Some((listener, own_profile))
}

/// A demand, or its inverse of 0.6 to 0.8.
fn asks_for(fields: &Fields, demand: &str, inverse: &str, findings: &mut Findings) -> bool {
    if fields.is_set(inverse) {
        let message = format!("listener: `{inverse}` is the old inverse of `{demand}`, of 0.6 to 0.8");
        findings.warning(fields.line_of(inverse), message);
    }
    fields.boolean(demand) || fields.optional_boolean(inverse) == Some(false)
}

/// What a listener demands, and has to judge it by.
struct Security {
    authenticate_peer: bool,
    require_encryption: bool,
    has_passwords: bool,
    /// There is a hub to judge tokens that devices log in with.
    has_hub: bool,
    /// Who may sign certificates of devices, if there is TLS.
    ca_file: Option<String>,
}

impl Security {
    /// Why a mechanism cannot be offered.
    fn obstacle(&self, mechanism: &str) -> Option<&'static str> {
        match mechanism {
            "ANONYMOUS" | "MSSBCBS" if self.authenticate_peer => {
                Some("it authenticates nobody, and `authenticatePeer` is `yes`")
            }
            "PLAIN" if !self.has_passwords && !self.has_hub => Some(NO_PASSWORDS),
            "EXTERNAL" if self.ca_file.is_none() => Some(NO_AUTHORITY),
            _ => None,
        }
    }

    /// The mechanisms to offer.
    fn mechanisms(&self, fields: &Fields, findings: &mut Findings) -> Vec<String> {
        let line = fields.line_of("saslMechanisms");
        let listed = fields.words("saslMechanisms");
        let mut offered = Vec::new();
        if listed.is_empty() {
            let by_default: &[&str] = if self.authenticate_peer {
                &["PLAIN", "EXTERNAL"]
            } else {
                &["ANONYMOUS", "MSSBCBS", "PLAIN"]
            };
            // Where nobody must authenticate, devices of IoT Hub have `$cbs`, and others would choose PLAIN in vain.
            let is_of_use = |name: &str| name != "PLAIN" || self.has_passwords || self.authenticate_peer;
            let possible = by_default
                .iter()
                .filter(|name| self.obstacle(name).is_none() && is_of_use(name));
            offered.extend(possible.map(|name| (*name).to_owned()));
        }
        let mut is_misspelled = false;
        for name in &listed {
            if MECHANISMS.contains(&name.as_str()) {
                match self.obstacle(name) {
                    None => offered.push(name.clone()),
                    // qdrouterd 1.19: a listener with EXTERNAL and TLS turns away whoever has no certificate.
                    Some(obstacle) if name == "EXTERNAL" && fields.is_set("sslProfile") => {
                        let message = format!("listener: `EXTERNAL` cannot be offered: {obstacle}");
                        findings.error(line, message);
                    }
                    Some(obstacle) => {
                        let message = format!("listener: `{name}` is never offered: {obstacle}");
                        findings.warning(line, message);
                    }
                }
            } else if FOREIGN_MECHANISMS.contains(&name.as_str()) {
                let message = format!("listener: SASL mechanism `{name}` is not available and never offered");
                findings.warning(line, message);
            } else {
                is_misspelled = true;
                let hint = suggestion(name, MECHANISMS);
                let message = format!("listener: unknown SASL mechanism {}{hint}", quoted(name));
                findings.error(line, message);
            }
        }
        if !offered.is_empty() || is_misspelled {
            return offered;
        }
        if self.authenticate_peer {
            let message = format!(
                "listener: with `authenticatePeer: yes` nobody could connect: PLAIN: {NO_PASSWORDS}; \
                 EXTERNAL: {NO_AUTHORITY}"
            );
            findings.error(fields.line_of("authenticatePeer"), message);
        } else {
            findings.error(line, "listener: none of its `saslMechanisms` can be offered");
        }
        offered
    }

    /// Where EXTERNAL is offered: who has no certificate is turned away (as in qdrouterd), unless another mechanism
    /// authenticates just as well.
    fn client_certificates(&self, offered: &[String]) -> ClientCertificates {
        let Some(ca_file) = self
            .ca_file
            .clone()
            .filter(|_| offered.iter().any(|name| name == "EXTERNAL"))
        else {
            return ClientCertificates::Ignored;
        };
        match self.authenticate_peer && offered.len() > 1 {
            true => ClientCertificates::Asked { ca_file },
            false => ClientCertificates::Demanded { ca_file },
        }
    }

    fn warn(&self, fields: &Fields, offered: &[String], findings: &mut Findings) {
        let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
        if offers("PLAIN") && !self.require_encryption {
            let message = "listener: without `requireSsl: yes` passwords may cross the network in clear text";
            findings.warning(fields.line, message);
        }
        if fields.is_set("trustedCertsFile") && !offers("EXTERNAL") {
            let message = "listener: `trustedCertsFile` has no effect: certificates of devices are asked for only where \
                           `saslMechanisms` has `EXTERNAL` and there is an `sslProfile`";
            findings.warning(fields.line_of("trustedCertsFile"), message);
        }
    }
}
