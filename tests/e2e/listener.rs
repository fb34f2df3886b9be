//! Devices that must show who they are, and those that are turned away: the real binary, raw sockets, and `fe2o3-amqp`
//! over TLS. The rows of qdrouterd's handshake table are named as there.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::broker::{Broker, numbered};
use crate::support::certificates::{Authority, Identity, Validity};
use crate::support::daemon::{Daemon, config, ensure_none_of, hash_password};
use crate::support::device::{self, Reach, plain};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::sasl_profile::SaslProfile;
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const AMQP: &[u8; 8] = b"AMQP\x00\x01\x00\x00";
const SASL: &[u8; 8] = b"AMQP\x03\x01\x00\x00";
/// A sasl-outcome with code 1.
const REFUSED: &[u8] = b"\x00\x00\x00\x11\x02\x01\x00\x00\x00\x53\x44\xc0\x04\x02\x50\x01\x40";
/// A sasl-outcome with code 0.
const WELCOME: &[u8] = b"\x00\x00\x00\x11\x02\x01\x00\x00\x00\x53\x44\xc0\x04\x02\x50\x00\x40";
const PASSWORD: &str = "correct horse";

/// The files of a gateway with users and certificates.
struct Site {
    directory: TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Result<Self, Failure> {
        let site = Site {
            directory: TempDir::with_prefix("linkrouterd-")?,
            authority: Authority::new("Devices' Root", Validity::Current)?,
        };
        site.write_identity(&site.authority.issue(&["localhost"], Validity::Current)?)?;
        site.write("devices-ca.pem", &site.authority.pem())?;
        site.write("users", &hash_password("dev1", PASSWORD)?)?;
        Ok(site)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        Ok(std::fs::write(self.directory.path().join(name), text)?)
    }

    fn write_identity(&self, identity: &Identity) -> Result<(), Failure> {
        self.write("gateway.pem", &identity.certificate_pem)?;
        self.write("gateway.key", &identity.key_pem)
    }

    /// A configuration with one listener that has these lines; `DIR` stands for the site's directory.
    fn config(&self, listener: &str) -> String {
        let text = format!(
            "router {{\n    id: Router.A\n    saslPasswordFile: DIR/users\n}}\n\
             sslProfile {{\n    name: devices\n    certFile: DIR/gateway.pem\n    privateKeyFile: DIR/gateway.key\n    \
             caCertFile: DIR/devices-ca.pem\n    uidFormat: n\n}}\n\
             listener {{\n    host: 127.0.0.1\n    port: 0\n{listener}}}\n\
             log {{\n    module: DEFAULT\n    enable: trace+\n}}\n"
        );
        text.replace("DIR", &self.directory.path().display().to_string())
    }

    async fn start(&self, listener: &str) -> Result<Daemon, Failure> {
        Daemon::start(&self.config(listener), &self.authority.pem()).await
    }

    fn login(&self, router: &Daemon, profile: SaslProfile) -> Result<Reach, Failure> {
        Ok(Reach::Login(
            router.address(),
            self.authority.client_config()?,
            profile,
        ))
    }
}

/// A sasl-init.
fn init(mechanism: &str, response: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut fields = vec![0xa3, u8::try_from(mechanism.len())?];
    fields.extend(mechanism.as_bytes());
    fields.push(0xb0);
    fields.extend(u32::try_from(response.len())?.to_be_bytes());
    fields.extend(response);
    let mut body = vec![0x00, 0x53, 0x41, 0xd0];
    body.extend(u32::try_from(fields.len() + 4)?.to_be_bytes());
    body.extend(2_u32.to_be_bytes());
    body.extend(fields);
    let mut frame = u32::try_from(body.len() + 8)?.to_be_bytes().to_vec();
    frame.extend([2, 1, 0, 0]);
    frame.extend(body);
    Ok(frame)
}

/// A header, and an open with a container-id.
fn header_and_open() -> Vec<u8> {
    [
        AMQP.as_slice(),
        b"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01d",
    ]
    .concat()
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    Ok(TcpStream::connect(address).await?)
}

/// Everything that the router says until it ends the connection.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Failure> {
    let mut heard = Vec::new();
    // A reset is an end, too: of a peer that went on talking.
    let _ = bounded("the end of the connection", stream.read_to_end(&mut heard)).await?;
    Ok(heard)
}

