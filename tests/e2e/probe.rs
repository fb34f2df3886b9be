//! `--check FILE --probe`: what a person reads about a hub that is well, and about each way in which one is not.

use std::net::SocketAddr;
use std::sync::Arc;

use fe2o3_amqp::types::definitions::Fields;
use fe2o3_amqp::types::primitives::{Symbol, Value};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::article;
use crate::support::broker::Broker;
use crate::support::certificates::{Authority, Validity};
use crate::support::daemon::{CA_FILE, ensure_none_of, probe};
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::{Failure, ensure, ensure_eq};

/// All connectors are well.
const WELL: i32 = 0;
/// One is not.
const UNAVAILABLE: i32 = 69;
/// The file cannot be used.
const BAD_CONFIGURATION: i32 = 78;

const SECRET: &str = "hunter2-is-no-password";

const SITE: &str = "router {\n    id: Router.P\n}\nlistener {\n    host: 127.0.0.1\n    port: 0\n}\n\
                    sslProfile {\n    name: tls\n    caCertFile: ca.pem\n}\n";

/// A connector called HUB, and what else it says.
fn connector(host: &str, port: u16, attributes: &[&str]) -> String {
    let mut text =
        format!("connector {{\n    name: HUB\n    host: {host}\n    port: {port}\n    role: on-demand\n");
    for attribute in attributes {
        text.push_str(&format!("    {attribute}\n"));
    }
    text + "}\n"
}

fn site(connectors: &str) -> String {
    format!("{SITE}{connectors}")
}

/// Probes one connector, and finds each of `expected` in what is printed, and no secret.
async fn told(config: &str, files: &[(&str, &str)], code: i32, expected: &[&str]) -> Result<String, Failure> {
    let (exit, printed) = probe(config, files).await?;
    ensure_eq(&format!("the exit code of\n{printed}"), exit, Some(code))?;
    for part in expected {
        ensure(printed.contains(part), || format!("no {part:?} in\n{printed}"))?;
    }
    let lines: Vec<_> = printed.lines().map(str::to_owned).collect();
    ensure_none_of(&[SECRET.to_owned()], &lines)?;
    let forged = printed.chars().any(|c| c.is_control() && c != '\n');
    ensure(!forged, || format!("control characters in {printed:?}"))?;
    Ok(printed)
}

/// A hub behind a certificate that is not as it must be.
async fn about_tls(tls: Arc<ServerConfig>, ca: &str, expected: &[&str]) -> Result<String, Failure> {
    let hub = IotHub::start(article::hub_settings(), Some(tls)).await?;
    let config = site(&connector(
        "localhost",
        hub.address().port(),
        &["sslProfile: tls"],
    ));
    let printed = told(&config, &[(CA_FILE, ca)], UNAVAILABLE, expected).await?;
    ensure_eq("connections opened", opened(&hub), 0)?;
    Ok(printed)
}

fn opened(hub: &IotHub) -> usize {
    let is_open = |observed: &Observed| matches!(observed, Observed::Opened { .. }).then_some(());
    hub.journal().select(is_open).len()
}

/// A server that takes one connection, reads a little, and answers with these bytes, or not at all.
async fn serving(answer: Option<&'static [u8]>) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut input = [0; 1024];
        let _ = stream.read(&mut input).await?;
        if let Some(answer) = answer {
            stream.write_all(answer).await?;
            stream.shutdown().await?;
        }
        // Until the other side has had enough.
        while stream.read(&mut input).await? > 0 {}
        Ok::<_, std::io::Error>(())
    });
    Ok(address)
}

