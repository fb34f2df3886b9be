//! What was sent, and what became of it: a delivery arrives whole, in order, once, at one receiver, and is settled by
//! those who may.

use std::collections::{BTreeSet, HashMap};

use crate::peer::{Delivery, Link, Peer};
use crate::wire;
use crate::world::{PeerId, World};

/// Marks a message with the link that it was sent on, and its number there.
const MARK: usize = 16;

/// The link that a peer sends on.
pub(super) type Sender = (PeerId, u32);

/// All deliveries of a schedule, by their sender.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sent: HashMap<Sender, Sent>,
}

/// What was sent on one link, message by message.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Which the sender settled at once.
    settled: Vec<bool>,
    /// Which it settled later.
    forgotten: BTreeSet<u32>,
    /// Which it was told were not delivered.
    released: BTreeSet<u32>,
    /// The only link that they may arrive on.
    receiver: Option<Sender>,
    /// With what the receiver settled those that have arrived.
    outcomes: Vec<Option<u64>>,
}

impl Ledger {
    /// The next message of a link, of about this size.
    pub(super) fn message(&mut self, sender: Sender, padding: usize, settled: bool) -> Vec<u8> {
        let sent = self.sent.entry(sender).or_default();
        let number = sent.settled.len();
        sent.settled.push(settled);
        let mut payload = (sender.0 as u32).to_be_bytes().to_vec();
        payload.extend(sender.1.to_be_bytes());
        payload.extend((number as u64).to_be_bytes());
        payload.extend(vec![filling(number); padding]);
        payload
    }

    pub(super) fn forget(&mut self, sender: Sender, number: u32) {
        let sent = self.sent.get_mut(&sender).expect("sent before");
        sent.forgotten.insert(number);
    }

    /// Looks at all that has come since the last time: first what arrived, then what was said of it.
    pub(super) fn check(&mut self, world: &mut World) {
        for (id, transport) in world.peers.iter_mut().enumerate() {
            for link in links(&mut transport.peer).filter(|link| !link.is_sender) {
                self.check_received(id, link);
            }
        }
        for (id, transport) in world.peers.iter_mut().enumerate() {
            for link in links(&mut transport.peer).filter(|link| link.is_sender) {
                self.check_settled(id, link);
            }
            transport.peer.past.clear();
        }
    }

    /// Whatever has come in on a link is one sender's, whole, in order, from the first on.
    fn check_received(&mut self, id: PeerId, link: &mut Link) {
        let Some(first) = link.received.first() else {
            return;
        };
        let sender = sender_of(&first.payload);
        let what = || format!("{} of peer {id}, from {sender:?}", link.name);
        let sent = self.sent.get_mut(&sender);
        let sent = sent.unwrap_or_else(|| panic!("{}: nobody sent this", what()));
        let receiver = *sent.receiver.get_or_insert((id, link.number));
        assert_eq!(receiver, (id, link.number), "{}: a second receiver", what());
        for (number, delivery) in link.received.iter().enumerate().skip(link.looked) {
            check_payload(number, delivery, sender, &what);
            let known = u32::try_from(number).expect("small");
            assert!(
                !sent.released.contains(&known),
                "{}: {number} was released",
                what()
            );
            let settled = *sent.settled.get(number).expect("sent before");
            assert!(
                delivery.settled || !settled,
                "{}: {number} is not settled",
                what()
            );
            sent.outcomes.push(None);
        }
        link.looked = link.received.len();
        for (number, (delivery, outcome)) in (0..).zip(link.received.iter().zip(&mut sent.outcomes)) {
            *outcome = delivery.outcome;
            let by_sender =
                sent.settled.get(number as usize) == Some(&true) || sent.forgotten.contains(&number);
            assert!(
                by_sender || !delivery.settled,
                "{}: nobody settled {number}",
                what()
            );
        }
    }