/// Says something, and hears everything until the router ends the connection.
async fn say(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut stream = connect(address).await?;
    stream.write_all(bytes).await?;
    rest(&mut stream).await
}

/// Chooses a mechanism, and hears everything behind the offer until the router ends the connection.
async fn try_login(address: SocketAddr, mechanism: &str, response: &[u8]) -> Result<Vec<u8>, Failure> {
    let heard = say(address, &[SASL.as_slice(), &init(mechanism, response)?].concat()).await?;
    ensure(heard.starts_with(SASL), || format!("{}", heard.escape_ascii()))?;
    // The offer is a frame of its own.
    let size = heard
        .get(8..12)
        .and_then(|size| size.try_into().ok())
        .map_or(0, u32::from_be_bytes);
    let offer = 8 + usize::try_from(size)?;
    Ok(heard.get(offer..).unwrap_or_default().to_vec())
}

/// Logs in on a stream, and hears the open.
async fn be_served(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mechanism: &str,
    response: &[u8],
) -> Result<(), Failure> {
    stream
        .write_all(&[SASL.as_slice(), &init(mechanism, response)?].concat())
        .await?;
    let mut heard = Vec::new();
    while !heard.ends_with(WELCOME) {
        let more = bounded("the outcome", stream.read_buf(&mut heard)).await??;
        ensure(more > 0, || format!("the end behind {}", heard.escape_ascii()))?;
    }
    stream.write_all(&header_and_open()).await?;
    be_answered(stream).await
}

/// Hears a header and an open.
async fn be_answered(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), Failure> {
    let mut head = [0; 19];
    bounded("the header and open", stream.read_exact(&mut head)).await??;
    ensure(head.starts_with(AMQP) && head.ends_with(b"\x00\x53\x10"), || {
        format!("{}", head.escape_ascii())
    })
}

#[tokio::test]
async fn a_listener_that_demands_nothing() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site.start("").await?;
    let address = router.address();

    // authenticatePeer no, bare AMQP header.
    let mut bare = connect(address).await?;
    bare.write_all(&header_and_open()).await?;
    be_answered(&mut bare).await?;
    router.logged("encrypted=no auth=no user=anonymous").await?;
    // authenticatePeer no, SASL ANONYMOUS.
    be_served(&mut connect(address).await?, "ANONYMOUS", b"").await?;
    router
        .logged("encrypted=no auth=ANONYMOUS user=anonymous")
        .await?;
    be_served(
        &mut connect(address).await?,
        "PLAIN",
        format!("\0dev1\0{PASSWORD}").as_bytes(),
    )
    .await?;
    router.logged("encrypted=no auth=PLAIN user=dev1").await?;
    // authenticatePeer no, PLAIN with unknown user; and with a wrong password.
    for user in ["nobody", "dev1"] {
        let heard = try_login(address, "PLAIN", format!("\0{user}\0wr0ng-guess").as_bytes()).await?;
        ensure_eq("the outcome", heard.as_slice(), REFUSED)?;
        let line = format!("for user \"{user}\": unknown user or wrong password");
        let line = router.logged(&line).await?;
        for part in ["amqp:unauthorized-access", "Connection from 127.0.0.1:", "(info)"] {
            ensure(line.contains(part), || line.clone())?;
        }
    }
    // Mechanism not in the list.
    let heard = try_login(address, "CRAM-MD5", b"").await?;
    ensure_eq("the outcome", heard.as_slice(), REFUSED)?;
    router
        .logged("Client mechanism \"CRAM-MD5\" is not among those of this listener")
        .await?;
    // First bytes are no known header.
    ensure_eq(
        "to HTTP",
        say(address, b"GET / HTTP/1.1\r\n\r\n").await?.as_slice(),
        AMQP,
    )?;
    // AMQP 2 header or TLS hello on a plaintext listener.
    ensure_eq(
        "to AMQP 2",
        say(address, b"AMQP\x02\x01\x00\x00").await?.as_slice(),
        b"",
    )?;
    ensure_eq(
        "to TLS",
        say(address, b"\x16\x03\x01\x00\xf4\x01\x00\x00")
            .await?
            .as_slice(),
        b"",
    )?;
    router
        .logged("speaks TLS, which this listener has no sslProfile for")
        .await?;

    let log = router.stop().await?;
    ensure_none_of(&[PASSWORD.to_owned(), "wr0ng-guess".to_owned()], &log)
}

