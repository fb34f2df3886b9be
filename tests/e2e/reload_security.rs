//! SIGHUP and who may come in: users, certificates of listeners and the vhost policy are for connections to come, and
//! nothing of it reaches those who are there.

use std::path::Path;

use crate::support::broker::{Broker, Seen, numbered};
use crate::support::certificates::{Authority, Identity, Validity};
use crate::support::daemon::{Daemon, config, ensure_none_of, hash_password};
use crate::support::device::{self, Begun, Opened, Reach, ensure_disallowed, ensure_says, plain};
use crate::support::raw::{self, DialingBroker};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::Sender;
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::messaging::{Accepted, DeliveryState};
use fe2o3_amqp::types::performatives::{Attach, Disposition, Performative};
use tempfile::TempDir;

const PASSWORD: &str = "correct horse";
const UNCHANGED: &str = "connectors: 1 unchanged, 0 changed, 0 added, 0 removed";

/// A hub, and the files of a gateway that only lets in who has a password, over TLS.
struct Site {
    directory: TempDir,
    authority: Authority,
    hub: Broker,
}

impl Site {
    /// With these users, who all have the same password.
    async fn new(users: &[&str]) -> Result<Self, Failure> {
        let authority = Authority::new("Test Root", Validity::Current)?;
        let identity = authority.issue(&["localhost"], Validity::Current)?;
        let hub = Broker::start(authority.server_config(&identity)?).await?;
        let site = Site {
            directory: TempDir::with_prefix("linkrouterd-")?,
            authority,
            hub,
        };
        site.write_identity(&site.identity()?)?;
        site.write_users(users)?;
        Ok(site)
    }

    fn identity(&self) -> Result<Identity, Failure> {
        self.authority.issue(&["localhost"], Validity::Current)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        Ok(std::fs::write(self.path().join(name), text)?)
    }

    fn write_identity(&self, identity: &Identity) -> Result<(), Failure> {
        self.write("gateway.pem", &identity.certificate_pem)?;
        self.write("gateway.key", &identity.key_pem)
    }

    fn write_users(&self, users: &[&str]) -> Result<(), Failure> {
        let lines: Result<Vec<_>, _> = users.iter().map(|user| hash_password(user, PASSWORD)).collect();
        self.write("users", &lines?.concat())
    }

    /// Devices write `q/...`; the hub sees `sink/accept/q/...`. `more` is appended.
    fn config(&self, more: &str) -> String {
        let text = config(self.hub.address().port(), &[])
            .replace(
                "    authenticatePeer: no\n",
                "    authenticatePeer: yes\n    sslProfile: devices\n    requireSsl: yes\n",
            )
            .replace(
                "routerId: Router.A",
                "routerId: Router.A\n    saslPasswordFile: DIR/users",
            );
        let text = format!(
            "{text}\nsslProfile {{\n    name: devices\n    certFile: DIR/gateway.pem\n    \
             privateKeyFile: DIR/gateway.key\n}}\n\
             linkRoute {{\n    prefix: q\n    connection: IOTHUB\n    dir: in\n    \
             addExternalPrefix: sink/accept/\n}}\n{more}"
        );
        text.replace("DIR", &self.path().display().to_string())
    }

    async fn start(&self, config: &str) -> Result<Daemon, Failure> {
        Daemon::start(config, &self.authority.pem()).await
    }

    fn reach(&self, daemon: &Daemon, user: &str) -> Result<Reach, Failure> {
        let tls = self.authority.client_config()?;
        Ok(Reach::Login(daemon.address(), tls, plain(user, PASSWORD)))
    }

    /// A device of this user, with one link.
    async fn device(&self, daemon: &Daemon, user: &str, target: &str) -> Result<Device, Failure> {
        let mut connection = self.reach(daemon, user)?.open(user).await?;
        let mut session = device::begin(&mut connection).await?;
        let sender = device::sender(&mut session, target, target).await?;
        Ok(Device {
            connection,
            session,
            sender,
            target: target.to_owned(),
            sent: 0,
        })
    }

    async fn ensure_refused(&self, daemon: &Daemon, user: &str) -> Result<(), Failure> {
        let refused = self.reach(daemon, user)?.open(user).await;
        ensure(refused.is_err(), || format!("{user} got in"))?;
        let line = format!("for user \"{user}\": unknown user or wrong password");
        daemon.logged(&line).await.map(drop)
    }

    /// The certificate that a new connection sees.
    async fn ensure_shown(&self, daemon: &Daemon, what: &str, expected: &Identity) -> Result<(), Failure> {
        let stream = device::encrypt(daemon.address(), &self.authority.client_config()?).await?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        ensure(shown == Some(&expected.certificate), || {
            format!("{what}: another certificate")
        })
    }