#[tokio::test]
async fn a_hub_that_is_well() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let hub = IotHub::start(article::hub_settings(), Some(authority.server_config(&identity)?)).await?;
    let config = site(&connector(
        "localhost",
        hub.address().port(),
        &["sslProfile: tls"],
    ));
    let ours = format!("connected to {}", hub.address());
    let expected = [
        "connector HUB: localhost:",
        "  DNS     ok      localhost is ",
        "127.0.0.1 (IPv4)",
        &ours,
        "  TLS     ok      TLSv1.3 with TLS13_",
        "trusted: CA file ca.pem, 1 authority",
        "certificate 1: ",
        "for localhost, issued by 'Test Root', 2020-08-22 to 2099-08-22, ",
        " days left",
        "the name 'localhost' fits the certificate",
        "  clock   ok      this machine says 20",
        "allow anything from 2020-08-22 to 2099-08-22",
        "  SASL    ok      ANONYMOUS is accepted, in ",
        "offered: EXTERNAL MSSBCBS ANONYMOUS PLAIN",
        "  open    ok ",
        "container-id \"DeviceGateway_",
        "max-frame-size 65536",
        "channel-max 8191 (8192 sessions)",
        "idle-time-out 240 s",
        "  session ok ",
        "  close   ok      closed by both sides",
        "1 connector: all well\n",
    ];
    told(&config, &[(CA_FILE, &authority.pem())], WELL, &expected).await?;
    ensure_eq("connections opened", opened(&hub), 1)?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn what_a_broker_says_of_itself_stays_on_its_line() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let mut properties = Fields::default();
    properties.insert(
        Symbol::from("product"),
        Value::String("a\n  SASL    ok\u{1b}[2J".to_owned()),
    );
    properties.insert(Symbol::from("version"), Value::String("1.2.3".to_owned()));
    let broker = Broker::start_with(authority.server_config(&identity)?, properties).await?;
    let config = site(&connector(
        "localhost",
        broker.address().port(),
        &["sslProfile: tls"],
    ));
    let expected = [
        "container-id \"broker\"",
        "properties: {",
        "product=\"a\\x0a  SASL    ok\\x1b[2J\"",
        "version=\"1.2.3\"",
    ];
    told(&config, &[(CA_FILE, &authority.pem())], WELL, &expected).await?;
    Ok(())
}

#[tokio::test]
async fn an_unknown_authority() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let other = Authority::new("Other Root", Validity::Current)?;
    let expected = [
        "  TLS     FAILED  the server's certificate leads to the authority 'Test Root'",
        "put the certificate of the root authority, in PEM form, into that file",
        "issued by 'Test Root'",
        "1 connector: 0 well, 1 NOT WELL",
    ];
    let printed = about_tls(authority.server_config(&identity)?, &other.pem(), &expected).await?;
    ensure(!printed.contains("SASL"), || printed)
}

#[tokio::test]
async fn an_expired_certificate() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Expired)?;
    let expected = [
        "  TLS     FAILED  a certificate of the server has expired on 2018-08-22",
        "1998-08-22 to 2018-08-22, EXPIRED ",
        "  clock   note ",
        "either a certificate of the server has expired, or that is at least ",
    ];
    about_tls(authority.server_config(&identity)?, &authority.pem(), &expected).await?;
    Ok(())
}

/// What a clock that is behind makes of a good certificate.
#[tokio::test]
async fn a_certificate_from_the_future() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Future)?;
    let expected = [
        "  TLS     FAILED  a certificate of the server is not valid yet, only from 2090-08-22",
        "NOT VALID before ",
        "  clock   note ",
        " days behind, if the server's certificates are dated rightly",
    ];
    about_tls(authority.server_config(&identity)?, &authority.pem(), &expected).await?;
    Ok(())
}

#[tokio::test]
async fn a_certificate_for_another_host() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["other.example"], Validity::Current)?;
    let tls = authority.server_config(&identity)?;
    let expected = [
        "  TLS     FAILED  the server's certificate is for 'other.example', not for 'localhost': correct the connector's \
         host or serverName, or set its verifyHostname: no",
        "the name 'localhost' does not fit the certificate\n",
    ];
    about_tls(tls.clone(), &authority.pem(), &expected).await?;

    let hub = IotHub::start(article::hub_settings(), Some(tls)).await?;
    let attributes = ["sslProfile: tls", "verifyHostname: no"];
    let config = site(&connector("localhost", hub.address().port(), &attributes));
    let expected = ["does not fit the certificate, which verifyHostname: no allows"];
    told(&config, &[(CA_FILE, &authority.pem())], WELL, &expected).await?;
    Ok(())
}

