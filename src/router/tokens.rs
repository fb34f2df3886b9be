//! Which tokens one upstream connection holds. A hub holds a bounded number on one connection, and those of devices that
//! have gone until they end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::identity::counted_as;

/// A place that is kept for a token is free again after this, if nothing was heard of it: longer than an attach waits for
/// its turn, and the request for its answer.
const KEPT_FOR: Duration = Duration::from_secs(90);

/// The tokens of one upstream connection, by what they are for: those of a device, however it spells that, are one. A hub
/// that counts otherwise says so when it has no room.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// Accepted by the hub, and when each ends; `None`: with the connection.
    held: HashMap<Box<str>, Option<Instant>>,
    /// On their way there, and until when each has its place.
    under_way: HashMap<Box<str>, Instant>,
    /// Nothing ends before this.
    earliest: Option<Instant>,
    /// The hub has accepted one on this connection.
    has_held: bool,
    /// The hub has said that it takes no more.
    are_used_up: bool,
}

impl Tokens {
    /// The hub has accepted a token, or a new one for the same audience.
    pub(super) fn insert(&mut self, audience: &str, expires: Option<Instant>) {
        let place = counted_as(audience);
        self.under_way.remove(&place);
        self.held.insert(place, expires);
        self.has_held = true;
        self.ends(expires);
    }

    /// The hub does not have this one any more.
    pub(super) fn remove(&mut self, audience: &str) {
        let place = counted_as(audience);
        self.held.remove(&place);
        self.under_way.remove(&place);
    }

    /// The hub does not take this one, or is not asked; the one that it has for the same audience it keeps.
    pub(super) fn give_up(&mut self, audience: &str) {
        self.under_way.remove(&counted_as(audience));
    }

    /// Keeps a place for a token until the hub has answered.
    pub(super) fn expect(&mut self, audience: &str, now: Instant) {
        let place = counted_as(audience);
        if !self.held.contains_key(&place) {
            self.under_way.insert(place, now + KEPT_FOR);
            self.ends(Some(now + KEPT_FOR));
        }
    }

    /// Whether the hub has, or is about to have, a token for this.
    pub(super) fn contains_key(&self, audience: &str) -> bool {
        let place = counted_as(audience);
        self.held.contains_key(&place) || self.under_way.contains_key(&place)
    }

    /// How many places are taken.
    pub(super) fn len(&self) -> usize {
        self.held.len() + self.under_way.len()
    }

    /// Whether the hub may take a link on this connection for that of a device, because of a token: it goes on for a while
    /// with one that has ended, and by its own clock.
    pub(super) fn may_open(&self) -> bool {
        self.has_held || self.len() > 0
    }

    /// Whether the hub has said that it takes no more, whatever the configuration says.
    pub(super) const fn are_used_up(&self) -> bool {
        self.are_used_up
    }

    /// The hub refuses another token on this connection.
    pub(super) const fn use_up(&mut self) {
        self.are_used_up = true;
    }

    /// Forgets what has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return;
        }
        self.held.retain(|_, expires| expires.is_none_or(|at| at > now));
        self.under_way.retain(|_, until| *until > now);
        let ends = self.held.values().flatten().chain(self.under_way.values());
        self.earliest = ends.min().copied();
    }

    /// The connection is gone. What was on its way waits for the next.
    pub(super) fn lose(&mut self) {
        self.held = HashMap::new();
        self.has_held = false;
        self.are_used_up = false;
    }

    fn ends(&mut self, at: Option<Instant>) {
        self.earliest = self.earliest.into_iter().chain(at).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_its_place_from_the_request_to_its_end() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tokens = Tokens::default();
        tokens.expect("a", at(0));
        tokens.expect("b", at(0));
        tokens.expect("c", at(0));
        assert_eq!(tokens.len(), 3);
        tokens.insert("a", Some(at(100)));
        tokens.insert("a", Some(at(200)));
        tokens.expect("a", at(1));
        tokens.give_up("b");
        tokens.give_up("a");
        assert_eq!(
            tokens.len(),
            2,
            "a renewed one counts once, a refused one not at all"
        );
        tokens.expire(at(89));
        assert!(tokens.contains_key("c"));
        tokens.expire(at(90));
        assert!(!tokens.contains_key("c"), "nobody answered");
        tokens.insert("d", None);
        tokens.expire(at(199));
        assert_eq!(tokens.len(), 2);
        tokens.expire(at(200));
        assert!(tokens.contains_key("d") && !tokens.contains_key("a"));
        tokens.remove("d");
        assert_eq!(tokens.len(), 0);
        assert!(tokens.may_open(), "the hub may be generous");
    }

    #[test]
    fn a_lost_connection_holds_nothing_but_places_for_what_is_to_come() {
        let now = Instant::now();
        let mut tokens = Tokens::default();
        tokens.insert("a", None);
        tokens.expect("b", now);
        tokens.use_up();
        tokens.lose();
        assert!(!tokens.contains_key("a") && tokens.contains_key("b"));
        assert!(!tokens.are_used_up(), "the next one may take them");
        tokens.expire(now + KEPT_FOR);
        assert!(!tokens.may_open());
    }
}
