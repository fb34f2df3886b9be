//! The connections of one connector. A hub bounds what one connection carries: tokens, sessions, links. When one is full
//! the connector has another, and no sooner.
//!
//! ```text
//!   connector (configured) <--head-- second connection <-- ... at most poolSize, made when all others are full,
//!                                                              gone when nobody has used it for a while
//! ```
//!
//! All of them are entries among the connectors, with the same settings; only the first may be persistent. A device is
//! pinned: all of its links go to one of them, because its tokens are there.

use std::fmt;
use std::time::Instant;

use super::connection::index;
use super::connector::{Connector, State};
use super::settings::{ConnectorId, ConnectorRole, ConnectorSettings, Destination};
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::endpoint::limits;

/// Which connection of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// This one.
    At(ConnectorId),
    /// One that is yet to be made: all others are full.
    Next,
    /// None: there are as many as there may be, and all are full.
    Full,
}

/// Why a connection takes no other device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many tokens as are configured.
    Tokens(usize),
    /// The hub has said so.
    TokensRefused,
    Links(usize),
    Channels(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Full::Tokens(limit) => write!(f, "{limit} devices or tokens (maxTokens {limit})"),
            Full::TokensRefused => f.write_str("as many tokens as the hub takes"),
            Full::Links(limit) => write!(f, "{limit} links (maxLinks {limit})"),
            Full::Channels(limit) => write!(f, "{limit} sessions (channel-max)"),
        }
    }
}

impl Router {
    /// The configured connector of a connection's pool.
    pub(super) fn configured(&self, id: ConnectorId) -> ConnectorId {
        self.connectors
            .get(&id)
            .and_then(|connector| connector.head)
            .unwrap_or(id)
    }

    /// The connections of a pool, oldest first.
    pub(super) fn pool(&self, head: ConnectorId) -> impl Iterator<Item = (ConnectorId, &Connector)> {
        let further = self.connectors.get(&head).map(|head| head.further.as_slice());
        std::iter::once(head)
            .chain(further.unwrap_or_default().iter().copied())
            .filter_map(|id| Some((id, self.connectors.get(&id)?)))
    }

    /// The connection of a pool that a device puts a token on, or that its next link goes to if there is no token.
    /// `connector` is any of the pool. `None`: there is no room for it, and there may not be another connection.
    ///
    /// The device is pinned to it from here on. A token has its place there until the hub has answered.
    pub(super) fn slot_for(
        &mut self,
        device: ConnectionKey,
        connector: ConnectorId,
        audience: Option<&str>,
    ) -> Option<ConnectorId> {
        self.expire_tokens();
        let head = self.configured(connector);
        let takes = |connector: &Connector| {
            audience.is_none_or(|audience| {
                connector.tokens.contains_key(audience) || connector.is_full_of_tokens(0).is_none()
            })
        };
        let own = self.pinned(device, head, None);
        let id = match own.and_then(|id| Some((id, self.connectors.get(&id)?))) {
            Some((id, connector)) if takes(connector) => id,
            // Its links cannot be moved.
            Some((id, _)) if self.has_sessions(device, id) => return None,
            Some(_) | None => {
                let knows = |connector: &Connector| {
                    audience.is_some_and(|audience| connector.tokens.contains_key(audience))
                };
                let known = self.pool(head).find(|&(_, it)| knows(it)).map(|(id, _)| id);
                let slot = known.map_or_else(|| self.place(head, None), Slot::At);
                self.take_slot(head, slot).ok()?
            }
        };
        if let Some(former) = own.filter(|&former| former != id) {
            self.unpin(device, former);
        }
        let now = self.now;
        let connector = self.connectors.get_mut(&id)?;
        connector.users.insert(device);
        connector.unused_since = None;
        if let Some(audience) = audience {
            connector.tokens.expect(audience, now);
        }
        Some(id)
    }

    /// The connection that a slot means, made if it has to be.
    pub(super) fn take_slot(&mut self, pool: ConnectorId, slot: Slot) -> Result<ConnectorId, AmqpError> {
        let id = match slot {
            Slot::At(id) => Some(id),
            Slot::Next => self.grow(self.configured(pool)),
            Slot::Full => None,
        };
        id.ok_or_else(|| self.full_error(pool))
    }

