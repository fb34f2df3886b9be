//! What the operator reads when a hub does not serve a device: one plain line, which says whose token it is about, what
//! happened, and what to do.

use std::time::Instant;

use super::request::{Answer, Claim};
use crate::amqp::condition::ErrorView;
use crate::router::attach::excerpt;
use crate::router::connection::index;
use crate::router::identity::{self, SasToken};
use crate::router::pair::Leg;
use crate::router::settings::ConnectorId;
use crate::router::{ConnectionKey, Router};

/// There is no status but in an answer to a request.
const NO_STATUS: i32 = 0;

impl Router {
    /// The hub refused a token.
    pub(super) fn explain_refusal(
        &mut self,
        device: ConnectionKey,
        id: ConnectorId,
        claim: &Claim,
        answer: &Answer,
        now: Instant,
    ) {
        let Some(more) = self.relay.complaints.note(now) else {
            return;
        };
        let (Some(entry), Some(connector)) = (self.entry(device), self.connectors.get(&id)) else {
            return;
        };
        let advice = self.advice(id, claim, answer.status, answer.description(), now);
        tracing::warn!(
            target: "ROUTER_CORE",
            "[C{}] The hub ({}) refused a token of {} for '{}': {} {}{}{more}",
            entry.connection.number,
            connector.settings.name,
            entry.transport.peer,
            excerpt(&claim.audience),
            answer.status,
            // As a part of our sentence, which goes on.
            excerpt(answer.description().trim_end_matches('.')),
            advice.map(|advice| format!(". {advice}")).unwrap_or_default(),
        );
    }

    /// What to do about an error with which the hub has detached a device's link; `None` if nothing is known, or enough
    /// has been said lately.
    pub(in crate::router) fn advice_on_detach(&mut self, link: u32, error: Option<&[u8]>) -> Option<String> {
        let error = ErrorView::parse(error?).ok()?;
        let text = format!("{} {}", error.condition, error.description.unwrap_or_default());
        let now = self.now;
        let pair = self.link_pairs.get(index(link))?.session_pair;
        let id = self.session_pairs.get(index(pair))?.connector;
        let (device, ..) = self.link_end(link, Leg::Device)?;
        let claim = self.only_claim(device, id)?;
        let advice = self.advice(id, claim, NO_STATUS, &text, now)?;
        self.relay
            .complaints
            .note(now)
            .map(|more| format!("{advice}{more}"))
    }

    fn advice(
        &self,
        id: ConnectorId,
        claim: &Claim,
        status: i32,
        text: &str,
        now: Instant,
    ) -> Option<String> {
        let token = SasToken::parse(claim.token.expose()).ok()?;
        let hub = self.connectors.get(&id)?.server_name();
        identity::diagnose(&token, self.clock.since_1970(now), hub, status, text)
    }
}