    /// Stops the router. The hub has never had another connection than the first.
    async fn stop(self, daemon: Daemon) -> Result<Vec<String>, Failure> {
        let log = daemon.stop().await?;
        let opened = self
            .hub
            .journal()
            .select(|seen| matches!(seen, Seen::Opened(_)).then_some(()));
        ensure_eq("connections to the hub", opened.len(), 1)?;
        ensure_none_of(&[PASSWORD.to_owned()], &log)?;
        Ok(log)
    }
}

/// A device whose link is to outlive reloads.
struct Device {
    connection: Opened,
    session: Begun,
    sender: Sender,
    target: String,
    sent: usize,
}

impl Device {
    /// Sends one more message on the link that was there from the beginning.
    async fn send(&mut self, hub: &Broker) -> Result<(), Failure> {
        self.sent += 1;
        let sent = message::data(numbered(u32::try_from(self.sent)?, 5_000));
        let outcome = bounded("the outcome", self.sender.send(sent.clone())).await??;
        ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
        let received = hub
            .messages(&format!("sink/accept/{}", self.target), self.sent)
            .await?;
        ensure_eq("messages", received.len(), self.sent)?;
        ensure(received.last() == Some(&sent), || {
            "the message was changed".to_owned()
        })
    }

    async fn close(self) -> Result<(), Failure> {
        // The library wants links and sessions to be there until then.
        let Device {
            connection,
            session: _session,
            sender: _sender,
            ..
        } = self;
        device::close(connection).await
    }
}

