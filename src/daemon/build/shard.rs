//! The configuration in the words of router and shard.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::policy::policy_settings;
use crate::amqp::failover::{FailoverServer, Scheme};
use crate::config::{self, Config};
use crate::endpoint::limits;
use crate::endpoint::trace::TraceFilter;
use crate::router::settings::{
    CbsMode, ConnectorRole, ConnectorSettings, Destination, Direction, ErrorConditions, HostPort, HubLoss,
    ListenerRole, ListenerSettings, Matcher, PeerLimits, RouteSettings, RouterSettings, Secret,
    SharingSettings,
};
use crate::shard::dial::DialSettings;
use crate::shard::passwords::Passwords;
use crate::shard::tls::{ServerTls, TlsSettings, TlsVersion};
use crate::shard::{AddressFamily, ListenSettings, ShardSettings};

/// The settings of the shard, and of the router in it.
pub(super) fn shard_settings(
    config: &Config,
    passwords: Arc<Passwords>,
    encryption: Vec<Option<Arc<ServerTls>>>,
    trace: TraceFilter,
) -> ShardSettings {
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
            policy: policy_settings(&config.policy),
            error_conditions: match config.router.error_conditions {
                config::ErrorConditions::Amqp => ErrorConditions::Amqp,
                config::ErrorConditions::Qd => ErrorConditions::Qd,
            },
            allow_resumable_link_route: config.router.allow_resumable_link_route,
            attach_timeout: limits::ATTACH_TIMEOUT,
            linger: limits::LINGER,
            trace: Arc::new(trace),
        },
        listeners: config
            .listeners
            .iter()
            .zip(encryption)
            .map(|(listener, tls)| listen_settings(listener, tls))
            .collect(),
        passwords,
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
        address: host_and_port(&listener.host, listener.port).to_string(),
        role: match listener.role {
            config::ListenerRole::Normal => ListenerRole::Normal,
            config::ListenerRole::RouteContainer => ListenerRole::RouteContainer,
        },
        multi_tenant: listener.multi_tenant,
        policy_vhost: listener.policy_vhost.clone(),
        limits: PeerLimits {
            max_frame_size: listener.max_frame_size,
            channel_max: listener.max_sessions.saturating_sub(1),
            incoming_window: listener.max_session_frames,
            idle_timeout: listener.idle_timeout,
        },
        handshake_timeout: listener.initial_handshake_timeout.unwrap_or(Duration::ZERO),
        sasl_mechanisms: listener.sasl_mechanisms.clone(),
        authenticate_peer: listener.authenticate_peer,
        require_encryption: listener.require_encryption,
        failover: listener
            .failover
            .iter()
            .map(|url| FailoverServer {
                host: url.host.clone(),
                port: url.port,
                scheme: url.tls.map(|tls| if tls { Scheme::Amqps } else { Scheme::Amqp }),
            })
            .collect(),
        on_hub_lost: match listener.on_hub_lost {
            config::HubLoss::Detach => HubLoss::Detach,
            config::HubLoss::Close => HubLoss::Close,
        },
    }
}

fn listen_settings(listener: &config::Listener, tls: Option<Arc<ServerTls>>) -> ListenSettings {
    ListenSettings {
        host: listener.host.clone(),
        port: listener.port,
        family: family(listener.family),
        tls,
    }
}

fn connector_settings(config: &Config, connector: &config::Connector) -> ConnectorSettings {
    let profile = profile_of(config, connector);
    ConnectorSettings {
        name: connector.name.clone(),
        host: host_and_port(&connector.host, connector.port),
        failover: connector
            .failover
            .iter()
            .map(|url| {
                let uses_tls = url.tls.unwrap_or(profile.is_some());
                let standard = if uses_tls { 5671 } else { 5672 };
                host_and_port(&url.host, url.port.unwrap_or(standard))
            })
            .collect(),
        server_name: connector.server_name.clone(),
        // Whoever passes for the hub without its name could send us anywhere. In clear text anybody can, list or no list.
        believes_failover_list: profile.is_none() || connector.verify_hostname,
        uses_tls: profile.is_some(),
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
        dial_timeout: limits::DIAL_TIMEOUT,
        sharing: sharing_settings(&connector.sharing),
    }
}