    /// The refusal when there is no room.
    pub(super) fn full_error(&self, connector: ConnectorId) -> AmqpError {
        let head = self.configured(connector);
        let text = match self.connectors.get(&head).map(|head| &head.settings) {
            Some(settings) => format!(
                "Connector {} has no room for another device: its connections, at most {} (poolSize), have as many \
                 tokens (maxTokens {}), links (maxLinks {}) or sessions as each may have",
                settings.name,
                settings.sharing.pool_size,
                settings.sharing.max_tokens,
                settings.sharing.max_links
            ),
            None => "The connector has no room for another device".to_owned(),
        };
        AmqpError::new(condition::RESOURCE_LIMIT_EXCEEDED, text)
    }

    /// The connection of a pool that a device is pinned to: it uses it, or has a session that waits for it. The one that
    /// an attach is about to leave does not count as long as the device only waits for it.
    pub(super) fn pinned(
        &self,
        device: ConnectionKey,
        head: ConnectorId,
        leaving: Option<ConnectorId>,
    ) -> Option<ConnectorId> {
        let uses = |&(_, connector): &(ConnectorId, &Connector)| connector.users.contains(&device);
        if let Some((id, _)) = self.pool(head).find(uses) {
            return Some(id);
        }
        self.entry(device)?
            .connection
            .owners()
            .filter_map(|pair| Some(self.session_pairs.get(index(pair))?.connector))
            .find(|&id| Some(id) != leaving && self.configured(id) == head)
    }

    /// Whether a device puts its tokens at this connector: those are good there only.
    pub(super) fn is_bound(&self, device: ConnectionKey, head: ConnectorId) -> bool {
        let desk = self.entry(device).and_then(|entry| entry.cbs.as_ref());
        self.relays_cbs(head)
            && desk.is_some_and(|desk| desk.leads_to(head) || desk.has_token_at(self.pool_name(head)))
    }

    /// Whether a device has links at this connection, or links that wait for it.
    fn has_sessions(&self, device: ConnectionKey, id: ConnectorId) -> bool {
        self.entry(device).is_some_and(|entry| {
            let pairs = entry.connection.owners();
            pairs
                .filter_map(|pair| self.session_pairs.get(index(pair)))
                .any(|pair| pair.connector == id)
        })
    }

    /// Whether a device has a session at the hub on this connection.
    pub(super) fn has_begun(&self, device: ConnectionKey, id: ConnectorId) -> bool {
        self.entry(device).is_some_and(|entry| {
            let pairs = entry.connection.owners();
            pairs
                .filter_map(|pair| self.session_pairs.get(index(pair)))
                .any(|pair| pair.connector == id && pair.upstream.is_some())
        })
    }

