//! What the tokens of a device authorise, and who may attach what (IoT Hub: tokens count for the whole connection, so
//! without this every device could use the identity of every other).

use std::time::{Duration, Instant};

use super::request::{Answer, Claim, Operation};
use super::{CBS, Desk, From};
use crate::amqp::condition::{self, AmqpError};
use crate::endpoint::limits;
use crate::router::attach::excerpt;
use crate::router::identity::{Resource, decoded};
use crate::router::pattern;
use crate::router::route::COORDINATOR;
use crate::router::settings::{ConnectorId, Matcher, RouteSettings};
use crate::router::{ConnectionKey, Router};

/// A token that a hub has accepted from a device.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) claim: Claim,
    /// The name of the connector: of all its connections, and of its successor in another configuration.
    pub(super) pool: Box<str>,
    /// Where it was put last.
    on: ConnectionKey,
    /// It is being put again.
    is_asked: bool,
    /// When it ends; `None` if that is for the hub to know.
    ends: Option<Instant>,
}

impl Grant {
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| ends <= now)
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| ends + limits::TOKEN_GRACE <= now)
    }

    /// Whether it counts, or will when it has been put again. A hub may be generous with a token that has ended, but
    /// takes it no more: `hub` is the connection that it must be on.
    fn counts(&self, hub: Option<ConnectionKey>, now: Instant) -> bool {
        !self.is_forgotten(now) && (hub == Some(self.on) || !self.has_ended(now))
    }

    /// Transactions are nobody's resource: whoever may use anything may coordinate it.
    fn covers(&self, address: &str) -> bool {
        address == COORDINATOR || self.claim.covers(address)
    }
}

/// What the hub said of a token of the device that it would not have.
#[derive(Debug)]
pub(super) struct Refusal {
    resource: Resource,
    said: Box<str>,
}

impl Router {
    /// Whether `$cbs` links to this connector end here.
    pub(in crate::router) fn relays_cbs(&self, id: ConnectorId) -> bool {
        self.connectors
            .get(&id)
            .is_some_and(|connector| connector.settings.relays_cbs())
    }
}

/// What the tokens of a device say to an attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::router) enum Standing {
    /// It may be.
    Good,
    /// It may be if the hub accepts a token that is on its way.
    Awaited,
    Refused(AmqpError),
}

/// Whether an address, as the hub gets it, is that of its `$cbs` node or below it, for any reader: there is one pair of
/// links to it on a connection, and none of a device's.
pub(in crate::router) fn is_cbs(address: &str) -> bool {
    let path = decoded(pattern::normalize(address));
    let mut tokens = path.split(['/', '.']).filter(|token| !token.is_empty());
    tokens.next().is_some_and(|first| first.eq_ignore_ascii_case(CBS))
}

/// Forgets the oldest, until there is room for one more of `size` bytes.
fn make_room(grants: &mut Vec<Grant>, size: usize) {
    let (mut count, mut bytes) = (1, size);
    let is_within = |grant: &&Grant| {
        count += 1;
        bytes += grant.claim.size();
        count <= limits::DEVICE_TOKENS && bytes <= limits::DEVICE_TOKEN_BYTES
    };
    let kept = grants.iter().rev().take_while(is_within).count();
    grants.drain(..grants.len() - kept);
}