fn sharing_settings(sharing: &config::Sharing) -> SharingSettings {
    let count = |number: u32| number.try_into().unwrap_or(usize::MAX);
    SharingSettings {
        cbs: match sharing.cbs {
            config::CbsMode::Relay => CbsMode::Relay,
            config::CbsMode::Tunnel => CbsMode::Tunnel,
        },
        checks_identity: sharing.check_identity,
        max_tokens: count(sharing.max_tokens),
        max_links: count(sharing.max_links),
        pool_size: count(sharing.pool_size),
        devices_per_second: sharing.devices_per_second,
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
        server_name: connector
            .server_name
            .clone()
            .unwrap_or_else(|| connector.host.clone()),
        verify_hostname: connector.verify_hostname,
        ca_file: profile.ca_cert_file.as_ref().map(PathBuf::from),
        cert_file: profile.cert_file.as_ref().map(PathBuf::from),
        key_file: profile.private_key_file.as_ref().map(PathBuf::from),
        versions: tls_versions(profile),
    }
}

pub(super) fn tls_versions(profile: &config::SslProfile) -> Vec<TlsVersion> {
    let versions = profile.protocols.iter();
    versions
        .map(|version| match version {
            config::TlsVersion::Tls12 => TlsVersion::Tls12,
            config::TlsVersion::Tls13 => TlsVersion::Tls13,
        })
        .collect()
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
        add_external_prefix: route.add_external_prefix.clone().unwrap_or_default(),
        del_external_prefix: route.del_external_prefix.clone().unwrap_or_default(),
    }
}

fn family(family: Option<config::AddressFamily>) -> AddressFamily {
    match family {
        None => AddressFamily::Any,
        Some(config::AddressFamily::Ipv4) => AddressFamily::IPv4,
        Some(config::AddressFamily::Ipv6) => AddressFamily::IPv6,
    }
}

fn host_and_port(host: &str, port: u16) -> HostPort {
    HostPort {
        host: host.to_owned(),
        port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::build::site::Site;

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
    onHubLost: close
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
    serverName: hub.example
    failoverUrls: amqps://b.example, c.example, [::1]:1
}
connector {
    name: LOCAL
    host: 10.0.0.1
    port: 5672
    role: route-container
    cbs: tunnel
    checkIdentity: no
    maxTokens: 1
    maxLinks: 2
    poolSize: 3
    devicesPerSecond: 0
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
            (hub.name.as_str(), hub.host.to_string().as_str()),
            ("HUB", "hub.azure-devices.net:5671")
        );
        assert!(hub.uses_tls && !hub.believes_failover_list, "verifyHostname: no");
        let failover: Vec<_> = hub.failover.iter().map(ToString::to_string).collect();
        assert_eq!(failover, ["b.example:5671", "c.example:5671", "[::1]:1"]);
        assert_eq!(hub.server_name.as_deref(), Some("hub.example"));
        assert!(router.connectors[1].believes_failover_list && !router.connectors[1].uses_tls);
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
            ("azure", "hub.example")
        );
        assert!(!tls.verify_hostname);
        assert_eq!(tls.versions, [TlsVersion::Tls12]);
        assert_eq!(tls.ca_file, None);
        assert_eq!(router.connectors[1].role, ConnectorRole::Persistent);
        assert!(shard.connectors[1].tls.is_none());
        assert_eq!(plan.profiles, ["azure"]);

        assert_eq!(hub.sharing, SharingSettings::default());
        let expected = SharingSettings {
            cbs: CbsMode::Tunnel,
            checks_identity: false,
            max_tokens: 1,
            max_links: 2,
            pool_size: 3,
            devices_per_second: 0,
        };
        assert_eq!(router.connectors[1].sharing, expected);
        let losses: Vec<_> = router.listeners.iter().map(|it| it.on_hub_lost).collect();
        assert_eq!(losses, [HubLoss::Close, HubLoss::Detach]);

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
}