/// In TLS 1.3 the server's verdict comes after the handshake.
#[tokio::test]
async fn a_client_certificate_is_demanded() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let hub = IotHub::start(
        article::hub_settings(),
        Some(authority.demanding_config(&identity)?),
    )
    .await?;
    let port = hub.address().port();
    let config = site(&connector("localhost", port, &["sslProfile: tls"]));
    let expected = [
        "FAILED  the server demands a client certificate: set certFile and privateKeyFile in the sslProfile",
    ];
    told(&config, &[(CA_FILE, &authority.pem())], UNAVAILABLE, &expected).await?;

    let gateway = authority.issue_device("gateway", Validity::Current)?;
    let config = site(&connector(
        "localhost",
        port,
        &["sslProfile: tls", "saslMechanisms: ANONYMOUS"],
    ))
    .replace(
        "caCertFile",
        "certFile: gw.pem\n    privateKeyFile: gw.key\n    caCertFile",
    );
    let (ca, key) = (authority.pem(), gateway.key_pem.clone());
    let files = [
        (CA_FILE, ca.as_str()),
        ("gw.pem", &gateway.certificate_pem),
        ("gw.key", &key),
    ];
    let expected = ["our own certificate: 'gateway', issued by 'Test Root', 2020-08-22 to 2099-08-22, "];
    let printed = told(&config, &files, WELL, &expected).await?;
    let inside: Vec<_> = key
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .map(str::to_owned)
        .collect();
    ensure_none_of(&inside, &printed.lines().map(str::to_owned).collect::<Vec<_>>())
}

#[tokio::test]
async fn a_wrong_password() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let password = format!("saslPassword: {SECRET}");
    let attributes = [
        "saslMechanisms: PLAIN",
        "saslUsername: netduino@sas.article-hub",
        &password,
    ];
    let config = site(&connector("127.0.0.1", hub.address().port(), &attributes));
    let expected = [
        "nothing to look up, the host is an address",
        "  TLS     ok      none, everything goes in clear text",
        "  SASL    FAILED  Authentication failed [mech=PLAIN]: the peer refuses the credentials; check saslUsername, \
         saslPassword and saslMechanisms of connector HUB",
        "offered: EXTERNAL MSSBCBS ANONYMOUS PLAIN; chosen: PLAIN",
    ];
    told(&config, &[], UNAVAILABLE, &expected).await?;
    Ok(())
}

#[tokio::test]
async fn no_mechanism_in_common() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let broker = Broker::start(authority.server_config(&identity)?).await?;
    let password = format!("saslPassword: {SECRET}");
    let attributes = [
        "sslProfile: tls",
        "saslMechanisms: PLAIN",
        "saslUsername: me",
        &password,
    ];
    let config = site(&connector("localhost", broker.address().port(), &attributes));
    let expected = [
        "  SASL    FAILED  no common SASL mechanism: the peer offers ANONYMOUS, allowed here: PLAIN; check ",
    ];
    told(&config, &[(CA_FILE, &authority.pem())], UNAVAILABLE, &expected).await?;
    Ok(())
}

/// As IoT Hub does: its open comes first, and its close with the reason behind it.
#[tokio::test]
async fn a_hub_that_opens_only_to_close() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let port = hub.address().port();
    let config = site(&connector(
        "127.0.0.1",
        port,
        &["serverName: other-hub.azure-devices.net"],
    ));
    let expected = [
        "  open    ok ",
        "  session FAILED  closed by the peer: com.microsoft:iot-hub-not-found-error ",
        "we asked for 'other-hub.azure-devices.net' (serverName, or else host, of connector HUB)",
    ];
    told(&config, &[], UNAVAILABLE, &expected).await?;
    Ok(())
}