    /// A device goes elsewhere.
    pub(super) fn unpin(&mut self, device: ConnectionKey, id: ConnectorId) {
        let now = self.now;
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.forget_device(device, now);
        }
        self.arm_connector(id);
    }

    /// Room for a device that is not pinned: one connection is filled before the next is opened.
    pub(super) fn place(&self, head: ConnectorId, to: Option<&Destination>) -> Slot {
        let serves = |connector: &Connector| to.is_none_or(|to| connector.serves(to));
        let roomy = self
            .pool(head)
            .filter(|&(id, connector)| serves(connector) && self.fullness(id).is_none())
            .min_by_key(|&(id, connector)| self.distance(id, connector));
        if let Some((id, _)) = roomy {
            return Slot::At(id);
        }
        let may_grow = |configured: &Connector| {
            !configured.is_accepted()
                && serves(configured)
                && configured.further.len() + 1 < configured.settings.sharing.pool_size
        };
        if self.connectors.get(&head).is_some_and(may_grow) {
            Slot::Next
        } else {
            Slot::Full
        }
    }

    /// How far a connection is from taking a link, among those of its pool.
    fn distance(&self, id: ConnectorId, connector: &Connector) -> u8 {
        match connector.state {
            State::Open(_) if self.usable_connection(id).is_some() => 0,
            State::Dialing | State::Opening(_) | State::Open(_) | State::Closing(_) => 1,
            State::Idle => 2,
            State::Backoff { .. } => 3,
        }
    }

    /// Why a connection takes no other device; those that it has are not counted out.
    pub(super) fn fullness(&self, id: ConnectorId) -> Option<Full> {
        let connector = self.connectors.get(&id)?;
        if connector.is_accepted() {
            return None;
        }
        let sharing = &connector.settings.sharing;
        if connector.links() >= sharing.max_links {
            return Some(Full::Links(sharing.max_links));
        }
        let sessions = self.free_channels(id, connector);
        if sessions <= connector.unbegun {
            return Some(Full::Channels(connector.channels()));
        }
        // Each of its devices needs one, if it has not put it yet.
        connector.is_full_of_tokens(connector.users.len() + connector.unbegun)
    }

    /// Whether the hub takes another session on the connection.
    pub(super) fn has_free_channel(&self, id: ConnectorId) -> bool {
        self.connectors
            .get(&id)
            .is_some_and(|connector| connector.is_accepted() || self.free_channels(id, connector) > 0)
    }

    fn free_channels(&self, id: ConnectorId, connector: &Connector) -> usize {
        let taken = self
            .usable_connection(id)
            .and_then(|key| self.entry(key))
            .map_or(0, |entry| entry.connection.session_count());
        // One is for the router's own tokens.
        let reserved = usize::from(connector.settings.relays_cbs() && connector.cbs.is_none());
        connector.channels().saturating_sub(taken + reserved)
    }

    /// Another connection for a pool whose connections are all full. Nothing is dialed yet.
    pub(super) fn grow(&mut self, head: ConnectorId) -> Option<ConnectorId> {
        let configured = self.connectors.get(&head)?;
        let settings = ConnectorSettings {
            role: ConnectorRole::OnDemand,
            ..configured.settings.clone()
        };
        let (hosts, channel_max) = (configured.hosts.clone(), configured.channel_max);
        let last = configured.further.last().copied().unwrap_or(head);
        let count = configured.further.len() + 1;
        if let Some(full) = self.fullness(last) {
            tracing::info!(
                target: "SERVER",
                "Connector {} opens another connection, to {} of at most {} (poolSize): that of before has {full}",
                settings.name,
                count + 1,
                settings.sharing.pool_size
            );
        }
        let id = self.add_connector(settings);
        if let Some(further) = self.connectors.get_mut(&id) {
            further.head = Some(head);
            further.hosts = hosts;
            further.channel_max = channel_max;
        }
        if let Some(configured) = self.connectors.get_mut(&head) {
            configured.further.push(id);
        }
        Some(id)
    }

    /// A further connection that nobody needs any more is no more.
    pub(super) fn shrink(&mut self, id: ConnectorId) {
        let Some(connector) = self.connectors.get(&id) else {
            return;
        };
        let Some(head) = connector.head else { return };
        let is_unneeded = connector.state == State::Idle && !connector.is_needed() && connector.unbegun == 0;
        if !is_unneeded {
            return;
        }
        self.forget_connector(id);
        if let Some(configured) = self.connectors.get_mut(&head) {
            configured.further.retain(|&other| other != id);
            tracing::info!(
                target: "SERVER",
                "Connector {} is back to {} of at most {} connections (poolSize)",
                configured.settings.name,
                configured.further.len() + 1,
                configured.settings.sharing.pool_size
            );
        }
    }

    /// Whether another connection of the pool, to the same container, serves the same routes.
    pub(super) fn has_substitute(&self, id: ConnectorId) -> bool {
        let Some(own) = self.connectors.get(&id) else {
            return false;
        };
        self.pool(self.configured(id)).any(|(other, connector)| {
            other != id && connector.open_connection().is_some() && connector.container_id == own.container_id
        })
    }

    /// Tokens that have ended make room.
    pub(super) fn expire_tokens(&mut self) {
        for connector in self.connectors.values_mut() {
            connector.tokens.expire(self.now);
        }
    }
}

impl Connector {
    /// Whether one more token would be too many; so many at least are needed already.
    pub(super) fn is_full_of_tokens(&self, needed: usize) -> Option<Full> {
        let limit = self.settings.sharing.max_tokens;
        if !self.settings.relays_cbs() {
            None
        } else if self.tokens.are_used_up() {
            Some(Full::TokensRefused)
        } else {
            (self.tokens.len().max(needed) >= limit).then_some(Full::Tokens(limit))
        }
    }

    /// Sessions that there may be on one connection.
    fn channels(&self) -> usize {
        let own = self.settings.limits.channel_max.min(limits::UPSTREAM_CHANNEL_MAX);
        // Numbered from zero.
        usize::from(own.min(self.channel_max)) + 1
    }

    /// Links that the hub has, or is about to have.
    fn links(&self) -> usize {
        self.names.len() + self.waiting.len() + self.behind_tokens.len()
    }

    /// A device is here no longer. `true`: it was the last that used the connection.
    pub(super) fn forget_device(&mut self, device: ConnectionKey, now: Instant) -> bool {
        self.started.remove(&device);
        let is_unused = self.users.remove(&device) && self.users.is_empty();
        if is_unused {
            self.unused_since = Some(now);
        }
        is_unused
    }
}
