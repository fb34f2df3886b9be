//! The vhost policy applied: at the open, at the attach, and where a message grows larger than it may.

use std::sync::Arc;
use std::time::Instant;

use super::attach::excerpt;
use super::connection::index;
use super::pair::{Leg, LinkPair, Parked, ParkedKind, Way};
use super::policy::{Admission, Group, LinkDenial, LinkRequest, Policy, host_of};
use super::route::COORDINATOR;
use super::settings::policy::PolicySettings;
use super::settings::{Direction, ListenerId};
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::edit::{self, EditedTail, Edits};
use crate::amqp::fields::Tail;
use crate::amqp::frame::{HEADER_LENGTH, MIN_MAX_FRAME_SIZE};
use crate::amqp::originate;
use crate::amqp::performative::{Attach, Performative, Role, Transfer};
use crate::amqp::plain::PlainTransfer;
use crate::amqp::serial::{Channel, Handle};
use crate::amqp::terminus::{Terminus, TerminusKind};
use crate::endpoint::connection::Announce;
use crate::endpoint::limits;
use crate::endpoint::link::End;
use crate::endpoint::window::WindowSize;

/// What a group's devices are told in the open, and the listener's announcement that it was made from.
#[derive(Debug)]
pub(super) struct GroupAnnounce {
    listener: Arc<Announce>,
    own: Arc<Announce>,
}

/// How large the messages of a link may be. Only links that have a limit have this.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageSize {
    limit: u64,
    /// Bytes of the message under way.
    seen: u64,
}

impl MessageSize {
    /// Whether a message that is one frame is small enough.
    #[inline]
    pub(super) fn admits(&self, transfer: &PlainTransfer<'_>) -> bool {
        let length = transfer.rest.len().saturating_sub(transfer.tail_length);
        u64::try_from(length).is_ok_and(|length| length <= self.limit)
    }

    /// Counts a frame; `true` when its message is too large.
    #[inline]
    pub(super) fn is_exceeded_by(&mut self, transfer: &Transfer<'_>) -> bool {
        let length = u64::try_from(transfer.payload.len()).unwrap_or(u64::MAX);
        self.seen = self.seen.saturating_add(length);
        let is_exceeded = self.seen > self.limit;
        if transfer.aborted {
            self.seen = 0;
            return false;
        }
        if !transfer.more {
            self.seen = 0;
        }
        is_exceeded
    }
}

/// Keeps the log of denials short: what devices can repeat at will must not fill a disk.
#[derive(Debug, Default)]
pub(super) struct Denials {
    since: Option<Instant>,
    count: u32,
}

impl Denials {
    /// What to add to the line of a denial; `None`: no line.
    pub(super) fn note(&mut self, now: Instant) -> Option<String> {
        let unlogged = self.count.saturating_sub(limits::LOGGED_DENIALS);
        let is_over = self.since.is_none_or(|since| now >= since + limits::LOG_PERIOD);
        if is_over {
            self.since = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        match (self.count <= limits::LOGGED_DENIALS, is_over && unlogged > 0) {
            (false, _) => None,
            (true, false) => Some(String::new()),
            (true, true) => Some(format!(" ({unlogged} denials before this were not logged)")),
        }
    }
}

impl Router {
    /// Another policy for those who connect or attach from now on. Whoever is connected keeps what he was admitted to,
    /// and is counted on.
    pub(super) fn replace_policy(&mut self, settings: PolicySettings) {
        self.policy = Policy::new(settings);
        self.group_announces.clear();
    }

