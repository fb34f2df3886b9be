//! The rows of the entity table. Order and spelling follow qdrouterd 1.19; what older releases had comes after.

use super::entity::{Attribute, Entity, Handling, Kind, Support};

const fn run(name: &'static str, kind: Kind, default: &'static str) -> Attribute {
    Attribute::new(name, kind, default, Support::Run)
}

const fn accepted(name: &'static str, kind: Kind, default: &'static str) -> Attribute {
    Attribute::new(name, kind, default, Support::Accepted)
}

const fn ignored(
    name: &'static str,
    kind: Kind,
    harmless: &'static str,
    consequence: &'static str,
) -> Attribute {
    Attribute::new(
        name,
        kind,
        harmless,
        Support::Ignored {
            harmless,
            consequence,
        },
    )
}

const fn read_only(name: &'static str) -> Attribute {
    Attribute::new(name, Kind::Any, "", Support::ReadOnly)
}

/// An attribute of an entity that is ignored as a whole.
const fn of_ignored(name: &'static str) -> Attribute {
    Attribute::new(name, Kind::Any, "", Support::Accepted)
}

const fn integer(min: u32, max: u32) -> Kind {
    Kind::Integer { min, max }
}

const fn one_of(tags: &'static [&'static str], more: &'static [&'static str]) -> Kind {
    Kind::Enum { tags, more }
}

const COUNT: Kind = integer(0, u32::MAX);
/// Announced in milliseconds in 32 bits (AMQP 1.0 part 2, §2.7.1).
const SECONDS: Kind = integer(0, u32::MAX / 1000);
const FAMILY: Kind = one_of(&["IPv4", "IPv6"], &[]);
const ROLE: Kind = one_of(
    &["normal", "inter-router", "route-container", "edge"],
    &["on-demand", "edge-uplink"],
);
const STRIP: Kind = one_of(&["in", "out", "both", "no"], &[]);
const DIRECTION: Kind = one_of(&["in", "out"], &[]);

const NO_CYRUS: &str = "SASL is built in and reads no Cyrus SASL configuration; users that log in with a password belong in a \
                        file for `saslPasswordFile`, whose lines `linkrouterd --hash-password USER` makes";
const NO_DUMP: &str = "no debug dump is written";
const NO_HTTP: &str = "there is no HTTP or WebSocket server: this listener is not opened";
const NO_MESSAGE_LOG: &str = "the content of messages is never logged";
const NO_MESSAGE_ROUTING: &str =
    "this daemon routes links, not messages: an attach that no linkRoute matches is refused";
const NO_NETWORK: &str = "this daemon joins no network of routers: it runs standalone";
const NO_OPEN_PROPERTIES: &str = "they are not sent in the open";
const NO_KEY_PASSWORD: &str = "a private key with a password cannot be read in this version: store the key without one, for its owner only";
const NO_TRUSTED_CERTS: &str =
    "no list of trusted certificates is announced; qdrouterd 1.14+ ignored it, too";
const NO_RULESET: &str = "rules of 0.6 are not read: write them as vhost sections";

/// The attributes that every entity has.
pub(super) const COMMON: &[Attribute] = &[
    run("name", Kind::Text, ""),
    read_only("identity"),
    read_only("type"),
];

const CONTAINER: &[Attribute] = &[
    run("containerName", Kind::Text, ""),
    accepted("workerThreads", COUNT, "4"),
    ignored("debugDump", Kind::Path, "", NO_DUMP),
    ignored("saslConfigPath", Kind::Path, "", NO_CYRUS),
    ignored("saslConfigName", Kind::Text, "qdrouterd", NO_CYRUS),
];

