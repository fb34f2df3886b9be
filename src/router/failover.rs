//! The hosts of one connector: which is dialed now, and which comes next.

use std::collections::VecDeque;
use std::time::Instant;

use super::connector::Connector;
use super::settings::{ConnectorSettings, HostPort};
use crate::amqp::failover::{self, FailoverServer, Scheme};
use crate::endpoint::limits;

/// Current host, then the hub's list, then what is configured; in turn, for ever.
///
/// A host stays in the rotation while it is configured or in the last list that a hub has announced. The configured
/// ones therefore never go, and an empty list forgets all others.
#[derive(Clone, Debug)]
pub(super) struct HostList {
    configured: Vec<HostPort>,
    announced: Vec<HostPort>,
    current: HostPort,
    others: VecDeque<HostPort>,
    /// Hosts that have failed in this round.
    failed: usize,
}

impl HostList {
    pub(super) fn new(settings: &ConnectorSettings) -> Self {
        let mut list = HostList {
            configured: std::iter::once(&settings.host)
                .chain(&settings.failover)
                .cloned()
                .collect(),
            announced: Vec::new(),
            current: settings.host.clone(),
            others: VecDeque::new(),
            failed: 0,
        };
        list.line_up();
        list
    }

    /// The host to dial, or that is connected.
    pub(super) const fn current(&self) -> &HostPort {
        &self.current
    }

    /// All hosts in the order in which they are tried, the current one first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &HostPort> {
        std::iter::once(&self.current).chain(&self.others)
    }

    /// The hub has announced these. `true`: it has not said so before.
    pub(super) fn announced(&mut self, hosts: Vec<HostPort>) -> bool {
        let is_new = self.announced != hosts;
        self.announced = hosts;
        self.line_up();
        is_new
    }

    /// The current host has failed. `true`: so have all others, since the last that held.
    pub(super) fn turn(&mut self) -> bool {
        if let Some(next) = self.others.pop_front() {
            let former = std::mem::replace(&mut self.current, next);
            if self.configured.contains(&former) || self.announced.contains(&former) {
                self.others.push_back(former);
            }
        }
        self.failed += 1;
        let is_round = self.failed > self.others.len();
        if is_round {
            self.failed = 0;
        }
        is_round
    }

    /// The current host has held: the next failure begins a round.
    pub(super) const fn begin_round(&mut self) {
        self.failed = 0;
    }

    fn line_up(&mut self) {
        self.others.clear();
        for host in self.announced.iter().chain(&self.configured) {
            if *host != self.current && !self.others.contains(host) {
                self.others.push_back(host.clone());
            }
        }
    }
}

/// Takes over the hosts that a hub announces, if the connector may believe them.
pub(super) fn adopt(connector: &mut Connector, properties: &[u8], now: Instant) {
    let entries = match failover::read(properties, limits::FAILOVER_HOSTS) {
        Ok(None) => return,
        Ok(Some(entries)) => entries,
        Err(fault) => {
            return warn(
                connector,
                format!("The hub's {} is ignored: {fault}", failover::KEY),
                now,
            );
        }
    };
    if !connector.settings.believes_failover_list {
        let line = format!(
            "The hub's {} is ignored: with verifyHostname: no it may come from anybody; failoverUrls of connector {} is \
             the place for hosts that stand in",
            failover::KEY,
            connector.settings.name
        );
        return warn(connector, line, now);
    }
    let mut hosts = Vec::new();
    for (position, entry) in entries.into_iter().enumerate() {
        match entry
            .map_err(|fault| fault.to_string())
            .and_then(|server| host_of(server, connector.settings.uses_tls))
        {
            Ok(host) if hosts.contains(&host) => {}
            Ok(host) => hosts.push(host),
            Err(fault) => {
                let entry = position + 1;
                let line = format!(
                    "Entry {entry} of the hub's {} is passed over: {fault}",
                    failover::KEY
                );
                warn(connector, line, now);
            }
        }
    }
    if connector.hosts.announced(hosts) {
        let order: Vec<String> = connector.hosts.iter().map(HostPort::to_string).collect();
        tracing::info!(
            target: "SERVER",
            "[C{}] Connector {} fails over in the order announced by the hub: {}",
            connector.number,
            connector.settings.name,
            order.join(", ")
        );
    }
}

/// TLS is what the connector says it is; a host that insists on another way is none for it.
fn host_of(server: FailoverServer, uses_tls: bool) -> Result<HostPort, String> {
    if server.scheme == Some(Scheme::Amqps) && !uses_tls {
        return Err("it wants TLS, and the connector has no sslProfile".to_owned());
    }
    let standard = if uses_tls { 5671 } else { 5672 };
    Ok(HostPort {
        host: server.host,
        port: server.port.unwrap_or(standard),
    })
}

fn warn(connector: &mut Connector, line: String, now: Instant) {
    if let Some(line) = connector.news(line, now) {
        tracing::warn!(target: "SERVER", "[C{}] {line}", connector.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::connector::tests::settings;

    fn host(name: &str) -> HostPort {
        HostPort {
            host: name.to_owned(),
            port: 5671,
        }
    }

    fn list(failover: &[&str]) -> HostList {
        let mut settings = settings();
        settings.failover = failover.iter().map(|name| host(name)).collect();
        HostList::new(&settings)
    }

    fn names(list: &HostList) -> Vec<&str> {
        list.iter().map(|host| host.host.as_str()).collect()
    }

    /// Regressions 726, 818 and 1008 of qdrouterd.
    #[test]
    fn the_current_host_then_the_announced_then_the_configured_in_turn() {
        let mut list = list(&["spare"]);
        assert_eq!(names(&list), ["hub", "spare"]);
        assert!(list.announced(vec![host("a"), host("spare"), host("b")]));
        assert_eq!(names(&list), ["hub", "a", "spare", "b"]);
        assert!(
            !list.announced(vec![host("a"), host("spare"), host("b")]),
            "nothing new"
        );
        let rounds: Vec<bool> = (0..4).map(|_| list.turn()).collect();
        assert_eq!(rounds, [false, false, false, true]);
        assert_eq!(names(&list), ["hub", "a", "spare", "b"]);
        list.turn();
        assert_eq!(names(&list), ["a", "spare", "b", "hub"]);
    }

    #[test]
    fn an_empty_list_forgets_what_was_announced_but_not_what_is_configured() {
        let mut list = list(&[]);
        list.announced(vec![host("a"), host("b")]);
        list.turn();
        assert_eq!(names(&list), ["a", "b", "hub"]);
        assert!(list.announced(Vec::new()));
        assert_eq!(names(&list), ["a", "hub"], "the connection to it is still there");
        list.turn();
        assert_eq!(names(&list), ["hub"]);
        assert!(list.turn(), "one host is a round by itself");
        assert_eq!(names(&list), ["hub"]);
    }
}