    /// Whether a device, or a broker, that has said its open may stay, by the vhost that it is on; tells it if not.
    pub(super) fn admit(
        &mut self,
        key: ConnectionKey,
        listener: ListenerId,
        hostname: Option<&str>,
        now: Instant,
    ) -> bool {
        let fixed = self
            .settings
            .listeners
            .get(listener.0)
            .and_then(|listener| listener.policy_vhost.as_deref());
        let Some(entry) = self.connections.get_mut(key.index()) else {
            return false;
        };
        entry.vhost = fixed.or(hostname).unwrap_or_default().into();
        let host = host_of(&entry.transport.peer);
        let admitted = self
            .policy
            .admit(&mut self.book, &entry.vhost, entry.user(), &host);
        match admitted {
            Ok(None) => true,
            Ok(Some(admission)) => {
                tracing::debug!(
                    target: "POLICY",
                    "[C{}] ALLOW AMQP Open for user '{}', rhost '{host}', vhost '{}': group '{}'",
                    entry.connection.number,
                    entry.user(),
                    admission.group.vhost,
                    admission.group.settings.name
                );
                let group = Arc::clone(&admission.group);
                entry.admission = Some(Box::new(admission));
                self.announce_group(key, listener, &group);
                true
            }
            Err(reason) => {
                if let Some(more) = self.denials.note(now) {
                    tracing::info!(
                        target: "POLICY",
                        "[C{}] DENY AMQP Open for user '{}', rhost '{host}', vhost '{}': {reason}{more}",
                        entry.connection.number,
                        entry.user(),
                        excerpt(&entry.vhost)
                    );
                }
                let error = AmqpError::new(
                    condition::RESOURCE_LIMIT_EXCEEDED,
                    "connection disallowed by local policy",
                );
                entry.connection.close(Some(&error), now);
                self.wake(key);
                false
            }
        }
    }

    /// Gives a device's place free.
    pub(super) fn give_up_place(&mut self, key: ConnectionKey) {
        if let Some(admission) = self.entry_mut(key).and_then(|entry| entry.admission.take()) {
            self.book.leave(&admission);
        }
    }

    /// The limits of a group are part of what its devices are told, and are held to: the tighter of the group's and the
    /// listener's.
    fn announce_group(&mut self, key: ConnectionKey, listener: ListenerId, group: &Group) {
        let settings = &group.settings;
        let Some((_, common)) = self.listeners.get(listener.0) else {
            return;
        };
        if (
            settings.max_frame_size,
            settings.channel_max,
            settings.session_window,
        ) == (None, None, None)
        {
            return;
        }
        let known = self
            .group_announces
            .get(&(listener, group.id))
            .filter(|known| Arc::ptr_eq(&known.listener, common));
        let own = known.map(|known| Arc::clone(&known.own)).unwrap_or_else(|| {
            let own = Arc::new(group_announce(common, group));
            let listener_announce = Arc::clone(common);
            self.group_announces.insert(
                (listener, group.id),
                GroupAnnounce {
                    listener: listener_announce,
                    own: Arc::clone(&own),
                },
            );
            own
        });
        if let Some(entry) = self.entry_mut(key) {
            entry.connection.announce(own);
        }
    }

    /// Whether a device may attach a link, by the group that it was admitted to.
    ///
    /// # Errors
    /// What to refuse the link with.
    pub(super) fn admit_link(
        &mut self,
        key: ConnectionKey,
        attach: &Attach<'_>,
        now: Instant,
    ) -> Result<(), AmqpError> {
        let Some(entry) = self.entry(key) else {
            return Ok(());
        };
        let Some(admission) = entry.admission.as_deref() else {
            return Ok(());
        };
        let (direction, terminus) = match attach.role {
            Role::Sender => (Direction::In, attach.target),
            Role::Receiver => (Direction::Out, attach.source),
        };
        // One that cannot be read is refused for that, by whoever looks for its route.
        let Ok(terminus) = terminus.map(Terminus::parse).transpose() else {
            return Ok(());
        };
        let address = terminus.and_then(|terminus| match terminus.kind {
            TerminusKind::Coordinator => Some(COORDINATOR),
            TerminusKind::Source | TerminusKind::Target => terminus.routed_by(),
        });
        let request = LinkRequest {
            direction,
            address,
            is_dynamic: terminus.is_some_and(|terminus| terminus.dynamic),
            present: entry.connection.owned_links(attach.role),
        };
        let Err(denial) = admission.group.admit_link(entry.user(), &request) else {
            return Ok(());
        };
        if let Some(more) = self.denials.note(now) {
            let entry = self.entry(key);
            let (number, user, vhost) = entry.map_or((0, "", String::new()), |entry| {
                (entry.connection.number, entry.user(), excerpt(&entry.vhost))
            });
            let way = match direction {
                Direction::In => "sender",
                Direction::Out => "receiver",
            };
            let shown = excerpt(address.unwrap_or("<none>"));
            tracing::info!(
                target: "POLICY",
                "[C{number}] DENY AMQP Attach {way} link '{shown}' for user '{user}', vhost '{vhost}': {}{more}",
                denial.reason()
            );
        }
        let condition = match denial {
            LinkDenial::Count => condition::RESOURCE_LIMIT_EXCEEDED,
            LinkDenial::Address | LinkDenial::DynamicSource | LinkDenial::AnonymousSender => {
                condition::UNAUTHORIZED_ACCESS
            }
        };
        Err(AmqpError::new(condition, "link disallowed by local policy"))
    }