const ROUTER: &[Attribute] = &[
    run("id", Kind::Text, "").old(&["routerId"]),
    ignored(
        "mode",
        one_of(&["standalone", "interior", "edge"], &[]),
        "standalone",
        NO_NETWORK,
    ),
    accepted("area", Kind::Text, "0"),
    accepted("workerThreads", COUNT, "4"),
    accepted("helloIntervalSeconds", COUNT, "1").old(&["helloInterval"]),
    accepted("helloMaxAgeSeconds", COUNT, "3").old(&["helloMaxAge"]),
    accepted("raIntervalSeconds", COUNT, "30").old(&["raInterval"]),
    accepted("raIntervalFluxSeconds", COUNT, "4").old(&["raIntervalFlux"]),
    accepted("remoteLsMaxAgeSeconds", COUNT, "60").old(&["remoteLsMaxAge"]),
    accepted("mobileAddrMaxAge", COUNT, "60"),
    ignored("debugDumpFile", Kind::Path, "", NO_DUMP).old(&["debugDump"]),
    ignored("saslConfigDir", Kind::Path, "", NO_CYRUS).old(&["saslConfigPath"]),
    ignored("saslConfigName", Kind::Text, "qdrouterd", NO_CYRUS),
    run("saslPasswordFile", Kind::Path, ""),
    ignored("allowUnsettledMulticast", Kind::Boolean, "no", NO_MESSAGE_ROUTING),
    run("allowResumableLinkRoute", Kind::Boolean, "yes"),
    ignored(
        "defaultDistribution",
        one_of(&["multicast", "closest", "balanced", "unavailable"], &[]),
        "unavailable",
        NO_MESSAGE_ROUTING,
    ),
    run("timestampsInUTC", Kind::Boolean, "no"),
    run("timestampFormat", Kind::Text, ""),
    accepted("metadata", Kind::Text, ""),
    run("errorConditions", one_of(&["amqp", "qd"], &[]), "amqp"),
    read_only("version"),
    read_only("hostName"),
    read_only("addrCount"),
    read_only("linkCount"),
    read_only("nodeCount"),
    read_only("linkRouteCount"),
    read_only("autoLinkCount"),
    read_only("connectionCount"),
];

const LISTENER: &[Attribute] = &[
    run("host", Kind::Text, "127.0.0.1").old(&["addr"]),
    run("port", Kind::Port, "amqp"),
    run("socketAddressFamily", FAMILY, "").old(&["protocolFamily"]),
    run("role", ROLE, "normal"),
    accepted("cost", COUNT, "1"),
    run("sslProfile", Kind::Text, "").old(&["sslProfileName"]),
    run("saslMechanisms", Kind::Words, ""),
    run("authenticatePeer", Kind::Boolean, "no").old(&["requirePeerAuth"]),
    run("requireEncryption", Kind::Boolean, "no"),
    run("requireSsl", Kind::Boolean, "no"),
    run("trustedCertsFile", Kind::Path, "").old(&["trustedCerts"]),
    run("maxFrameSize", COUNT, "16384"),
    run("maxSessions", COUNT, "1024"),
    run("maxSessionFrames", COUNT, ""),
    run("idleTimeoutSeconds", SECONDS, "16"),
    run("initialHandshakeTimeoutSeconds", SECONDS, "10"),
    accepted("stripAnnotations", STRIP, "both"),
    accepted("linkCapacity", COUNT, "250"),
    run("multiTenant", Kind::Boolean, "no"),
    run("failoverUrls", Kind::Text, "").old(&["failoverList"]),
    run("onHubLost", one_of(&["detach", "close"], &[]), "detach"),
    accepted("healthz", Kind::Boolean, "yes"),
    accepted("metrics", Kind::Boolean, "yes"),
    accepted("websockets", Kind::Boolean, "yes"),
    ignored("http", Kind::Boolean, "no", NO_HTTP),
    ignored("httpRootDir", Kind::Path, "", NO_HTTP).old(&["httpRoot"]),
    ignored("messageLoggingComponents", Kind::Text, "none", NO_MESSAGE_LOG).old(&["logMessage"]),
    run("policyVhost", Kind::Text, ""),
    run("saslPlugin", Kind::Text, ""),
    ignored("openProperties", Kind::Map, "", NO_OPEN_PROPERTIES),
    run("allowUnsecured", Kind::Boolean, "yes"),
    run("allowNoSasl", Kind::Boolean, "yes"),
    run("addrPort", Kind::Text, ""),
    run("connectionRole", Kind::Text, ""),
    run("certFile", Kind::Path, ""),
    run("privateKeyFile", Kind::Path, "").old(&["keyFile"]),
    run("caCertFile", Kind::Path, "").old(&["certDb"]),
    ignored("password", PROFILE_PASSWORD, "", NO_KEY_PASSWORD),
    ignored("passwordFile", Kind::Path, "", NO_KEY_PASSWORD),
    run("uidFormat", Kind::Text, ""),
    run("uidNameMappingFile", Kind::Path, "").old(&["displayNameFile"]),
];

