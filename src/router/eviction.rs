//! A device that comes back while its former connection still seems to be there, as after a power cut: what that has
//! attached in the device's name goes first. IoT Hub takes two links of one identity for two devices, of which the newer
//! one throws the older one out; which of its own links a device would lose to itself is not to be left to chance.

use std::collections::HashMap;
use std::sync::Arc;

use super::attach::excerpt;
use super::connection::index;
use super::identity::in_one_spelling;
use super::pair::{Leg, LinkPair};
use super::settings::ConnectorId;
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::performative::{Attach, Role};
use crate::amqp::terminus::Terminus;

/// What only one connection may have a link to, for it belongs to one device: such a node of a hub, and the role.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnNode {
    hub: ConnectorId,
    /// The device's.
    role: Role,
    /// In one spelling, however it was written.
    address: Box<str>,
}

/// The youngest link to each such node on connections that devices share.
#[derive(Debug, Default)]
pub(super) struct OwnNodes(HashMap<Arc<OwnNode>, u32>);

impl OwnNodes {
    /// The link is gone.
    pub(super) fn forget(&mut self, number: u32, link: &LinkPair) {
        if let Some(node) = &link.own_node
            && self.0.get(node) == Some(&number)
        {
            self.0.remove(node);
        }
    }
}

impl Router {
    /// A link is about to be attached at the hub: detaches what another connection has attached in the same device's name.
    pub(super) fn evict_predecessors(
        &mut self,
        number: u32,
        device: ConnectionKey,
        id: ConnectorId,
        attach: &Attach<'_>,
    ) {
        let Some(node) = self.own_node(number, id, attach).map(Arc::new) else {
            return;
        };
        if let Some(predecessor) = self.own_nodes.0.insert(node.clone(), number) {
            for link in self.rivals(predecessor, device, &node) {
                self.evict(link, device, &node);
            }
        }
        if let Some(link) = self.link_pairs.get_mut(index(number)) {
            link.own_node = Some(node);
        }
    }

    /// The node that an attach asks a hub for, if it is a device's own.
    fn own_node(&self, number: u32, id: ConnectorId, attach: &Attach<'_>) -> Option<OwnNode> {
        let connector = self.connectors.get(&id)?;
        if !connector.settings.relays_cbs() {
            return None;
        }
        let terminus = match attach.role {
            Role::Sender => attach.target,
            Role::Receiver => attach.source,
        };
        let readdressing = self.link_pairs.get(index(number))?.readdressing.as_ref();
        let address = match readdressing {
            Some(readdressing) => in_one_spelling(readdressing.address()),
            None => in_one_spelling(Terminus::parse(terminus?).ok()?.address?),
        };
        Some(OwnNode {
            hub: self.configured(id),
            role: attach.role,
            address: address?.into(),
        })
    }

    /// The links to a node that are another connection's, and that nobody has detached. What a device sent before it said
    /// goodbye still goes, on the link that it was sent on.
    fn rivals(&self, predecessor: u32, device: ConnectionKey, node: &OwnNode) -> Vec<u32> {
        let is_live = |link: &LinkPair| link.closing.is_none() && link.own_node.as_deref() == Some(node);
        let pair = self
            .link_pairs
            .get(index(predecessor))
            .and_then(|link| self.session_pairs.get(index(link.session_pair)));
        match pair.map(|pair| pair.device.map(|session| session.connection)) {
            Some(Some(other)) if other != device => {
                let pairs = self
                    .entry(other)
                    .into_iter()
                    .flat_map(|it| it.connection.owners());
                pairs
                    .filter_map(|pair| self.session_pairs.get(index(pair)))
                    .flat_map(|pair| pair.links.iter().copied())
                    .filter(|&link| self.link_pairs.get(index(link)).is_some_and(is_live))
                    .collect()
            }
            Some(None) if node.role == Role::Receiver => vec![predecessor],
            Some(_) | None => Vec::new(),
        }
    }

    fn evict(&mut self, number: u32, by: ConnectionKey, node: &OwnNode) {
        let Some(link) = self.link_pairs.get(index(number)) else {
            return;
        };
        let (pair, way) = (link.session_pair, link.way());
        self.detach_from_hub(number, None);
        if let Some((connection, channel, _)) = self.link_end(number, Leg::Device) {
            // AMQP 1.0 part 2, §2.8.17. IoT Hub says `amqp:internal-error` ("Another AMQP Client has opened a Receive
            // Link") when it does the same; SDKs try again after either.
            let error = AmqpError::new(
                condition::LINK_STOLEN,
                "another connection has attached in the name of the same device",
            );
            self.log_eviction(connection, by, node);
            self.detach_from_device(connection, channel, number, &error);
            self.wake(connection);
        }
        self.free_link_pair(number);
        self.pump(pair, way);
    }

    /// One line for each connection that is evicted, however often.
    fn log_eviction(&mut self, device: ConnectionKey, by: ConnectionKey, node: &OwnNode) {
        let Some(successor) = self.entry(by) else { return };
        let (number, peer) = (successor.connection.number, successor.transport.peer.clone());
        let Some(entry) = self.entry_mut(device).filter(|entry| !entry.is_evicted) else {
            return;
        };
        entry.is_evicted = true;
        tracing::info!(
            target: "ROUTER_CORE",
            "[C{}] Connection from {} loses '{}' to [C{number}] from {peer}, which has attached it as well: a device that \
             has come back, or two devices with one identity, which must each have their own",
            entry.connection.number,
            entry.transport.peer,
            excerpt(&node.address),
        );
    }
}