#[tokio::test]
async fn a_listener_that_demands_authentication() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site.start("    authenticatePeer: yes\n").await?;
    let address = router.address();

    // authenticatePeer yes, bare AMQP header.
    ensure_eq(
        "to a bare header",
        say(address, &header_and_open()).await?.as_slice(),
        b"",
    )?;
    let line = router.logged("amqp:connection:policy-error").await?;
    ensure(line.contains("Client skipped authentication - forbidden"), || {
        line.clone()
    })?;
    // ANONYMOUS is refused, whoever asks for it.
    ensure_eq(
        "the outcome",
        try_login(address, "ANONYMOUS", b"").await?.as_slice(),
        REFUSED,
    )?;
    be_served(
        &mut connect(address).await?,
        "PLAIN",
        format!("\0dev1\0{PASSWORD}").as_bytes(),
    )
    .await?;

    // Nonsense in the place of credentials, and frames that no SASL exchange needs.
    let huge = vec![b'x'; 12_000];
    for response in [
        &b""[..],
        b"dev1",
        b"\0\0\0\0\0",
        b"\0\0p",
        b"root\0dev1\0p",
        &huge,
    ] {
        ensure_eq(
            "the outcome",
            try_login(address, "PLAIN", response).await?.as_slice(),
            REFUSED,
        )?;
    }
    let heard = try_login(address, "PLAIN", &vec![b'x'; 40_000]).await?;
    ensure_eq("to a frame beyond maxFrameSize", heard.as_slice(), b"")?;
    be_served(
        &mut connect(address).await?,
        "PLAIN",
        format!("\0dev1\0{PASSWORD}").as_bytes(),
    )
    .await?;
    router.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_listener_with_tls_takes_clear_text_on_the_same_port() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site.start("    sslProfile: devices\n").await?;
    router
        .logged("Configured Listener: 127.0.0.1:0 proto=any, role=normal, sslProfile=devices")
        .await?;
    be_served(&mut connect(router.address()).await?, "ANONYMOUS", b"").await?;
    router.logged("encrypted=no auth=ANONYMOUS").await?;
    let mut encrypted = device::encrypt(router.address(), &site.authority.client_config()?).await?;
    be_served(&mut encrypted, "ANONYMOUS", b"").await?;
    router.logged("encrypted=TLSv1.3 auth=ANONYMOUS").await?;
    // Byte by byte, so that the first says nothing yet of the rest.
    let mut slow = connect(router.address()).await?;
    slow.set_nodelay(true)?;
    for byte in header_and_open() {
        slow.write_all(&[byte]).await?;
    }
    be_answered(&mut slow).await?;
    router.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_listener_that_demands_encryption() -> Result<(), Failure> {
    for attribute in ["requireSsl", "requireEncryption"] {
        let site = Site::new()?;
        let router = site
            .start(&format!("    sslProfile: devices\n    {attribute}: yes\n"))
            .await?;
        // requireSsl/requireEncryption with plaintext peer.
        for bytes in [header_and_open(), SASL.to_vec(), b"GET / HTTP/1.1\r\n".to_vec()] {
            ensure_eq(
                "in clear text",
                say(router.address(), &bytes).await?.as_slice(),
                b"",
            )?;
        }
        let line = router.logged("amqp:connection:policy-error").await?;
        ensure(line.contains("Client connection unencrypted - forbidden"), || {
            line.clone()
        })?;
        let mut encrypted = device::encrypt(router.address(), &site.authority.client_config()?).await?;
        be_served(&mut encrypted, "ANONYMOUS", b"").await?;
        // The connection is ended in order at a stop, TLS and all.
        router.stop().await?;
        let heard = rest(&mut encrypted).await?;
        ensure(heard.windows(3).any(|bytes| bytes == b"\x00\x53\x18"), || {
            format!("no close: {}", heard.escape_ascii())
        })?;
    }
    Ok(())
}