    /// A sender hears of a settlement if the receiver said so. The router may say so itself when the link is lost on the
    /// way: that a delivery failed, or, if it never went out, that it is released.
    fn check_settled(&mut self, id: PeerId, link: &mut Link) {
        let Some(sent) = self.sent.get_mut(&(id, link.number)) else {
            return;
        };
        for &(number, state) in link.settled.iter().skip(link.looked) {
            let outcome = sent.outcomes.get(number as usize).copied();
            let said = outcome.flatten();
            let is_true = match state {
                Some(wire::MODIFIED) => true,
                Some(wire::RELEASED) if said != state => {
                    sent.released.insert(number);
                    outcome.is_none()
                }
                Some(_) | None => said == state && state.is_some(),
            };
            assert!(
                is_true,
                "{} of peer {id}: {number} was settled with {state:x?}, its receiver said {said:x?}",
                link.name
            );
        }
        link.looked = link.settled.len();
    }

    /// At the end of all: whatever was sent on a link that lives is there, and so is what the receiver made of it.
    /// `false` when nothing was sent.
    pub(super) fn check_complete(&self, world: &World, id: PeerId, link: &Link) -> bool {
        let Some(sent) = self.sent.get(&(id, link.number)).filter(|_| link.sent > 0) else {
            return false;
        };
        let what = format!("{} of peer {id}", link.name);
        assert!(
            link.queue.is_empty(),
            "{what}: {} messages had no way",
            link.queue.len()
        );
        assert_eq!(
            sent.outcomes.len(),
            link.sent as usize,
            "{what}: sent, but not received"
        );
        let (receiver, number) = sent.receiver.expect("received");
        let receiver = &world.peers.get(receiver).expect("a peer").peer;
        let links = receiver
            .sessions
            .values()
            .flat_map(|session| session.links.values());
        let end = links
            .into_iter()
            .find(|link| link.number == number)
            .unwrap_or_else(|| panic!("{what}: the link that it arrived on is gone"));
        assert_eq!(end.aborted, 0, "{what}: deliveries were aborted");
        let mut told: Vec<Option<u64>> = vec![None; sent.outcomes.len()];
        for &(number, state) in &link.settled {
            let place = told.get_mut(number as usize).expect("sent");
            assert_eq!(
                place.replace(state.unwrap_or(0)),
                None,
                "{what}: {number} settled twice"
            );
        }
        for (number, (delivery, (told, said))) in
            (0..).zip(end.received.iter().zip(told.iter().zip(&sent.outcomes)))
        {
            if link.forgotten.contains(&number) {
                assert!(delivery.settled, "{what}: {number} was settled by its sender");
            } else {
                assert_eq!(told, said, "{what}: how {number} was settled");
            }
        }
        true
    }
}

fn links(peer: &mut Peer) -> impl Iterator<Item = &mut Link> {
    let sessions = peer.past.iter_mut().chain(peer.sessions.values_mut());
    sessions.flat_map(|session| session.links.values_mut())
}

const fn filling(number: usize) -> u8 {
    (number % 251) as u8
}

fn number_at(payload: &[u8], at: usize) -> u32 {
    let bytes = payload.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_be_bytes(*bytes.expect("a mark"))
}

fn sender_of(payload: &[u8]) -> Sender {
    (number_at(payload, 0) as usize, number_at(payload, 4))
}

fn check_payload(number: usize, delivery: &Delivery, sender: Sender, what: &dyn Fn() -> String) {
    let payload = &delivery.payload;
    assert_eq!(sender_of(payload), sender, "{}: two senders", what());
    assert_eq!(
        number_at(payload, 12) as usize,
        number,
        "{}: lost, doubled or out of order",
        what()
    );
    let padding = payload.get(MARK..).expect("a mark");
    let is_whole = padding == vec![filling(number); padding.len()];
    assert!(is_whole, "{}: {number} is damaged", what());
    assert_eq!(delivery.tag, (number as u32).to_be_bytes(), "{}: tag", what());
}
