//! The `$cbs` links of one device connection: which there are, what they hold, and whose an answer is.

use std::collections::VecDeque;

use super::grants::{Grant, Refusal};
use crate::amqp::serial::{Channel, DeliveryId, Handle};
use crate::endpoint::limits;
use crate::router::local::{LocalReceiver, LocalSender};
use crate::router::settings::{ConnectorId, Secret};

/// What a device connection has to do with CBS.
#[derive(Debug, Default)]
pub(in crate::router) struct Desk {
    pub(super) links: Vec<DeskLink>,
    /// How many there have been.
    pub(super) attached: u64,
    /// Answers that came when the device had no receiver for them.
    pub(super) unclaimed: VecDeque<Unclaimed>,
    /// What its tokens authorise, oldest first.
    pub(super) grants: Vec<Grant>,
    /// The last one that the hub would not have.
    pub(super) refusal: Option<Refusal>,
    /// Bytes of its requests that are not answered.
    pub(super) asked_bytes: usize,
    /// It has been logged that this device asks for what is not its own.
    pub(super) is_suspect: bool,
}

#[derive(Debug)]
pub(super) struct DeskLink {
    /// Never another's.
    pub(super) number: u64,
    pub(super) channel: Channel,
    pub(super) handle: Handle,
    pub(super) name: Box<str>,
    /// The configured connector that it leads to.
    pub(super) connector: ConnectorId,
    pub(super) end: DeskEnd,
}

#[derive(Debug)]
pub(super) enum DeskEnd {
    /// The device sends.
    Requests {
        receiving: LocalReceiver,
        /// Those that are not answered.
        outstanding: u32,
    },
    /// The device receives.
    Answers {
        sending: LocalSender,
        /// The address of its target.
        address: Option<Box<str>>,
        /// Deliveries that it will settle in two steps (receiver-settle-mode second); `None`: in one.
        in_doubt: Option<VecDeque<DeliveryId>>,
    },
}

#[derive(Debug)]
pub(super) struct Unclaimed {
    /// The link of the request.
    pub(super) link: u64,
    pub(super) channel: Channel,
    pub(super) connector: ConnectorId,
    pub(super) reply_to: Option<Box<str>>,
    pub(super) payload: Secret<Vec<u8>>,
}

impl Desk {
    pub(super) fn link_mut(&mut self, channel: Channel, handle: Handle) -> Option<&mut DeskLink> {
        self.links
            .iter_mut()
            .find(|link| link.channel == channel && link.handle == handle)
    }

    /// Whether the device asks this connector.
    pub(in crate::router) fn leads_to(&self, connector: ConnectorId) -> bool {
        self.links.iter().any(|link| link.connector == connector)
    }

    /// Whether one of its tokens was put at the connector of this name.
    pub(in crate::router) fn has_token_at(&self, connector: &str) -> bool {
        self.grants.iter().any(|grant| *grant.pool == *connector)
    }

    /// The receiver of an answer: the one that the request named, by its target or its own name; else the last attached
    /// in the same session, else the last of all (IoT Hub: clients name receivers that do not exist, or none).
    pub(super) fn receiver(&mut self, answer: &Unclaimed) -> Option<&mut LocalSender> {
        let rank = |link: &DeskLink| match &link.end {
            DeskEnd::Answers { address, .. } if link.connector == answer.connector => {
                let is_named = answer
                    .reply_to
                    .as_deref()
                    .is_some_and(|name| address.as_deref() == Some(name) || *link.name == *name);
                Some((is_named, link.channel == answer.channel))
            }
            DeskEnd::Answers { .. } | DeskEnd::Requests { .. } => None,
        };
        let best = self.links.iter().filter_map(rank).max()?;
        let link = self.links.iter_mut().rfind(|link| rank(link) == Some(best))?;
        match &mut link.end {
            DeskEnd::Answers { sending, .. } => Some(sending),
            DeskEnd::Requests { .. } => None,
        }
    }

    /// Keeps an answer for a receiver that is to come, as long as the link is there on which it was asked for: one that
    /// has gone has given up, and who comes next must not take this for his own.
    pub(super) fn keep(&mut self, answer: Unclaimed) {
        if !self.links.iter().any(|link| link.number == answer.link) {
            return;
        }
        self.unclaimed.push_back(answer);
        if self.unclaimed.len() > limits::CBS_UNCLAIMED {
            self.unclaimed.pop_front();
        }
    }

    /// Forgets links that are gone. What had not begun to go on one of them is for another receiver.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&DeskLink) -> bool) {
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.links).into_iter().partition(is_gone);
        self.links = left;
        let links = &self.links;
        self.unclaimed
            .retain(|answer| links.iter().any(|link| link.number == answer.link));
        for link in gone {
            if let DeskEnd::Answers { sending, .. } = link.end {
                for (asked_on, payload) in sending.into_unsent() {
                    self.keep(Unclaimed {
                        link: asked_on,
                        channel: link.channel,
                        connector: link.connector,
                        reply_to: None,
                        payload,
                    });
                }
            }
        }
    }

    /// Requests that are not answered.
    pub(super) fn outstanding(&self) -> u32 {
        let outstanding = self.links.iter().map(|link| match link.end {
            DeskEnd::Requests { outstanding, .. } => outstanding,
            DeskEnd::Answers { .. } => 0,
        });
        outstanding.sum()
    }

    /// Bytes of requests that are not there in full.
    pub(super) fn begun_bytes(&self) -> usize {
        let begun = self.links.iter().map(|link| match &link.end {
            DeskEnd::Requests { receiving, .. } => receiving.begun(),
            DeskEnd::Answers { .. } => 0,
        });
        begun.sum()
    }

    /// Answers that the device has not taken.
    pub(in crate::router) fn untaken(&self) -> usize {
        let untaken = self.links.iter().map(|link| match &link.end {
            DeskEnd::Answers { sending, .. } => sending.len(),
            DeskEnd::Requests { .. } => 0,
        });
        untaken.sum::<usize>() + self.unclaimed.len()
    }

    /// What led to one connector leads to its successor.
    pub(super) fn follow(&mut self, from: ConnectorId, to: ConnectorId) {
        let links = self.links.iter_mut().map(|link| &mut link.connector);
        let answers = self.unclaimed.iter_mut().map(|answer| &mut answer.connector);
        for connector in links.chain(answers).filter(|connector| **connector == from) {
            *connector = to;
        }
    }
}