impl Router {
    /// The hub has accepted a token.
    pub(super) fn grant(
        &mut self,
        device: ConnectionKey,
        id: ConnectorId,
        hub: ConnectionKey,
        claim: Claim,
        now: Instant,
    ) {
        let ends = self.end_of(&claim, device, now);
        let pool: Box<str> = self.pool_name(id).into();
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.tokens.insert(&claim.audience, ends);
        }
        let Some(entry) = self.entry_mut(device) else {
            return;
        };
        let number = entry.connection.number;
        let desk = entry.cbs.get_or_insert_default();
        desk.refusal.take_if(|refusal| refusal.resource == claim.resource);
        desk.grants.retain(|grant| {
            let is_same = grant.pool == pool && grant.claim.resource == claim.resource;
            !(is_same || grant.is_forgotten(now))
        });
        make_room(&mut desk.grants, claim.size());
        let audience = excerpt(&claim.audience);
        match ends {
            Some(ends) => tracing::info!(
                target: "ROUTER_CORE",
                "[C{number}] The hub ({pool}) accepted a token for '{audience}', good for {} s",
                ends.saturating_duration_since(now).as_secs()
            ),
            None => tracing::info!(
                target: "ROUTER_CORE",
                "[C{number}] The hub ({pool}) accepted a token for '{audience}'"
            ),
        }
        desk.grants.push(Grant {
            claim,
            pool,
            on: hub,
            is_asked: false,
            ends,
        });
    }

    /// When a token ends that the hub has just accepted.
    fn end_of(&mut self, claim: &Claim, device: ConnectionKey, now: Instant) -> Option<Instant> {
        let expiry = Duration::from_secs(claim.expiry?);
        let time = self.clock.since_1970(now)?;
        match expiry.checked_sub(time) {
            Some(left) => now.checked_add(left.min(LONGEST)),
            None => {
                if let Some(more) = self.relay.complaints.note(now) {
                    let number = self.entry(device).map_or(0, |entry| entry.connection.number);
                    tracing::warn!(
                        target: "ROUTER_CORE",
                        "[C{number}] The hub accepted a token that ended {} s ago by this machine's clock, which is \
                         probably wrong: set it (timedatectl){more}",
                        (time.saturating_sub(expiry)).as_secs()
                    );
                }
                None
            }
        }
    }

    /// The hub would not have a token. One that it has from the same device already is still good (IoT Hub).
    pub(super) fn note_refusal(&mut self, device: ConnectionKey, claim: &Claim, answer: &Answer) {
        if let Some(entry) = self.entry_mut(device) {
            let said = format!("{} {}", answer.status, excerpt(answer.description()));
            entry.cbs.get_or_insert_default().refusal = Some(Refusal {
                resource: claim.resource.clone(),
                said: said.into(),
            });
        }
    }

    /// The hub would not have a token again.
    pub(super) fn withdraw(&mut self, device: ConnectionKey, claim: &Claim) {
        if let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) {
            desk.grants
                .retain(|grant| !(grant.is_asked && grant.claim.resource == claim.resource));
        }
    }

    /// Whether the device has a token for this audience at the hub: others', on the same connection, are not its to delete.
    pub(super) fn has_put(&self, device: ConnectionKey, id: ConnectorId, audience: &str) -> bool {
        let (pool, resource) = (self.pool_name(id), Resource::of_audience(audience));
        let desk = self.entry(device).and_then(|entry| entry.cbs.as_deref());
        let mut grants = desk.into_iter().flat_map(|desk| &desk.grants);
        grants.any(|grant| *grant.pool == *pool && grant.claim.owns(&resource))
    }

    /// The device has deleted a token.
    pub(super) fn take_back(&mut self, device: ConnectionKey, id: ConnectorId, audience: &str) {
        let pool = self.pool_name(id).to_owned();
        let resource = Resource::of_audience(audience);
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.tokens.remove(audience);
        }
        if let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) {
            desk.grants
                .retain(|grant| *grant.pool != *pool || grant.claim.resource != resource);
        }
    }

    /// The name that all connections of a connector share.
    pub(in crate::router) fn pool_name(&self, id: ConnectorId) -> &str {
        self.connectors
            .get(&id)
            .map_or("", |connector| connector.settings.name.as_str())
    }

    /// What a device has authorised, if it is one thing: only then is it known which token an error is about.
    pub(super) fn only_claim(&self, device: ConnectionKey, id: ConnectorId) -> Option<&Claim> {
        let pool = self.pool_name(id);
        let grants = &self.entry(device)?.cbs.as_deref()?.grants;
        let mut own = grants.iter().filter(|grant| *grant.pool == *pool);
        let grant = own.next()?;
        own.next().is_none().then_some(&grant.claim)
    }

    // ---- who may attach what -------------------------------------------------------------------------------------

    /// Whether a device may attach at this address, as the hub gets it.
    pub(in crate::router) fn standing(
        &self,
        device: ConnectionKey,
        id: ConnectorId,
        address: &str,
        now: Instant,
    ) -> Standing {
        if !self.is_guarded(id) {
            return Standing::Good;
        }
        let pool = self.pool_name(id);
        let hub = self.usable_connection(id);
        let desk = self.entry(device).and_then(|entry| entry.cbs.as_deref());
        let grants = desk.map_or(&[][..], |desk| &desk.grants);
        let (good, over): (Vec<&Grant>, Vec<&Grant>) = grants
            .iter()
            .filter(|grant| *grant.pool == *pool)
            .partition(|grant| grant.counts(hub, now));
        if good.iter().any(|grant| grant.covers(address)) {
            return Standing::Good;
        }
        if self.is_asking_for(device, pool, address) {
            return Standing::Awaited;
        }
        let refusal = desk.and_then(|desk| desk.refusal.as_ref());
        let why = if let Some(refusal) = refusal.filter(|it| it.resource.covers(address)) {
            format!("the hub does not accept its token: {}", refusal.said)
        } else if let Some(grant) = over.iter().find(|grant| grant.covers(address)) {
            let ago = grant
                .ends
                .map_or(0, |ends| now.saturating_duration_since(ends).as_secs());
            format!(
                "its token for '{}' ended {ago} s ago",
                excerpt(&grant.claim.audience)
            )
        } else if good.is_empty() {
            "it has put no token that the hub accepted; put one at $cbs first".to_owned()
        } else {
            let own = good.iter().take(TOKENS_SHOWN);
            let own: Vec<String> = own
                .map(|grant| format!("'{}'", excerpt(&grant.claim.audience)))
                .collect();
            let more = match good.len().saturating_sub(TOKENS_SHOWN) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("its tokens are for {}{more}", own.join(", "))
        };
        Standing::Refused(AmqpError::new(
            condition::UNAUTHORIZED_ACCESS,
            format!("This connection may not use '{}': {why}", excerpt(address)),
        ))
    }

    /// Whether the device has asked for what would authorise it, and has no answer.
    fn is_asking_for(&self, device: ConnectionKey, pool: &str, address: &str) -> bool {
        self.relay
            .pending
            .values()
            .any(|pending| match &pending.operation {
                Operation::Put(claim) => {
                    pending.from.device() == device
                        && self.pool_name(pending.connector) == pool
                        && (address == COORDINATOR || claim.covers(address))
                }
                Operation::Delete(_) => false,
            })
    }

    /// A device has asked for what is not its own. Logged once for its connection: those that try again and again must
    /// not fill the log, nor must those that come again and again.
    pub(in crate::router) fn report_suspect(
        &mut self,
        device: ConnectionKey,
        error: &AmqpError,
        now: Instant,
    ) {
        let Some(entry) = self.entry_mut(device) else {
            return;
        };
        let desk: &mut Desk = entry.cbs.get_or_insert_default();
        if std::mem::replace(&mut desk.is_suspect, true) {
            return;
        }
        if let Some(more) = self.relay.suspects.note(now)
            && let Some(entry) = self.entry(device)
        {
            tracing::warn!(
                target: "POLICY",
                "[C{}] DENY AMQP Attach of {} (container '{}'): {}{more}",
                entry.connection.number,
                entry.transport.peer,
                excerpt(&entry.container_id),
                error.description,
            );
        }
    }

    /// Whether links to this connector need the device's own token: it is one where tokens are put, as a route says or
    /// as has happened.
    fn is_guarded(&self, id: ConnectorId) -> bool {
        let Some(connector) = self.connectors.get(&id) else {
            return false;
        };
        let settings = &connector.settings;
        let mut pool = self.pool(self.configured(id)).map(|(_, connector)| connector);
        settings.relays_cbs()
            && settings.sharing.checks_identity
            && (pool.any(|it| it.tokens.may_open() || it.asking > 0)
                || self.routes.serves_cbs(
                    &settings.name,
                    connector.container_id.as_deref().unwrap_or_default(),
                ))
    }

    // ---- tokens that a new connection does not know --------------------------------------------------------------

    /// Whether what a device attaches at this address, as the hub gets it, needs a token that is to be put again first.
    pub(in crate::router) fn lacks_token(
        &self,
        device: ConnectionKey,
        id: ConnectorId,
        address: &str,
        now: Instant,
    ) -> bool {
        let hub = self.usable_connection(id);
        if hub.is_none() || !self.relays_cbs(id) {
            return false;
        }
        let pool = self.pool_name(id);
        let desk = self.entry(device).and_then(|entry| entry.cbs.as_deref());
        let mut is_covered = false;
        for grant in desk.into_iter().flat_map(|desk| &desk.grants) {
            if *grant.pool == *pool && grant.counts(hub, now) && grant.covers(address) {
                if hub == Some(grant.on) {
                    return false;
                }
                is_covered = true;
            }
        }
        is_covered
    }

    /// Puts the tokens of a device again that this connection to the hub does not know.
    pub(in crate::router) fn put_again(&mut self, device: ConnectionKey, id: ConnectorId, now: Instant) {
        let Some(hub) = self.usable_connection(id).filter(|_| self.relays_cbs(id)) else {
            return;
        };
        let pool = self.pool_name(id).to_owned();
        let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) else {
            return;
        };
        let mut claims = Vec::new();
        for grant in desk.grants.iter_mut().filter(|grant| *grant.pool == *pool) {
            let is_unknown = grant.on != hub && grant.counts(Some(hub), now);
            if is_unknown && !std::mem::replace(&mut grant.is_asked, true) {
                claims.push(grant.claim.clone());
            }
        }
        for claim in claims {
            let message = claim.put();
            self.ask(From::Again(device), id, Operation::Put(claim), message, now);
        }
    }

    /// A token could not be put again: what waits for it is told, and may try again.
    pub(super) fn give_up_again(&mut self, device: ConnectionKey, id: ConnectorId, error: &AmqpError) {
        if let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) {
            for grant in &mut desk.grants {
                grant.is_asked = false;
            }
        }
        for (number, _) in self.take_behind_tokens(id, device) {
            self.refuse_waiting(number, Some(error));
        }
    }
}

/// The longest that a token is taken to be good for: what is added to an instant must not overflow it.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Tokens that the error for a device names: it cannot be arbitrarily long.
const TOKENS_SHOWN: usize = 3;

/// Whether a route is for `$cbs` by its name.
pub(in crate::router) fn names_cbs(route: &RouteSettings) -> bool {
    let (Matcher::Prefix(text) | Matcher::Pattern(text)) = &route.matcher;
    is_cbs(text.strip_prefix(&*route.del_external_prefix).unwrap_or(text))
}