async fn reloaded(daemon: &Daemon, count: usize, part: &str) -> Result<(), Failure> {
    let summary = daemon.reloaded(count).await?;
    ensure(summary.contains(part), || summary.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_for_log_ins_to_come() -> Result<(), Failure> {
    let site = Site::new(&["dev1", "dev2"]).await?;
    let daemon = site.start(&site.config("")).await?;
    let mut device = site.device(&daemon, "dev1", "q/users").await?;
    device.send(&site.hub).await?;
    site.ensure_refused(&daemon, "dev3").await?;

    // A right password of before is forgotten, too.
    site.write_users(&["dev2", "dev3"])?;
    daemon.signal("HUP").await?;
    reloaded(&daemon, 1, UNCHANGED).await?;
    site.ensure_refused(&daemon, "dev1").await?;
    for user in ["dev2", "dev3"] {
        let mut other = site.device(&daemon, user, &format!("q/{user}")).await?;
        other.send(&site.hub).await?;
        other.close().await?;
    }
    // Who is there stays, and may attach.
    device.send(&site.hub).await?;
    let mut more = device::sender(&mut device.session, "more", "q/more").await?;
    let outcome = bounded("the outcome", more.send(message::data("x"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;

    // A line that is none changes nothing.
    site.write("users", &(hash_password("dev1", PASSWORD)? + "dev4:secret\n"))?;
    daemon.signal("HUP").await?;
    reloaded(&daemon, 2, "nothing changed").await?;
    let line = daemon.logged("/users:2: ").await?;
    ensure(line.contains("(error)"), || line.clone())?;
    let other = site.device(&daemon, "dev3", "q/still").await?;
    let refused = site.reach(&daemon, "dev1")?.open("dev1").await;
    ensure(refused.is_err(), || "dev1 got in".to_owned())?;
    other.close().await?;
    device.send(&site.hub).await?;
    device.close().await?;
    let log = site.stop(daemon).await?;
    ensure_none_of(&["dev4:secret".to_owned()], &log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_after_a_reload_and_a_broken_one_never() -> Result<(), Failure> {
    let site = Site::new(&["dev1"]).await?;
    let first = site.identity()?;
    site.write_identity(&first)?;
    let daemon = site.start(&site.config("")).await?;
    site.ensure_shown(&daemon, "at the start", &first).await?;
    let mut device = site.device(&daemon, "dev1", "q/certificate").await?;

    let second = site.identity()?;
    site.write_identity(&second)?;
    site.ensure_shown(&daemon, "before the reload", &first).await?;
    daemon.signal("HUP").await?;
    reloaded(&daemon, 1, UNCHANGED).await?;
    site.ensure_shown(&daemon, "after it", &second).await?;
    device.send(&site.hub).await?;

    let third = site.identity()?;
    let broken = [
        "rubbish\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        // Written, but not yet the key that belongs to it.
        third.certificate_pem.as_str(),
    ];
    for (index, text) in broken.into_iter().enumerate() {
        site.write("gateway.pem", text)?;
        daemon.signal("HUP").await?;
        reloaded(&daemon, index + 2, "nothing changed").await?;
        let named = |line: &String| {
            let parts = ["(error)", "sslProfile devices", "/gateway.pem"];
            parts.iter().all(|part| line.contains(part)).then_some(())
        };
        daemon
            .log()
            .find_all("an error with the file's name", index + 1, named)
            .await?;
        site.ensure_shown(&daemon, "with a broken file", &second).await?;
        let mut other = site.device(&daemon, "dev1", &format!("q/other{index}")).await?;
        other.send(&site.hub).await?;
        other.close().await?;
    }
    site.write_identity(&third)?;
    daemon.signal("HUP").await?;
    reloaded(&daemon, 5, UNCHANGED).await?;
    site.ensure_shown(&daemon, "mended", &third).await?;
    device.send(&site.hub).await?;
    device.close().await?;
    site.stop(daemon).await.map(drop)
}

/// The listener stays open until a restart, and so must not need its files again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_was_removed_with_its_certificate_holds_nothing_up() -> Result<(), Failure> {
    let site = Site::new(&["dev1"]).await?;
    let first = site.identity()?;
    site.write_identity(&first)?;
    let text = site.config("");
    let daemon = site.start(&text).await?;
    let mut device = site.device(&daemon, "dev1", "q/removed").await?;

    let (before, rest) = text
        .split_once("listener {\n")
        .ok_or_else(|| Failure::new("no listener"))?;
    let (_, after) = rest
        .split_once("}\n")
        .ok_or_else(|| Failure::new("no end of the listener"))?;
    let text = format!("{before}{after}").replace(
        "addExternalPrefix: sink/accept/",
        "addExternalPrefix: sink/reject/",
    );
    let (kept, profile) = text
        .split_once("sslProfile {\n")
        .ok_or_else(|| Failure::new("no profile"))?;
    let (_, after) = profile
        .split_once("}\n")
        .ok_or_else(|| Failure::new("no end of the profile"))?;
    for file in ["gateway.pem", "gateway.key"] {
        std::fs::remove_file(site.path().join(file))?;
    }
    daemon.reload(&format!("{kept}{after}")).await?;
    reloaded(&daemon, 1, UNCHANGED).await?;
    let line = daemon.logged("is still open: restart").await?;
    ensure(line.contains("(warning)"), || line.clone())?;
    site.ensure_shown(&daemon, "on the open listener", &first).await?;
    device.send(&site.hub).await?;
    // What else the file says counts.
    let mut other = device::sender(&mut device.session, "other", "q/rejected").await?;
    let outcome = bounded("the outcome", other.send(message::data("x"))).await??;
    ensure(outcome.is_rejected(), || format!("{outcome:?}"))?;
    device.close().await?;
    site.stop(daemon).await.map(drop)
}

/// A policy with one vhost for all devices.
fn policy(all: u32, of_vhost: u32, targets: &str) -> String {
    format!(
        "policy {{\n    enableVhostPolicy: yes\n    maxConnections: {all}\n}}\n\
         vhost {{\n    hostname: localhost\n    maxConnections: {of_vhost}\n    groups: {{\n        \"devices\": {{\n            \
         \"users\": \"*\",\n            \"remoteHosts\": \"127.0.0.1\",\n            \"targets\": \"{targets}\"\n        \
         }}\n    }}\n}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_for_connections_to_come() -> Result<(), Failure> {
    let site = Site::new(&["dev1", "dev2"]).await?;
    let daemon = site.start(&site.config(&policy(100, 100, "q/*"))).await?;
    let mut first = site.device(&daemon, "dev1", "q/common/a").await?;
    let mut gone = site.device(&daemon, "dev2", "q/common/b").await?;
    gone.send(&site.hub).await?;
    gone.close().await?;

    daemon
        .reload(&site.config(&policy(100, 2, "q/${user}/*")))
        .await?;
    reloaded(&daemon, 1, UNCHANGED).await?;
    // Who is there keeps what he was admitted to.
    first.send(&site.hub).await?;
    let mut more = device::sender(&mut first.session, "more", "q/common/c").await?;
    let outcome = bounded("the outcome", more.send(message::data("x"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
    // Who comes is held to the new one.
    let mut second = site.device(&daemon, "dev2", "q/dev2/a").await?;
    second.send(&site.hub).await?;
    for target in ["q/common/b", "q/dev1/a", "q/dev22/a"] {
        let mut session = device::begin(&mut second.connection).await?;
        let denied = device::sender(&mut session, target, target).await;
        ensure_says(
            target,
            denied,
            &["UnauthorizedAccess", "link disallowed by local policy"],
        )?;
    }
    // And counts, together with who was there.
    ensure_disallowed(site.reach(&daemon, "dev1")?.open("third").await).await?;
    daemon
        .logged("the vhost's maxConnections are connected already")
        .await?;

    // The number for all vhosts together. Those above it stay.
    daemon.reload(&site.config(&policy(1, 100, "q/*"))).await?;
    reloaded(&daemon, 2, UNCHANGED).await?;
    let denied = site.reach(&daemon, "dev1")?.open("third").await;
    ensure(denied.is_err(), || "a third connection".to_owned())?;
    daemon
        .logged("based on global connection count. nConnections= 2")
        .await?;
    first.send(&site.hub).await?;
    second.send(&site.hub).await?;

    // Without a policy everything goes again.
    daemon.reload(&site.config("")).await?;
    reloaded(&daemon, 3, UNCHANGED).await?;
    let mut third = site.device(&daemon, "dev2", "q/common/d").await?;
    third.send(&site.hub).await?;
    for mut device in [first, second, third] {
        device.send(&site.hub).await?;
        device.close().await?;
    }
    site.stop(daemon).await.map(drop)
}

const BROKER_LISTENER: &str = "\
router {
    id: Router.A
    saslPasswordFile: DIR/users
}
listener {
    host: 127.0.0.1
    port: 0
}
listener {
    name: BROKERS
    host: 127.0.0.1
    port: 0
    role: route-container
}
linkRoute {
    prefix: queue
    connection: BROKERS
    direction: in
}
log {
    module: DEFAULT
    enable: trace+
}
";

/// The broker answers one attach, and gives credit.
async fn serve_attach(broker: &mut DialingBroker) -> Result<Attach, Failure> {
    let attach = broker.attached().await?;
    broker
        .0
        .send(Performative::Flow(raw::credit(attach.handle.0, 5, 0, 0)))?;
    Ok(attach)
}

/// The broker accepts one message.
async fn serve_message(broker: &mut DialingBroker) -> Result<(), Failure> {
    let transfer = broker
        .0
        .expect("a message", |frame| match frame {
            Performative::Transfer(transfer) => Some(transfer),
            _ => None,
        })
        .await?;
    broker.0.send(Performative::Disposition(Disposition {
        role: Role::Receiver,
        first: transfer.delivery_id.unwrap_or_default(),
        last: None,
        settled: true,
        state: Some(DeliveryState::Accepted(Accepted {})),
        batchable: false,
    }))
}

async fn deliver(sender: &mut Sender, broker: &mut DialingBroker) -> Result<(), Failure> {
    let sent = bounded("the outcome", sender.send(message::data("x")));
    let (sent, served) = tokio::join!(sent, serve_message(broker));
    served?;
    let outcome = sent??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_connected_stays_and_its_routes_stay_in_use() -> Result<(), Failure> {
    let site = Site::new(&["dev1"]).await?;
    let text = BROKER_LISTENER.replace("DIR", &site.path().display().to_string());
    let daemon = site.start(&text).await?;
    let addresses = daemon.addresses(2).await?;
    let mut broker = DialingBroker::connect(addresses[1], "broker-1").await?;
    daemon
        .logged("Link Route Activated 'linkRoute/0' on connection BROKERS")
        .await?;
    let mut connection = Reach::Plain(addresses[0]).open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let served = async {
        broker.begun().await?;
        serve_attach(&mut broker).await
    };
    let (sender, served) = tokio::join!(device::sender(&mut session, "first", "queue/a"), served);
    served?;
    let mut first = sender?;
    deliver(&mut first, &mut broker).await?;

    // Users, policy and routes change; the broker and its first route do not.
    site.write_users(&["dev2"])?;
    let changed = format!(
        "{text}linkRoute {{\n    prefix: fresh\n    containerId: broker-1\n    direction: in\n}}\n{}",
        policy(2, 1, "nothing")
    );
    daemon.reload(&changed).await?;
    reloaded(&daemon, 1, "2 routes; connectors: 0 unchanged").await?;
    daemon
        .logged("Link Route Activated 'linkRoute/1' on container broker-1")
        .await?;
    deliver(&mut first, &mut broker).await?;
    for (name, target) in [("second", "queue/b"), ("third", "fresh/c")] {
        let (sender, served) = tokio::join!(
            device::sender(&mut session, name, target),
            serve_attach(&mut broker)
        );
        let (mut sender, attach) = (sender?, served?);
        ensure_eq("the name", attach.name, format!("{name}@device"))?;
        deliver(&mut sender, &mut broker).await?;
    }
    device::close(connection).await?;
    let ended = async {
        broker
            .0
            .expect("the close", |frame| match frame {
                Performative::Close(close) => Some(close),
                _ => None,
            })
            .await?;
        broker
            .0
            .send(Performative::Close(fe2o3_amqp::types::performatives::Close {
                error: None,
            }))
    };
    let (ended, log) = tokio::join!(ended, daemon.stop());
    ended?;
    let log = log?;
    for trouble in ["Link Route Deactivated", "Link lost"] {
        let first = log.iter().position(|line| line.contains(trouble));
        let stop = log.iter().position(|line| line.contains("SIGTERM"));
        ensure(first.is_none_or(|first| Some(first) > stop), || log.join("\n"))?;
    }
    Ok(())
}