#[tokio::test]
async fn peers_of_another_protocol() -> Result<(), Failure> {
    let web = serving(Some(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")).await?;
    let config = site(&connector("127.0.0.1", web.port(), &[]));
    let expected = [
        "  SASL    FAILED  Unknown protocol detected: 'HTTP/1.1'; check host and port of connector HUB (AMQP over TLS is \
         usually 5671, plain AMQP 5672)",
    ];
    told(&config, &[], UNAVAILABLE, &expected).await?;

    let web = serving(Some(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")).await?;
    let config = site(&connector(
        "localhost",
        web.port(),
        &["sslProfile: tls", "socketAddressFamily: IPv4"],
    ));
    let ca = Authority::new("Test Root", Validity::Current)?.pem();
    let expected = ["  TLS     FAILED  the server does not speak TLS on this port"];
    told(&config, &[(CA_FILE, &ca)], UNAVAILABLE, &expected).await?;

    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let hub = IotHub::start(article::hub_settings(), Some(authority.server_config(&identity)?)).await?;
    let config = site(&connector("127.0.0.1", hub.address().port(), &[]));
    let expected = [
        "  SASL    FAILED  the peer hung up without a word of AMQP; check the port of connector HUB: is it one for AMQP, \
         or does it want TLS (sslProfile)?",
    ];
    told(&config, &[], UNAVAILABLE, &expected).await?;
    Ok(())
}

/// It lets us in, opens, and begins a session of its own; but to our begin it has no answer.
#[tokio::test]
async fn a_peer_that_begins_sessions_and_answers_none() -> Result<(), Failure> {
    let peer = serving(Some(
        b"AMQP\x03\x01\0\0\
          \0\0\0\x19\x02\x01\0\0\0\x53\x40\xc0\x0c\x01\xa3\x09ANONYMOUS\
          \0\0\0\x10\x02\x01\0\0\0\x53\x44\xc0\x03\x01\x50\0\
          AMQP\0\x01\0\0\
          \0\0\0\x11\x02\0\0\0\0\x53\x10\xc0\x04\x01\xa1\x01x\
          \0\0\0\x14\x02\0\0\0\0\x53\x11\xc0\x07\x04\x40\x43\x52\x64\x52\x64",
    ))
    .await?;
    let expected = [
        "  open    ok      the peer answers in ",
        "  session FAILED  the peer hung up instead of answering our begin",
    ];
    let config = site(&connector("127.0.0.1", peer.port(), &[]));
    told(&config, &[], UNAVAILABLE, &expected).await?;
    Ok(())
}

/// They are probed at the same time, so that all of them together take no longer than one.
#[tokio::test]
async fn peers_that_cannot_be_reached_or_never_answer() -> Result<(), Failure> {
    let (mute, mute_tls) = (serving(None).await?.port(), serving(None).await?.port());
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let named = |name: &str, text: String| text.replace("name: HUB", &format!("name: {name}"));
    let connectors = [
        named("MUTE", connector("127.0.0.1", mute, &[])),
        named("MUTETLS", connector("127.0.0.1", mute_tls, &["sslProfile: tls"])),
        named("CLOSED", connector("127.0.0.1", closed, &[])),
        named(
            "NOBODY",
            connector("no-such-host.invalid", 5671, &["sslProfile: tls"]),
        ),
    ];
    let refused =
        format!("  TCP     FAILED  connection refused by 127.0.0.1:{closed}: nothing listens on that port\n");
    let silent =
        format!("  TLS     FAILED  the TLS handshake with 127.0.0.1:{mute_tls} took longer than 10 s\n");
    let expected = [
        "Probing; each step may take 10 s.",
        "  SASL    FAILED  no answer within 10 s; check the port of connector MUTE: is it one for AMQP, or does it want TLS",
        &silent,
        &refused,
        "check host and port of connector CLOSED",
        "  DNS     FAILED  cannot resolve no-such-host.invalid: ",
        "is the name right",
        "4 connectors: 0 well, 4 NOT WELL",
    ];
    let ca = Authority::new("Test Root", Validity::Current)?.pem();
    // Within the time that any probe is given here, which is less than one after the other would take.
    let config = site(&connectors.concat());
    let printed = told(&config, &[(CA_FILE, &ca)], UNAVAILABLE, &expected).await?;
    let order: Vec<_> = ["MUTE:", "MUTETLS:", "CLOSED:", "NOBODY:"]
        .iter()
        .map(|name| printed.find(&format!("connector {name}")))
        .collect();
    ensure(order.is_sorted(), || format!("{order:?}"))
}

#[tokio::test]
async fn the_first_host_that_is_well_would_be_used() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let port = hub.address().port();
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let spare = format!("failoverUrls: amqp://localhost:{port}");
    let config = site(&connector(
        "127.0.0.1",
        closed,
        &["serverName: localhost", &spare],
    ));
    let (first, second, used) = (
        format!("connector HUB, host 1 of 2: 127.0.0.1:{closed}"),
        format!("connector HUB, host 2 of 2: localhost:{port}"),
        format!("connector HUB would use localhost:{port}, the first of its hosts that is well"),
    );
    let expected = [
        first.as_str(),
        "FAILED  connection refused",
        &second,
        &used,
        "all well",
    ];
    told(&config, &[], WELL, &expected).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_not_probed() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let config = site(&connector("127.0.0.1", hub.address().port(), &["bogus: 1"]));
    let printed = told(&config, &[], BAD_CONFIGURATION, &["error: "]).await?;
    ensure(!printed.contains("Probing"), || printed)?;
    ensure_eq("connections opened", opened(&hub), 0)?;
    told(SITE, &[], WELL, &["There is no connector to probe."]).await?;
    Ok(())
}