#[tokio::test]
async fn tls_that_goes_wrong_costs_nobody_else() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site
        .start("    sslProfile: devices\n    requireSsl: yes\n    initialHandshakeTimeoutSeconds: 1\n")
        .await?;
    let address = router.address();
    // A hundred that say nothing, and a hundred that say half of a hello.
    let mut waiting = Vec::new();
    for index in 0..200 {
        let mut stream = connect(address).await?;
        if index % 2 == 0 {
            stream
                .write_all(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03half")
                .await?;
        }
        waiting.push(stream);
    }
    // Rubbish that begins as TLS does.
    let heard = say(address, b"\x16\x03\x01\x00\x05rubbish and more").await?;
    ensure(!heard.starts_with(b"AMQP"), || {
        format!("{}", heard.escape_ascii())
    })?;
    router
        .logged("TLS handshake failed: what came is not TLS")
        .await?;
    // A hello of TLS 1.0, with its 32 random bytes and one cipher suite.
    let old = [
        b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01".as_slice(),
        &[7; 32],
        b"\x00\x00\x02\x00\x2f\x01\x00",
    ];
    say(address, &old.concat()).await?;
    router
        .logged("TLS handshake failed: the device's TLS is too old")
        .await?;
    let mut encrypted = device::encrypt(address, &site.authority.client_config()?).await?;
    be_served(&mut encrypted, "ANONYMOUS", b"").await?;
    // Their time runs from the accept.
    for mut stream in waiting {
        ensure_eq("to silence", rest(&mut stream).await?.as_slice(), b"")?;
    }
    router
        .logged("no open within the initial handshake time-out")
        .await?;
    // One that does not trust us says so.
    let strangers = Authority::new("Other Root", Validity::Current)?;
    let refused = device::encrypt(address, &strangers.client_config()?).await;
    ensure(refused.is_err(), || "connected".to_owned())?;
    router
        .logged("does it trust the authority of our certificate?")
        .await?;
    router.stop().await?;
    Ok(())
}

/// At night, when all devices are gone at once.
#[tokio::test]
async fn a_certificate_of_ours_that_has_expired_is_asked_after() -> Result<(), Failure> {
    let site = Site::new()?;
    site.write_identity(&site.authority.issue(&["localhost"], Validity::Expired)?)?;
    let router = site.start("    sslProfile: devices\n").await?;
    let refused = device::encrypt(router.address(), &site.authority.client_config()?).await;
    ensure(refused.is_err(), || "connected".to_owned())?;
    router
        .logged("(TLS alert CertificateExpired): has our certificate expired, or is its clock wrong?")
        .await?;
    router.stop().await?;
    Ok(())
}

#[tokio::test]
async fn those_who_have_not_finished_their_handshake_count() -> Result<(), Failure> {
    let site = Site::new()?;
    let text = site.config("    sslProfile: devices\n") + "policy {\n    maxConnections: 2\n}\n";
    let router = Daemon::start(&text, &site.authority.pem()).await?;
    let silent = connect(router.address()).await?;
    let mut half = connect(router.address()).await?;
    half.write_all(b"\x16\x03\x01\x01\x00\x01\x00").await?;
    router.logged(&format!("from {}", half.local_addr()?)).await?;
    ensure_eq(
        "the third",
        say(router.address(), &header_and_open()).await?.as_slice(),
        b"",
    )?;
    router
        .logged("based on global connection count. nConnections= 2")
        .await?;
    drop((silent, half));
    router.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_stop_ends_those_who_have_not_finished_their_handshake() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site
        .start("    sslProfile: devices\n    initialHandshakeTimeoutSeconds: 0\n")
        .await?;
    let silent = connect(router.address()).await?;
    let mut half = connect(router.address()).await?;
    half.write_all(b"\x16\x03\x01\x01\x00\x01\x00").await?;
    router.logged(&format!("from {}", half.local_addr()?)).await?;
    let log = router.stop().await?;
    ensure(
        !log.iter().any(|line| line.contains("did not close within")),
        || log.join("\n"),
    )?;
    for mut stream in [silent, half] {
        rest(&mut stream).await?;
    }
    Ok(())
}