    /// The limit for the messages of a link that a device attaches.
    pub(super) fn message_size(&self, key: ConnectionKey, role: Role) -> Option<MessageSize> {
        let entry = self.entry(key)?;
        let group = entry.admission.as_deref().map(|admission| &*admission.group);
        let limit = self.policy.max_message_size(group);
        (role == Role::Sender && limit > 0).then_some(MessageSize { limit, seen: 0 })
    }

    /// A device sent more than a message may have: its link is detached there and at the hub, where the message is aborted
    /// if it had begun. What the device had sent before it goes on, and nothing else of the device is touched
    /// (AMQP 1.0 part 2, §2.7.3, max-message-size).
    pub(super) fn refuse_message(&mut self, number: u32, now: Instant) {
        let Some(link) = self.link_pairs.get(index(number)) else {
            return;
        };
        let (pair, is_granted, is_waiting) = (link.session_pair, link.is_granted, link.waiting.is_some());
        let link_number = link.number;
        let limit = link.message_size.map_or(0, |size| size.limit);
        let error = AmqpError::new(
            condition::MESSAGE_SIZE_EXCEEDED,
            format!("Message size exceeded: a message on this link may have {limit} bytes"),
        );
        if let Some(more) = self.denials.note(now) {
            let device = self
                .link_end(number, Leg::Device)
                .and_then(|(key, _, _)| self.entry(key));
            tracing::info!(
                target: "POLICY",
                "[C{}][L{link_number}] DENY message of more than {limit} bytes: link detached{more}",
                device.map_or(0, |entry| entry.connection.number)
            );
        }
        if is_waiting {
            return self.refuse_waiting(number, Some(&error));
        }
        self.detach_device_for_good(number, &error);
        match is_granted {
            true => self.drop_unfinished(pair, number),
            // Nobody has asked for anything.
            false => self.drop_transfers(pair, Way::Up, number),
        }
        let mut frame = Vec::new();
        originate::write_detach(&mut frame, Channel(0), Handle(0), true, Some(&error.encode()));
        let body = frame.get(HEADER_LENGTH..).unwrap_or_default();
        let Ok(Performative::Detach(detach)) = Performative::parse(body) else {
            return;
        };
        let must_wait = self
            .session_pairs
            .get(index(pair))
            .is_some_and(|pair| !pair.up.is_empty());
        if must_wait {
            let parked = Parked {
                kind: ParkedKind::Detach,
                link: number,
                length: body.len(),
                offset: 0,
            };
            self.park(pair, Way::Up, parked, body);
            self.expect_answer(number, Leg::Device, &detach);
        } else {
            self.expect_answer(number, Leg::Device, &detach);
            self.forward_detach(number, Leg::Device, &detach);
        }
        self.pump(pair, Way::Up);
    }

