//! Where there is room for tokens: a hub takes so many on one connection (IoT Hub: 1000, beyond it status 500).

use std::time::Instant;

use super::request::{Answer, Operation};
use super::{From, Pending};
use crate::router::identity;
use crate::router::settings::ConnectorId;
use crate::router::{ConnectionKey, Router};

impl Router {
    /// What a hub has answered to a token. One that it has no room for goes to another connection of the pool, and nobody
    /// hears of it: `None`.
    pub(super) fn place_refused(
        &mut self,
        pending: Pending,
        answer: &Answer,
        now: Instant,
    ) -> Option<Pending> {
        let Operation::Put(claim) = &pending.operation else {
            return Some(pending);
        };
        let Some(connector) = self.connectors.get_mut(&pending.connector) else {
            return Some(pending);
        };
        connector.tokens.give_up(&claim.audience);
        if !says_no_room(answer) {
            return Some(pending);
        }
        connector.tokens.use_up();
        let device = pending.from.device();
        // A device's links are where its tokens are: what it has there already cannot follow. One that has gone would
        // never leave the other.
        if matches!(pending.from, From::Again(_)) || self.entry(device).is_none() {
            return Some(pending);
        }
        match self.slot_for(device, pending.connector, Some(&claim.audience)) {
            Some(other) if other != pending.connector => {
                let message = claim.put();
                self.ask(pending.from, other, pending.operation, message, now);
                None
            }
            Some(_) | None => Some(pending),
        }
    }

    /// A device is about to attach on a connection: there must be room for the tokens that go before.
    pub(in crate::router) fn expect_tokens(&mut self, device: ConnectionKey, id: ConnectorId, now: Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        if !connector.settings.relays_cbs() || connector.users.contains(&device) {
            return;
        }
        let entry = self
            .connections
            .get(device.index())
            .filter(|entry| entry.generation == device.generation);
        let Some(desk) = entry.and_then(|entry| entry.cbs.as_ref()) else {
            return;
        };
        for grant in &desk.grants {
            if *grant.pool == *connector.settings.name && !grant.has_ended(now) {
                connector.tokens.expect(&grant.claim.audience, now);
            }
        }
    }
}

/// What a hub says of a token or of its device has the name in it that the device has chosen.
fn says_no_room(answer: &Answer) -> bool {
    let is_about_the_token = matches!(answer.status, 400 | 401 | 404);
    !is_about_the_token && identity::says_no_room(answer.description())
}