/// A hub, a router before it whose listener has these lines, and what they stand on.
async fn with_hub(site: &Site, listener: &str) -> Result<(Broker, Daemon), Failure> {
    let identity = site.authority.issue(&["localhost"], Validity::Current)?;
    let hub = Broker::start(site.authority.server_config(&identity)?).await?;
    let directory = site.directory.path().display().to_string();
    let text = config(hub.address().port(), &["sink/"])
        .replace("    authenticatePeer: no\n", listener)
        .replace(
            "routerId: Router.A",
            "routerId: Router.A\n    saslPasswordFile: DIR/users",
        )
        + "ssl-profile {\n    name: devices\n    cert-file: DIR/gateway.pem\n    key-file: DIR/gateway.key\n    \
           cert-db: DIR/devices-ca.pem\n    uidFormat: n\n}\n";
    let router = Daemon::start(&text.replace("DIR", &directory), &site.authority.pem()).await?;
    Ok((hub, router))
}

/// A device sends one message to the hub.
async fn send_one(reach: &Reach, hub: &Broker, target: &str) -> Result<(), Failure> {
    let mut connection = reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", target).await?;
    let sent = message::data(numbered(1, 20_000));
    bounded("the outcome", sender.send(sent.clone())).await??;
    ensure(hub.messages(target, 1).await? == [sent], || {
        "the message was changed".to_owned()
    })?;
    device::close(connection).await
}

const STRICT: &str = "    sslProfile: devices\n    requireSsl: yes\n    authenticatePeer: yes\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_with_a_password_sends_over_tls() -> Result<(), Failure> {
    let site = Site::new()?;
    let (hub, router) = with_hub(&site, STRICT).await?;
    let reach = site.login(&router, plain("dev1", PASSWORD))?;
    send_one(&reach, &hub, "sink/accept/plain").await?;
    router
        .logged("encrypted=TLSv1.3 auth=PLAIN user=dev1 container_id=device")
        .await?;
    for (user, password) in [("dev1", "Correct horse"), ("dev2", PASSWORD)] {
        let refused = site.login(&router, plain(user, password))?.open("device").await;
        ensure(refused.is_err(), || format!("{user} got in"))?;
    }
    ensure_none_of(
        &[PASSWORD.to_owned(), "Correct horse".to_owned()],
        &router.stop().await?,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_with_a_certificate() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site.start(STRICT).await?;
    let identity = site.authority.issue_device("boiler", Validity::Current)?;
    let mut device = device::encrypt(router.address(), &site.authority.client_config_of(&identity)?).await?;
    be_served(&mut device, "EXTERNAL", b"").await?;
    router
        .logged("encrypted=TLSv1.3 auth=EXTERNAL user=boiler container_id=d")
        .await?;

    // Without a certificate there is no EXTERNAL, but there is PLAIN.
    let mut device = device::encrypt(router.address(), &site.authority.client_config()?).await?;
    device
        .write_all(&[SASL.as_slice(), &init("EXTERNAL", b"")?].concat())
        .await?;
    let heard = rest(&mut device).await?;
    ensure(heard.ends_with(REFUSED), || format!("{}", heard.escape_ascii()))?;
    let mut device = device::encrypt(router.address(), &site.authority.client_config()?).await?;
    be_served(&mut device, "PLAIN", format!("\0dev1\0{PASSWORD}").as_bytes()).await?;
    // A certificate of strangers, or of yesterday, ends the handshake, and the device is told why.
    let expired = site.authority.issue_device("boiler", Validity::Expired)?;
    let strangers = Authority::new("Other Root", Validity::Current)?;
    let stranger = strangers.issue_device("boiler", Validity::Current)?;
    for (identity, reason) in [
        (expired, "is not accepted"),
        (stranger, "none of the authorities"),
    ] {
        be_turned_away(&router, site.authority.client_config_of(&identity)?, reason).await?;
    }
    router.stop().await?;
    Ok(())
}

#[tokio::test]
async fn external_without_authenticate_peer_demands_a_certificate() -> Result<(), Failure> {
    let site = Site::new()?;
    let router = site
        .start("    sslProfile: devices\n    requireSsl: yes\n    saslMechanisms: EXTERNAL\n")
        .await?;
    let reason = "the device sent no certificate, and one is demanded";
    be_turned_away(&router, site.authority.client_config()?, reason).await?;
    router.stop().await?;
    Ok(())
}