const PROFILE_PASSWORD: Kind = Kind::Secret { literal: true };

const CONNECTOR: &[Attribute] = &[
    run("host", Kind::Text, "127.0.0.1").old(&["addr"]),
    run("port", Kind::Port, "amqp"),
    run("socketAddressFamily", FAMILY, "").old(&["protocolFamily"]),
    run("role", ROLE, "normal"),
    accepted("cost", COUNT, "1"),
    run("sslProfile", Kind::Text, "").old(&["sslProfileName"]),
    run("saslMechanisms", Kind::Words, ""),
    accepted("allowRedirect", Kind::Boolean, "yes"),
    run("maxFrameSize", COUNT, "16384"),
    run("maxSessions", COUNT, "32768"),
    run("maxSessionFrames", COUNT, ""),
    run("idleTimeoutSeconds", SECONDS, "16"),
    accepted("stripAnnotations", STRIP, "both"),
    accepted("linkCapacity", COUNT, "250"),
    run("serverName", Kind::Text, ""),
    run("verifyHostname", Kind::Boolean, "yes").old(&["verifyHostName"]),
    run("saslUsername", Kind::Text, ""),
    run("saslPassword", Kind::Secret { literal: false }, ""),
    ignored("messageLoggingComponents", Kind::Text, "none", NO_MESSAGE_LOG).old(&["logMessage"]),
    accepted("policyVhost", Kind::Text, ""),
    ignored("openProperties", Kind::Map, "", NO_OPEN_PROPERTIES),
    ignored("trustedCertsFile", Kind::Path, "", NO_TRUSTED_CERTS).old(&["trustedCerts"]),
    run("failoverUrls", Kind::Text, "").old(&["failoverList"]),
    run("cbs", one_of(&["relay", "tunnel"], &[]), "relay"),
    run("checkIdentity", Kind::Boolean, "yes"),
    run("maxTokens", integer(1, 1_000_000), "995"),
    run("maxLinks", integer(1, u32::MAX), "4999"),
    run("poolSize", integer(1, 1024), "16"),
    run("devicesPerSecond", COUNT, "100"),
    read_only("connectionStatus"),
    read_only("connectionMsg"),
    run("addrPort", Kind::Text, ""),
    run("connectionRole", Kind::Text, ""),
    run("certFile", Kind::Path, ""),
    run("privateKeyFile", Kind::Path, "").old(&["keyFile"]),
    run("caCertFile", Kind::Path, "").old(&["certDb"]),
    ignored("password", PROFILE_PASSWORD, "", NO_KEY_PASSWORD),
    ignored("passwordFile", Kind::Path, "", NO_KEY_PASSWORD),
    accepted("uidFormat", Kind::Text, ""),
    accepted("uidNameMappingFile", Kind::Path, "").old(&["displayNameFile"]),
];

const SSL_PROFILE: &[Attribute] = &[
    ignored(
        "ciphers",
        Kind::Text,
        "",
        "the cipher suites of the TLS library are used",
    ),
    run("protocols", Kind::Words, "TLSv1.2 TLSv1.3"),
    run("caCertFile", Kind::Path, "").old(&["certDb"]),
    run("certFile", Kind::Path, ""),
    run("privateKeyFile", Kind::Path, "").old(&["keyFile"]),
    ignored("password", PROFILE_PASSWORD, "", NO_KEY_PASSWORD),
    ignored("passwordFile", Kind::Path, "", NO_KEY_PASSWORD),
    run("uidFormat", Kind::Text, ""),
    run("uidNameMappingFile", Kind::Path, "").old(&["displayNameFile"]),
];

