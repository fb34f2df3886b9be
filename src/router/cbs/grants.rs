//! What the tokens of a device authorise, and who may attach what (IoT Hub: tokens count for the whole connection, so
//! without this every device could use the identity of every other).

use std::time::{Duration, Instant};

use super::request::{Answer, Claim, Operation};
use super::{CBS, Desk, From};
use crate::amqp::condition::{self, AmqpError};
use crate::endpoint::limits;
use crate::router::attach::excerpt;
use crate::router::identity::Resource;
use crate::router::pattern;
use crate::router::route::COORDINATOR;
use crate::router::settings::{ConnectorId, Matcher};
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

/// Whether an address, as the hub gets it, is that of its `$cbs` node.
pub(in crate::router) fn is_cbs(address: &str) -> bool {
    pattern::normalize(address) == CBS
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
            connector.tokens.insert(claim.audience.clone(), ends);
        }
        let Some(entry) = self.entry_mut(device) else {
            return;
        };
        let number = entry.connection.number;
        let desk = entry.cbs.get_or_insert_default();
        desk.refusal = None;
        desk.grants.retain(|grant| {
            let is_same = grant.pool == pool && grant.claim.resource == claim.resource;
            !(is_same || grant.is_forgotten(now))
        });
        if desk.grants.len() >= limits::DEVICE_TOKENS {
            desk.grants.remove(0);
        }
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

    /// The hub would not have a token again.
    pub(super) fn withdraw(&mut self, device: ConnectionKey, claim: &Claim, answer: &Answer) {
        if let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) {
            desk.grants
                .retain(|grant| !(grant.is_asked && grant.claim.resource == claim.resource));
            desk.refusal = Some(format!("{} {}", answer.status, excerpt(answer.description())).into());
        }
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
    pub(super) fn pool_name(&self, id: ConnectorId) -> &str {
        self.connectors
            .get(&id)
            .map_or("", |connector| connector.settings.name.as_str())
    }

    // ---- who may attach what -------------------------------------------------------------------------------------

    /// Whether a device may attach at this address, as the hub gets it.
    pub(in crate::router) fn standing(
        &mut self,
        device: ConnectionKey,
        id: ConnectorId,
        address: &str,
        now: Instant,
    ) -> Standing {
        if !self.is_guarded(id) {
            return Standing::Good;
        }
        let pool = self.pool_name(id);
        let desk = self.entry(device).and_then(|entry| entry.cbs.as_deref());
        let grants = desk
            .into_iter()
            .flat_map(|desk| &desk.grants)
            .filter(|grant| *grant.pool == *pool && !grant.is_forgotten(now));
        // Transactions are nobody's resource: whoever may use anything may coordinate it.
        let mut covering =
            grants.filter(|grant| address == COORDINATOR || grant.claim.resource.covers(address));
        if covering.next().is_some() {
            return Standing::Good;
        }
        if self.is_asking_for(device, pool, address) {
            return Standing::Awaited;
        }
        let shown = excerpt(address);
        let own: Vec<String> = desk
            .into_iter()
            .flat_map(|desk| &desk.grants)
            .take(3)
            .map(|grant| format!("'{}'", excerpt(&grant.claim.audience)))
            .collect();
        let why = match (own.is_empty(), desk.and_then(|desk| desk.refusal.as_deref())) {
            (true, Some(refusal)) => format!("the hub no longer accepts its token: {refusal}"),
            (true, None) => "it has put no token that the hub accepted; put one at $cbs first".to_owned(),
            (false, _) => format!("its tokens are for {}", own.join(", ")),
        };
        let error = AmqpError::new(
            condition::UNAUTHORIZED_ACCESS,
            format!("This connection may not use '{shown}': {why}"),
        );
        self.report_suspect(device, &error.description);
        Standing::Refused(error)
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
                        && claim.resource.covers(address)
                }
                Operation::Delete(_) => false,
            })
    }

    /// Once for a device: those that try again and again must not fill the log.
    fn report_suspect(&mut self, device: ConnectionKey, what: &str) {
        let Some(entry) = self.entry_mut(device) else {
            return;
        };
        let desk: &mut Desk = entry.cbs.get_or_insert_default();
        if !std::mem::replace(&mut desk.is_suspect, true) {
            tracing::warn!(
                target: "POLICY",
                "[C{}] DENY AMQP Attach of {} (container '{}'): {what}",
                entry.connection.number,
                entry.transport.peer,
                excerpt(&entry.container_id),
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
        settings.relays_cbs()
            && settings.sharing.checks_identity
            && (!connector.tokens.is_empty()
                || connector.asking > 0
                || self
                    .routes
                    .served_by(
                        &settings.name,
                        connector.container_id.as_deref().unwrap_or_default(),
                    )
                    .any(|route| names_cbs(&route.matcher)))
    }

    // ---- tokens that a new connection does not know --------------------------------------------------------------

    /// Puts the tokens of a device again that this connection to the hub does not know. `true`: there are some, and what
    /// the device attaches must wait.
    pub(in crate::router) fn put_again(
        &mut self,
        device: ConnectionKey,
        id: ConnectorId,
        now: Instant,
    ) -> bool {
        let Some(hub) = self.usable_connection(id) else {
            return false;
        };
        let Some(connector) = self.connectors.get(&id).filter(|it| it.settings.relays_cbs()) else {
            return false;
        };
        let pool = connector.settings.name.clone();
        let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) else {
            return false;
        };
        desk.grants
            .retain(|grant| !(*grant.pool == *pool && grant.on != hub && grant.has_ended(now)));
        let mut must_wait = false;
        let mut claims = Vec::new();
        for grant in &mut desk.grants {
            if *grant.pool == *pool && grant.on != hub {
                must_wait = true;
                if !std::mem::replace(&mut grant.is_asked, true) {
                    claims.push(grant.claim.clone());
                }
            }
        }
        for claim in claims {
            let message = claim.put();
            self.ask(From::Again(device), id, Operation::Put(claim), message, now);
        }
        must_wait
    }

    /// A token could not be put again: what waits for it is told, and may try again.
    pub(super) fn give_up_again(&mut self, device: ConnectionKey, id: ConnectorId, error: &AmqpError) {
        if let Some(desk) = self.entry_mut(device).and_then(|entry| entry.cbs.as_mut()) {
            for grant in &mut desk.grants {
                grant.is_asked = false;
            }
        }
        for number in self.take_behind_tokens(id, device) {
            self.refuse_waiting(number, Some(error));
        }
    }
}

/// The longest that a token is taken to be good for: what is added to an instant must not overflow it.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn names_cbs(matcher: &Matcher) -> bool {
    let (Matcher::Prefix(text) | Matcher::Pattern(text)) = matcher;
    let text = pattern::normalize(text);
    text.split(['/', '.']).next() == Some(CBS)
}