    /// Ends the device's side of a pair whose other side goes on: what the device still says of it is for nobody.
    fn detach_device_for_good(&mut self, number: u32, error: &AmqpError) {
        let end = self.link_end(number, Leg::Device);
        if let Some(link) = self.link_pairs.get_mut(index(number)) {
            link.device = None;
        }
        let Some((connection, channel, handle)) = end else {
            return;
        };
        let Some(entry) = self.entry_mut(connection) else {
            return;
        };
        let Some(link) = entry.connection.link_mut(channel, handle) else {
            return;
        };
        link.owner = None;
        match link.local {
            End::Idle => entry
                .connection
                .refuse_attach(channel, handle, None, None, Some(error)),
            End::Attached => entry.connection.detach_link(channel, handle, true, Some(error)),
            End::Detached => {}
        }
        self.wake(connection);
    }

    /// Forgets the parked frames of the delivery that a link is in the middle of.
    fn drop_unfinished(&mut self, pair: u32, link: u32) {
        let Some(pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        let mut first = None;
        let mut bodies = pair.up.bodies.as_slice();
        for (position, entry) in pair.up.entries.iter().enumerate() {
            let (body, rest) = bodies.split_at_checked(entry.length).unwrap_or((bodies, &[]));
            bodies = rest;
            if entry.kind == ParkedKind::Transfer
                && entry.link == link
                && let Ok(Performative::Transfer(transfer)) = Performative::parse(body)
            {
                first = match transfer.more && !transfer.aborted {
                    true => first.or(Some(position)),
                    false => None,
                };
            }
        }
        for entry in pair.up.entries.iter_mut().skip(first.unwrap_or(usize::MAX)) {
            if entry.link == link && matches!(entry.kind, ParkedKind::Transfer | ParkedKind::Flow) {
                entry.kind = ParkedKind::Dropped;
            }
        }
    }
}

/// The hub's answer to an attach with the smaller of its max-message-size and the policy's. `None`: it stays as it is.
pub(super) fn limited_answer(link: &LinkPair, attach: &Attach<'_>, tail: Tail<'_>) -> Option<EditedTail> {
    let limit = link.message_size?.limit;
    // A refusal is not to look like an offer.
    attach.target?;
    // 0 is no limit, as is none.
    let hubs = edit::max_message_size(tail).filter(|&size| size > 0);
    if hubs.is_some_and(|size| size <= limit) {
        return None;
    }
    let edits = Edits {
        max_message_size: Some(limit),
        ..Edits::default()
    };
    edit::attach_tail(tail, &edits)
}

fn group_announce(listener: &Announce, group: &Group) -> Announce {
    let settings = &group.settings;
    let max_frame_size = settings
        .max_frame_size
        .map_or(listener.max_frame_size, |size| size.min(listener.max_frame_size))
        .max(MIN_MAX_FRAME_SIZE);
    let session_window = match (settings.session_window, listener.session_window) {
        (None, window) => window,
        // The file has bytes, and AMQP has frames.
        (Some(bytes), WindowSize::Frames(frames)) => {
            WindowSize::Frames((bytes / max_frame_size).clamp(1, frames.max(1)))
        }
        (Some(bytes), WindowSize::Bytes { .. }) => WindowSize::Frames((bytes / max_frame_size).max(1)),
    };
    Announce {
        max_frame_size,
        channel_max: settings
            .channel_max
            .map_or(listener.channel_max, |max| max.min(listener.channel_max)),
        session_window,
        ..listener.clone()
    }
}

/// Where the place of a device is kept; boxed, for most connections have none.
pub(super) type Place = Option<Box<Admission>>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn so_many_denials_are_logged_and_the_rest_are_counted() {
        let mut denials = Denials::default();
        let now = Instant::now();
        for _ in 0..limits::LOGGED_DENIALS {
            assert_eq!(denials.note(now).as_deref(), Some(""));
        }
        let almost = now + limits::LOG_PERIOD - Duration::from_millis(1);
        assert_eq!(denials.note(now), None);
        assert_eq!(denials.note(almost), None);
        assert_eq!(
            denials.note(now + limits::LOG_PERIOD).as_deref(),
            Some(" (2 denials before this were not logged)")
        );
    }
}
