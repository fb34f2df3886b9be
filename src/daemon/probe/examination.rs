//! One connector, host by host and step by step.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::clock;
use super::exchange::{Exchange, Failure, Farewell, News};
use super::sheet::{Mark, Sheet, Step};
use crate::endpoint::connection::Connection;
use crate::endpoint::trace::Tracing;
use crate::router::settings::{ConnectorId, ConnectorSettings, HostPort};
use crate::router::{DialTarget, explain, introduction};
use crate::shard::dial::{self, Attempts, DialSettings, Reached, TimeLimit, bare_host};
use crate::shard::tls::{self, CertificateFacts, TlsClient, TlsStream, day};

/// How long each step may take.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(10);
/// A certificate that ends so soon deserves a look.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// One connector, and what the daemon says of itself to its peer.
pub(super) struct Examination {
    pub(super) container_id: String,
    pub(super) connector: ConnectorSettings,
    pub(super) way: DialSettings,
}

impl Examination {
    /// Looks at every host. `true`: the connector has one that is well.
    pub(super) async fn of_all_hosts(&self, sheet: &Sheet) -> bool {
        let own = std::iter::once(&self.connector.host);
        let mut hosts: Vec<&HostPort> = Vec::new();
        for host in own.chain(&self.connector.failover) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let name = &self.connector.name;
        let mut first_well = None;
        for (index, host) in hosts.iter().enumerate() {
            match hosts.len() {
                1 => sheet.title(&format!("connector {name}: {host}")),
                count => sheet.title(&format!(
                    "connector {name}, host {} of {count}: {host}",
                    index + 1
                )),
            }
            if self.of_host(host, sheet).await.is_some() {
                first_well = first_well.or(Some(host));
            }
        }
        if hosts.len() > 1 {
            sheet.title(&match first_well {
                Some(host) => {
                    format!("connector {name} would use {host}, the first of its hosts that is well")
                }
                None => format!("connector {name}: none of its hosts is well"),
            });
        }
        first_well.is_some()
    }

    /// `None`: it is not well, and the sheet says why.
    async fn of_host(&self, host: &HostPort, sheet: &Sheet) -> Option<()> {
        let target = DialTarget {
            configured: ConnectorId(0),
            host: host.clone(),
            server_name: self.connector.name_of(host).to_owned(),
            limit: STEP_LIMIT,
        };
        let way = self.way.towards(&target);
        let addresses = look_up(&way, sheet).await?;
        let reached = self.reach(&addresses, sheet).await?;
        match &way.tls {
            Some(settings) => {
                let load = timeout(STEP_LIMIT, TlsClient::load(settings)).await;
                let load =
                    load.map_err(|_| "reading the certificate files took too long: on a network drive?");
                let client = sheet.good(Step::Tls, sheet.good(Step::Tls, load)?)?;
                let stream = encrypt(&client, reached, sheet).await?;
                self.speak(stream, &target, sheet).await
            }
            None => {
                let text = "none, everything goes in clear text: the connector has no sslProfile";
                sheet.step(Step::Tls, Mark::Ok, text);
                self.speak(reached.stream, &target, sheet).await
            }
        }
    }

    async fn reach(&self, addresses: &[SocketAddr], sheet: &Sheet) -> Option<Reached> {
        let started = Instant::now();
        let reached = dial::reach(addresses, TimeLimit::from_now(STEP_LIMIT)).await;
        let Some(reached) = sheet.good(Step::Tcp, reached) else {
            sheet.detail(&format!(
                "check host and port of connector {}, that the peer is up, and that this machine's network is",
                self.connector.name
            ));
            return None;
        };
        let text = format!("connected to {} in {}", reached.address, millis(started));
        match reached.failed.as_slice() {
            [] => sheet.step(Step::Tcp, Mark::Ok, &text),
            failed => {
                sheet.step(Step::Tcp, Mark::Note, &text);
                sheet.detail(&format!("before that: {}", Attempts(failed)));
            }
        }
        Some(reached)
    }