const LINK_ROUTE: &[Attribute] = &[
    run("prefix", Kind::Text, ""),
    run("pattern", Kind::Text, ""),
    run("direction", DIRECTION, "").old(&["dir"]),
    run("connection", Kind::Text, ""),
    run("containerId", Kind::Text, ""),
    accepted("distribution", one_of(&["linkBalanced"], &[]), "linkBalanced"),
    run("addExternalPrefix", Kind::Text, ""),
    run("delExternalPrefix", Kind::Text, ""),
    read_only("operStatus"),
];

const LINK_ROUTE_PATTERN: &[Attribute] = &[
    run("prefix", Kind::Text, ""),
    run("direction", one_of(&["in", "out", "both"], &[]), "both").old(&["dir"]),
    run("connector", Kind::Text, ""),
];

const LOG: &[Attribute] = &[
    run(
        "module",
        one_of(
            &[
                "ROUTER",
                "ROUTER_CORE",
                "ROUTER_HELLO",
                "ROUTER_LS",
                "ROUTER_MA",
                "MESSAGE",
                "SERVER",
                "AGENT",
                "AUTHSERVICE",
                "CONTAINER",
                "ERROR",
                "POLICY",
                "HTTP",
                "CONN_MGR",
                "PYTHON",
                "PROTOCOL",
                "DEFAULT",
            ],
            &["CONFIG", "DISPATCH", "HTTP_ADAPTOR", "MAIN", "TCP_ADAPTOR"],
        ),
        "",
    ),
    run("enable", Kind::Text, "default"),
    run("includeTimestamp", Kind::Boolean, "").old(&["timestamp"]),
    run("includeSource", Kind::Boolean, "").old(&["source"]),
    run("outputFile", Kind::Path, "").old(&["output"]),
    run("traceDevice", Kind::List, ""),
];

const POLICY: &[Attribute] = &[
    run("maxConnections", COUNT, "65535").old(&["maximumConnections"]),
    run("enableVhostPolicy", Kind::Boolean, "no").old(&["enableAccessRules"]),
    run("enableVhostNamePatterns", Kind::Boolean, "no"),
    run("policyDir", Kind::Path, "").old(&["policyFolder"]),
    run("defaultVhost", Kind::Text, "$default").old(&["defaultApplication"]),
    accepted("defaultApplicationEnabled", Kind::Boolean, "no"),
    run("maxMessageSize", COUNT, "0"),
];

const VHOST: &[Attribute] = &[
    run("hostname", Kind::Text, "").old(&["id"]),
    run("aliases", Kind::List, ""),
    run("maxConnections", COUNT, "65535"),
    run("maxConnectionsPerUser", COUNT, "65535"),
    run("maxConnectionsPerHost", COUNT, "65535"),
    run("maxMessageSize", COUNT, ""),
    run("allowUnknownUser", Kind::Boolean, "no"),
    run("groups", Kind::Groups, ""),
];

const GROUP: &[Attribute] = &[
    run("users", Kind::List, ""),
    run("remoteHosts", Kind::List, ""),
    run("maxConnectionsPerUser", COUNT, ""),
    run("maxConnectionsPerHost", COUNT, ""),
    run("maxFrameSize", COUNT, ""),
    run("maxSessions", COUNT, ""),
    run("maxSessionWindow", COUNT, ""),
    run("maxSenders", COUNT, ""),
    run("maxReceivers", COUNT, ""),
    run("maxMessageSize", COUNT, ""),
    run("allowDynamicSource", Kind::Boolean, "no"),
    run("allowAnonymousSender", Kind::Boolean, "no"),
    accepted("allowUserIdProxy", Kind::Boolean, "no"),
    accepted("allowWaypointLinks", Kind::Boolean, "yes"),
    accepted("allowFallbackLinks", Kind::Boolean, "yes"),
    accepted("allowDynamicLinkRoutes", Kind::Boolean, "yes"),
    accepted("allowAdminStatusUpdate", Kind::Boolean, "yes"),
    run("sources", Kind::List, ""),
    run("targets", Kind::List, ""),
    run("sourcePattern", Kind::List, ""),
    run("targetPattern", Kind::List, ""),
];

