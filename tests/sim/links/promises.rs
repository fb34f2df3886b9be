//! What must hold behind every step, and at the end.

use linkrouterd::endpoint::limits;

use super::acts::{DOWN, UP};
use super::offences::Offence;
use super::{Conduct, Simulation};
use crate::peer::{Kind, Link, Peer, Session};

/// What a driver reads at once, and the frame that it ends.
const READ: usize = 64 * 1024 + 16 * 1024;
/// Frames that are no transfers have no budget of their own, and are small.
const OTHERS: usize = 16 * 1024;

impl Simulation {
    pub(super) fn check(&mut self, is_at_rest: bool) {
        self.ledger.check(&mut self.world);
        self.check_budgets();
        self.check_undisturbed();
        if is_at_rest {
            self.check_bystander();
        }
    }

    /// Nobody makes the router hold more than it may.
    fn check_budgets(&mut self) {
        let (mut parked, mut held) = (0, 0);
        for (id, transport) in self.world.peers.iter().enumerate() {
            let peer = &transport.peer;
            let Some(key) = peer.key else { continue };
            let waits = self.world.router.buffered(key);
            parked += waits.parked;
            held += waits.held;
            assert!(waits.parked < limits::PARKED_BYTES + READ, "{id}: {waits:?}");
            let largest = peer.announces.max_frame_size as usize;
            assert!(
                waits.outbox < limits::OUTBOX_HIGH + largest + OTHERS,
                "{id}: {waits:?}"
            );
        }
        let snapshot = self.world.router.snapshot();
        assert_eq!(snapshot.held_bytes, held, "held for somebody who is there");
        // What devices left behind that have said goodbye is parked for nobody.
        assert!(snapshot.parked_bytes >= parked, "{snapshot:?}, not {parked}");
        self.totals.parked = self.totals.parked.max(snapshot.parked_bytes);
    }

    /// The router closes no device that does what it should, whatever others do.
    fn check_undisturbed(&mut self) {
        for id in 0..self.world.peers.len() {
            let Conduct {
                has_stalled,
                is_half_open,
                has_gone,
                offence,
            } = self.conduct(id).clone();
            let peer = self.world.peer(id);
            let has_cause = has_stalled || is_half_open || has_gone || offence == Some(Offence::Connection);
            if peer.kind == Kind::Device && !has_cause {
                assert!(peer.closed.is_none(), "{id} was closed: {:?}", peer.closed);
                assert!(peer.key.is_some(), "{id} was thrown out");
            }
        }
    }

    /// A device that does what it should, at a hub that does what it should, has its links and its messages.
    fn check_bystander(&mut self) {
        let Some(id) = self.bystander else { return };
        let peer = self.world.peer(id);
        for handle in [UP, DOWN] {
            let link = peer.link(0, handle);
            assert!(link.remote.is_some() && link.detached.is_none(), "{link:?}");
        }
        let up = peer.link(0, UP);
        assert!(up.queue.is_empty(), "{up:?}");
        self.totals.undisturbed += 1;
        let up = &self.world.peers.get(id).expect("a peer").peer;
        let up = up.sessions.get(&0).and_then(|session| session.links.get(&UP));
        assert!(self.ledger.check_complete(&self.world, id, up.expect("a link")));
    }

    // ---- at the end ----------------------------------------------------------------------------------------------

    pub(super) fn check_complete(&mut self) {
        self.check(true);
        self.check_offenders();
        let snapshot = self.world.router.snapshot();
        assert_eq!(
            (snapshot.parked_bytes, snapshot.held_bytes, snapshot.outbox_bytes),
            (0, 0, 0),
            "{snapshot:?}"
        );
        for (id, transport) in self.world.peers.iter().enumerate() {
            let peer = &transport.peer;
            self.totals.silent += usize::from(!(peer.auto.detach && peer.auto.end));
            if peer.key.is_none() || !peer.is_open || peer.close_sent || peer.closed.is_some() {
                continue;
            }
            for (&channel, session) in peer.sessions.iter().filter(|(_, session)| is_live(session)) {
                for (&handle, link) in &session.links {
                    let what = format!("{} {channel}/{handle} {}", peer.container, link.name);
                    self.check_answered(peer, link, &what);
                    let is_live = link.remote.is_some() && !link.detach_sent && link.detached.is_none();
                    if link.is_sender && is_live && self.ledger.check_complete(&self.world, id, link) {
                        self.totals.complete_links += 1;
                    }
                }
            }
        }
        let connectors = self.world.router.connectors();
        self.totals.further += connectors.filter(|connector| connector.is_further).count();
    }

    /// Every attach and every detach is answered, except what a silent peer owes.
    fn check_answered(&self, peer: &Peer, link: &Link, what: &str) {
        let ends = (link.remote.is_some(), link.detach_sent, link.detached.is_some());
        let is_as_it_should_be = match ends {
            (true, false, false) | (true, true, true) => true,
            // What it does not answer.
            (true, false, true) => !peer.auto.detach,
            // What the hub has not answered, so far.
            (false, false, false) => self.has_silent_hub(),
            _ => false,
        };
        assert!(
            is_as_it_should_be,
            "{what}: attached, detached, answered: {ends:?}"
        );
    }

    fn has_silent_hub(&self) -> bool {
        let mut peers = self.world.peers.iter().map(|transport| &transport.peer);
        peers.any(|peer| peer.kind == Kind::Hub && !peer.auto.attach)
    }

    /// Where silence has an end, whoever is half open has been found out, unless it is not read because it takes nothing:
    /// that is for the transport to find out, which gives up a peer that takes nothing for long.
    pub(super) fn check_silence(&mut self) {
        for id in 0..self.world.peers.len() {
            let is_half_open = self.conduct(id).is_half_open;
            if let Some(key) = self.world.peer(id).key.filter(|_| is_half_open) {
                let waits = self.world.router.buffered(key);
                assert!(
                    waits.outbox >= limits::OUTBOX_HIGH,
                    "{id} is gone, and unnoticed: {waits:?}"
                );
                self.world.lose(id);
            }
        }
    }

    fn check_offenders(&mut self) {
        for id in 0..self.world.peers.len() {
            let offence = self.conduct(id).offence;
            let peer = self.world.peer(id);
            let is_over = peer.key.is_none() || peer.closed.is_some() || peer.close_sent;
            let is_punished = match offence {
                None => true,
                Some(Offence::Connection) => is_over,
                // A hub uses the channel again.
                Some(Offence::Session(_)) if peer.kind != Kind::Device => true,
                Some(Offence::Session(channel)) => {
                    is_over || !peer.sessions.get(&channel).is_some_and(is_live)
                }
            };
            assert!(is_punished, "{id}: {offence:?} has cost nothing");
        }
    }
}

/// Neither side has ended it.
pub(super) fn is_live(session: &Session) -> bool {
    !session.end_sent && !session.is_ended
}

/// Channel and handle of each link that both sides have attached and none has detached; and whether it sends.
pub(super) fn live_links(peer: &Peer) -> Vec<(u16, u32, bool)> {
    let mut links = Vec::new();
    for (&channel, session) in &peer.sessions {
        if !is_live(session) || session.remote.is_none() {
            continue;
        }
        for (&handle, link) in &session.links {
            if link.remote.is_some() && !link.detach_sent && link.detached.is_none() {
                links.push((channel, handle, link.is_sender));
            }
        }
    }
    links
}