    // ---- AMQP ----------------------------------------------------------------------------------------------------

    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        transport: S,
        target: &DialTarget,
        sheet: &Sheet,
    ) -> Option<()> {
        let (side, announce) = introduction(&self.container_id, &self.connector, &target.server_name);
        let connection = Connection::new(1, side, announce, None, Tracing::All, Instant::now().into_std());
        let mut exchange = Exchange::new(transport, connection);
        if self.converse(&mut exchange, target, sheet).await.is_none() {
            exchange.give_up().await;
            return None;
        }
        match exchange.close().await {
            Farewell::Answered => sheet.step(Step::Close, Mark::Ok, "closed by both sides"),
            Farewell::Unanswered => sheet.step(Step::Close, Mark::Note, "the peer did not answer our close"),
        }
        Some(())
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        exchange: &mut Exchange<S>,
        target: &DialTarget,
        sheet: &Sheet,
    ) -> Option<()> {
        self.authenticate(exchange, sheet).await?;
        self.open(exchange, target, sheet).await?;
        self.begin(exchange, target, sheet).await
    }

    async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        exchange: &mut Exchange<S>,
        sheet: &Sheet,
    ) -> Option<()> {
        let started = Instant::now();
        let mut offered = None;
        let outcome = timeout(STEP_LIMIT, async {
            loop {
                match exchange.next().await? {
                    News::Offered(mechanisms) => offered = Some(mechanisms.join(" ")),
                    News::Admitted => return Ok(()),
                    // None of these comes before the end of SASL.
                    News::Opened(_) | News::Begun | News::Closed(_) => {}
                }
            }
        })
        .await;
        let chosen = exchange.sasl_mechanism();
        let trouble = match (outcome, &offered) {
            (Ok(Ok(())), _) => {
                let place = if chosen == "PLAIN" && !self.connector.uses_tls {
                    ", user and password in clear text"
                } else {
                    ""
                };
                let text = format!("{chosen} is accepted{place}, in {}", millis(started));
                sheet.step(Step::Sasl, Mark::Ok, &text);
                sheet.detail(&format!("offered: {}", offered.unwrap_or_default()));
                return Some(());
            }
            (Err(_), None) => format!(
                "no answer within {} s; {}",
                STEP_LIMIT.as_secs(),
                self.other_protocol()
            ),
            (Ok(Err(Failure::Ended)), None) => {
                format!(
                    "the peer hung up without a word of AMQP; {}",
                    self.other_protocol()
                )
            }
            (Err(_), Some(_)) => format!(
                "no answer to {chosen} within {} s: the peer seems to be in trouble itself",
                STEP_LIMIT.as_secs()
            ),
            (Ok(Err(Failure::Ended)), Some(_)) => format!(
                "the peer hung up instead of answering to {chosen}; check saslUsername, saslPassword and \
                 saslMechanisms of connector {}",
                self.connector.name
            ),
            (Ok(Err(failure)), _) => self.explain(failure),
        };
        sheet.step(Step::Sasl, Mark::Failed, &trouble);
        if let Some(offered) = offered {
            sheet.detail(&format!("offered: {offered}; chosen: {chosen}"));
        }
        None
    }

    async fn open<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        exchange: &mut Exchange<S>,
        target: &DialTarget,
        sheet: &Sheet,
    ) -> Option<()> {
        let started = Instant::now();
        let outcome = timeout(STEP_LIMIT, async {
            loop {
                match exchange.next().await? {
                    News::Opened(open) => return Ok(Ok(open)),
                    News::Closed(reason) => return Ok(Err(reason)),
                    News::Offered(_) | News::Admitted | News::Begun => {}
                }
            }
        })
        .await;
        let open = sheet.good(Step::Open, self.answer(outcome, "open", target))?;
        let text = format!("the peer answers in {}", millis(started));
        sheet.step(Step::Open, Mark::Ok, &text);
        sheet.detail(&open.to_string());
        for (name, value) in &open.others {
            sheet.detail(&format!("{name}: {value}"));
        }
        Some(())
    }

    /// A peer may open the connection only to close it, with a reason; one that begins a session is in earnest.
    async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        exchange: &mut Exchange<S>,
        target: &DialTarget,
        sheet: &Sheet,
    ) -> Option<()> {
        exchange.begin();
        let outcome = timeout(STEP_LIMIT, async {
            loop {
                match exchange.next().await? {
                    News::Begun => return Ok(Ok(())),
                    News::Closed(reason) => return Ok(Err(reason)),
                    News::Offered(_) | News::Admitted | News::Opened(_) => {}
                }
            }
        })
        .await;
        sheet.good(Step::Session, self.answer(outcome, "begin", target))?;
        sheet.step(Step::Session, Mark::Ok, "begun, as for a device");
        Some(())
    }

    /// What came of a performative of ours.
    fn answer<T, E>(
        &self,
        outcome: Result<Result<Result<T, Option<String>>, Failure>, E>,
        what: &str,
        target: &DialTarget,
    ) -> Result<T, String> {
        match outcome {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(reason))) => Err(format!(
                "closed by the peer: {}; we asked for '{}' (serverName, or else host, of connector {})",
                reason.as_deref().unwrap_or("no error"),
                target.server_name,
                self.connector.name
            )),
            Ok(Err(Failure::Ended)) => Err(format!("the peer hung up instead of answering our {what}")),
            Ok(Err(failure)) => Err(self.explain(failure)),
            Err(_) => Err(format!(
                "no answer to our {what} within {} s",
                STEP_LIMIT.as_secs()
            )),
        }
    }

    fn explain(&self, failure: Failure) -> String {
        match failure {
            Failure::Fault(error) => explain(&error, &self.connector),
            Failure::Lost(error) => tls::explain_loss(error),
            Failure::Ended => "the peer hung up".to_owned(),
        }
    }

    /// Why a peer may not speak AMQP with us.
    fn other_protocol(&self) -> String {
        let name = &self.connector.name;
        if self.connector.uses_tls {
            let certificate = match self.connector.has_client_certificate {
                true => "does it accept our client certificate",
                false => "does it demand a client certificate",
            };
            format!("check the port of connector {name}: is it one for AMQP, and {certificate}?")
        } else {
            format!(
                "check the port of connector {name}: is it one for AMQP, or does it want TLS (sslProfile)?"
            )
        }
    }
}