/// No section: what a user group of a vhost may say.
pub(super) static GROUP_ENTITY: Entity = entity("group", false, GROUP);

const ADDR_PORT: &[Attribute] = &[
    run("host", Kind::Text, "").old(&["addr"]),
    run("port", Kind::Port, ""),
    run("socketAddressFamily", FAMILY, "").old(&["protocolFamily"]),
];

const CONNECTION_ROLE: &[Attribute] = &[run("role", ROLE, ""), accepted("cost", COUNT, "1")];

/// Every entity, ours to run first.
pub(super) const ENTITIES: &[Entity] = &[
    entity("router", true, ROUTER),
    entity("listener", false, LISTENER),
    entity("connector", false, CONNECTOR),
    entity("sslProfile", false, SSL_PROFILE),
    entity("linkRoute", false, LINK_ROUTE),
    entity("log", false, LOG),
    entity("policy", true, POLICY),
    entity("vhost", false, VHOST),
    entity("container", true, CONTAINER),
    entity("linkRoutePattern", false, LINK_ROUTE_PATTERN),
    entity("addrPort", false, ADDR_PORT),
    entity("connectionRole", false, CONNECTION_ROLE),
    not_run(
        "address",
        NO_MESSAGE_ROUTING,
        &[
            of_ignored("prefix"),
            of_ignored("pattern"),
            of_ignored("distribution"),
            of_ignored("waypoint"),
            of_ignored("ingressPhase"),
            of_ignored("egressPhase"),
            of_ignored("priority"),
            of_ignored("enableFallback"),
        ],
    ),
    not_run(
        "autoLink",
        "no link is opened by the router itself",
        &[
            of_ignored("address").old(&["addr"]),
            of_ignored("direction").old(&["dir"]),
            of_ignored("phase"),
            of_ignored("containerId"),
            of_ignored("connection"),
            of_ignored("externalAddress").old(&["externalAddr"]),
            of_ignored("fallback"),
            of_ignored("linkRef"),
            of_ignored("operStatus"),
            of_ignored("lastError"),
        ],
    ),
    not_run(
        "fixedAddress",
        NO_MESSAGE_ROUTING,
        &[
            of_ignored("prefix"),
            of_ignored("phase"),
            of_ignored("fanout"),
            of_ignored("bias"),
        ],
    ),
    not_run(
        "waypoint",
        "no link is opened by the router itself",
        &[
            of_ignored("address"),
            of_ignored("connector"),
            of_ignored("inPhase"),
            of_ignored("outPhase"),
        ],
    ),
    not_run("exchange", NO_MESSAGE_ROUTING, &[]),
    not_run("binding", NO_MESSAGE_ROUTING, &[]),
    not_run("policyRuleset", NO_RULESET, &[]),
    not_run(
        "authServicePlugin",
        "no remote authentication service is asked",
        &[
            of_ignored("authService"),
            of_ignored("host"),
            of_ignored("port"),
            of_ignored("realm").old(&["saslInitHostname"]),
            of_ignored("sslProfile").old(&["authSslProfile"]),
        ],
    ),
    not_run(
        "console",
        "there is no web console",
        &[
            of_ignored("listener"),
            of_ignored("wsport"),
            of_ignored("proxy"),
            of_ignored("home"),
            of_ignored("args"),
        ],
    ),
    not_run("tcpListener", "no TCP traffic is carried", &[]),
    not_run("tcpConnector", "no TCP traffic is carried", &[]),
    not_run("httpListener", "no HTTP traffic is carried", &[]),
    not_run("httpConnector", "no HTTP traffic is carried", &[]),
];

const fn entity(name: &'static str, singleton: bool, attributes: &'static [Attribute]) -> Entity {
    Entity {
        name,
        singleton,
        handling: Handling::Run,
        attributes,
    }
}

const fn not_run(name: &'static str, consequence: &'static str, attributes: &'static [Attribute]) -> Entity {
    Entity {
        name,
        singleton: false,
        handling: Handling::Ignored(consequence),
        attributes,
    }
}