/// The handshake ends with an alert that reaches the device, although that has gone on talking.
async fn be_turned_away(router: &Daemon, config: Arc<ClientConfig>, reason: &str) -> Result<(), Failure> {
    let mut device = device::encrypt(router.address(), &config).await?;
    // In TLS 1.3 a client has finished before its certificate is judged.
    device.write_all(&header_and_open()).await?;
    let end = bounded("the alert", device.read_to_end(&mut Vec::new())).await?;
    let told = end.err().map_or_else(String::new, |error| error.to_string());
    ensure(told.contains("received fatal alert"), || format!("told '{told}'"))?;
    router.logged(reason).await?;
    Ok(())
}

/// Passwords are checked aside: those who wait for it disturb nobody, and a device that is known passes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_wrong_passwords_keeps_nobody_out() -> Result<(), Failure> {
    const FLOOD: usize = 40;
    let site = Site::new()?;
    // An unknown user is made to cost as much as this one.
    let slow = format!(
        "slow:$pbkdf2-sha256$1000000${}${}\n",
        "00".repeat(16),
        "00".repeat(32)
    );
    site.write("users", &(hash_password("dev1", PASSWORD)? + &slow))?;
    let router = site
        .start("    authenticatePeer: yes\n    initialHandshakeTimeoutSeconds: 0\n")
        .await?;
    let login = format!("\0dev1\0{PASSWORD}");
    be_served(&mut connect(router.address()).await?, "PLAIN", login.as_bytes()).await?;

    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        let mut stream = connect(router.address()).await?;
        let bytes = [SASL.as_slice(), &init("PLAIN", b"\0nobody\0guess")?].concat();
        stream.write_all(&bytes).await?;
        // The offer: it has been heard.
        let mut header = [0; 8];
        bounded("the header", stream.read_exact(&mut header)).await??;
        flood.push(stream);
    }
    be_served(&mut connect(router.address()).await?, "PLAIN", login.as_bytes()).await?;
    let refused = router
        .log()
        .select(|line| line.contains("for user \"nobody\"").then_some(()))
        .len();
    ensure(refused < FLOOD, || {
        "the known device had to wait for all of them".to_owned()
    })?;
    // Nobody is waited for who has left.
    drop(flood);
    router.stop().await?;
    Ok(())
}

/// A start that cannot do what the file says says why, with file and line.
#[test]
fn what_cannot_be_used_stops_the_start() -> Result<(), Failure> {
    let cases: [(&str, &str, &str); 4] = [
        (
            "gateway.pem",
            "rubbish\n",
            ":12: error: listener: sslProfile devices cannot be used: ",
        ),
        ("gateway.key", "rubbish\n", "holds no private key in PEM form"),
        ("devices-ca.pem", "rubbish\n", "holds no certificate in PEM form"),
        (
            "users",
            "# users\ndev1:secret\n",
            "/users:2: error: the password file: must be USER:$pbkdf2-sha256$",
        ),
    ];
    for (file, content, expected) in cases {
        let site = Site::new()?;
        site.write(file, content)?;
        let path = site.directory.path().join("linkrouterd.conf");
        std::fs::write(&path, site.config(STRICT))?;
        for check in [true, false] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_linkrouterd"));
            command.arg("--conf").arg(&path);
            if check {
                command.arg("--check");
            }
            let output = command.stdin(Stdio::null()).output()?;
            ensure_eq(
                "the exit code",
                output.status.code(),
                Some(if check { 78 } else { 1 }),
            )?;
            let said = String::from_utf8([output.stdout, output.stderr].concat())?;
            ensure(said.contains(expected), || format!("{file}: {said}"))?;
            ensure(!said.contains("secret"), || said.clone())?;
        }
    }
    Ok(())
}

#[test]
fn a_certificate_of_another_key_stops_the_start() -> Result<(), Failure> {
    let site = Site::new()?;
    let other = site.authority.issue(&["localhost"], Validity::Current)?;
    site.write("gateway.key", &other.key_pem)?;
    let path = site.directory.path().join("linkrouterd.conf");
    std::fs::write(&path, site.config(STRICT))?;
    let output = Command::new(env!("CARGO_BIN_EXE_linkrouterd"))
        .arg("--check")
        .arg("--conf")
        .arg(&path)
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure(said.contains("gateway.pem with its private key"), || said.clone())
}