async fn look_up(way: &DialSettings, sheet: &Sheet) -> Option<Vec<SocketAddr>> {
    let started = Instant::now();
    let addresses = sheet.good(
        Step::Dns,
        dial::resolve(way, TimeLimit::from_now(STEP_LIMIT)).await,
    )?;
    let host = bare_host(&way.host);
    if host.parse::<std::net::IpAddr>().is_ok() {
        sheet.step(Step::Dns, Mark::Ok, "nothing to look up, the host is an address");
        return Some(addresses);
    }
    let list: Vec<_> = addresses
        .iter()
        .map(|address| {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            format!("{} ({family})", address.ip())
        })
        .collect();
    let text = format!("{host} is {}, in {}", list.join(", "), millis(started));
    sheet.step(Step::Dns, Mark::Ok, &text);
    Some(addresses)
}

// ---- TLS ---------------------------------------------------------------------------------------------------------

async fn encrypt(client: &TlsClient, reached: Reached, sheet: &Sheet) -> Option<TlsStream> {
    let started = Instant::now();
    let outcome = dial::encrypt(client, reached, TimeLimit::from_now(STEP_LIMIT)).await;
    match &outcome {
        Ok(stream) => {
            let version = tls::negotiated_version(stream).unwrap_or_default();
            let cipher = tls::negotiated_cipher(stream).unwrap_or_default();
            let text = format!("{version} with {cipher}, in {}", millis(started));
            sheet.step(Step::Tls, Mark::Ok, &text);
        }
        Err(error) => sheet.step(Step::Tls, Mark::Failed, &error.to_string()),
    }
    let now = SystemTime::now();
    describe_trust(client, sheet);
    let chain: Vec<_> = describe_chain(client, now, sheet);
    if let Some(own) = client.own_certificate() {
        sheet.detail(&format!("our own certificate: {}", described(&own, now)));
    }
    let (mark, text) = clock::judge(&chain, now);
    sheet.step(Step::Clock, mark, &text);
    outcome.ok()
}

fn describe_trust(client: &TlsClient, sheet: &Sheet) {
    sheet.detail(&match &client.settings().ca_file {
        None => "trusted: the built-in public authorities".to_owned(),
        Some(path) => {
            let count = client.authorities().len();
            let plural = if count == 1 { "y" } else { "ies" };
            format!("trusted: CA file {}, {count} authorit{plural}", path.display())
        }
    });
}

fn describe_chain(client: &TlsClient, now: SystemTime, sheet: &Sheet) -> Vec<CertificateFacts> {
    let presented = client.presented();
    for (index, certificate) in presented.iter().enumerate() {
        let text = match certificate {
            Some(certificate) => described(certificate, now),
            None => "cannot be read".to_owned(),
        };
        sheet.detail(&format!("certificate {}: {text}", index + 1));
    }
    let settings = client.settings();
    let wanted = &settings.server_name;
    match (client.fits_name(), settings.verify_hostname) {
        (None, _) => {}
        (Some(true), _) => sheet.detail(&format!("the name '{wanted}' fits the certificate")),
        (Some(false), true) => sheet.detail(&format!("the name '{wanted}' does not fit the certificate")),
        (Some(false), false) => sheet.detail(&format!(
            "the name '{wanted}' does not fit the certificate, which verifyHostname: no allows"
        )),
    }
    presented.into_iter().flatten().collect()
}

/// `'hub', issued by 'ca', 2020-08-22 to 2099-08-22, 26567 days left`
fn described(certificate: &CertificateFacts, now: SystemTime) -> String {
    let CertificateFacts {
        subject,
        issuer,
        not_before,
        not_after,
        hosts,
    } = certificate;
    let hosts = match hosts.as_slice() {
        [] => String::new(),
        hosts => format!(" for {}", hosts.join(", ")),
    };
    let life = match (not_before.duration_since(now), not_after.duration_since(now)) {
        (Ok(wait), _) if !wait.is_zero() => format!("NOT VALID before {} from now", clock::span(wait)),
        (_, Ok(left)) if left < SOON => format!("only {} left: renew it", clock::span(left)),
        (_, Ok(left)) => format!("{} left", clock::span(left)),
        (_, Err(over)) => format!("EXPIRED {} ago", clock::span(over.duration())),
    };
    format!(
        "'{subject}'{hosts}, issued by '{issuer}', {} to {}, {life}",
        day(*not_before),
        day(*not_after)
    )
}

/// The time since then: `24 ms`.
fn millis(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}
