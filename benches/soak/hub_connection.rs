//! One connection of the hub: what it says to each frame, and what it enters in the ledger.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Site;
use super::ledger::{self, Way};
use super::rig::greeting::Greeting;
use super::rig::wire::{self, Fields, Frame, Input, Role, SessionFlow, Termini, WINDOW, room};
use super::rig::{Failure, cbs};

/// Credit of a device's link; given anew when half of it is used.
const CREDIT: u32 = 1000;
/// Of each device that stays, a command in this time.
const COMMAND_EVERY: Duration = Duration::from_millis(500);
const COMMAND_SIZE: usize = 256;

#[derive(Debug, Default)]
struct Session {
    next_incoming: u32,
    since_flow: u32,
    next_delivery: Option<u32>,
    /// Deliveries of this turn that are complete and not accepted yet.
    to_accept: Option<(u32, u32)>,
    next_outgoing: u32,
    window_end: u32,
    next_outgoing_delivery: u32,
    /// Commands that are not settled: whose, and which.
    unsettled: BTreeMap<u32, (usize, u32)>,
}

impl Session {
    fn flow(&mut self) -> SessionFlow {
        self.since_flow = 0;
        SessionFlow {
            next_incoming: self.next_incoming,
            next_outgoing: self.next_outgoing,
        }
    }
}

#[derive(Debug)]
struct Link {
    node: LinkNode,
    /// Ours: the hub sends on it.
    is_outgoing: bool,
    delivery_count: u32,
    since_flow: u32,
    credit: u32,
    /// The payload of a message that is not complete.
    begun: Vec<u8>,
    /// The last message that came.
    last: Option<u32>,
    next_command: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkNode {
    Cbs,
    Device(usize),
}

impl LinkNode {
    fn of(address: &str) -> Result<Self, Failure> {
        if address == cbs::NODE {
            return Ok(Self::Cbs);
        }
        address
            .split('/')
            .find_map(|part| part.strip_prefix(super::NAME))
            .and_then(|number| number.parse().ok())
            .map(Self::Device)
            .ok_or_else(|| Failure::new(format!("an attach to {address}")))
    }
}

/// What the hub knows of a connection.
pub(crate) struct Connection {
    site: Arc<Site>,
    greeting: Greeting,
    /// What is to be written.
    pub(crate) output: Vec<u8>,
    sessions: HashMap<u16, Session>,
    links: HashMap<(u16, u32), Link>,
    /// Nothing more is to be said.
    pub(crate) is_closed: bool,
}

impl Drop for Connection {
    /// What was not settled is in doubt, and is sent again.
    fn drop(&mut self) {
        for session in self.sessions.values_mut() {
            self.site
                .send_again(std::mem::take(&mut session.unsettled).into_values());
        }
    }
}

impl Connection {
    pub(crate) fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            greeting: Greeting::default(),
            output: Vec::new(),
            sessions: HashMap::new(),
            links: HashMap::new(),
            is_closed: false,
        }
    }

    /// Takes all whole frames of the input.
    pub(crate) fn take(&mut self, input: &mut Input) -> Result<(), Failure> {
        if self.greeting.take(input, &mut self.output) {
            while let Some((frame, size)) = wire::read_frame(input.rest())? {
                self.handle(frame)?;
                input.consume(size);
            }
        }
        input.compact();
        for (channel, session) in &mut self.sessions {
            if let Some((first, last)) = session.to_accept.take() {
                wire::accept(&mut self.output, *channel, first, last);
            }
        }
        Ok(())
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<(), Failure> {
        let channel = frame.channel;
        match frame.code {
            wire::TRANSFER => self.on_transfer(channel, frame.fields, frame.payload)?,
            wire::DISPOSITION => self.on_disposition(channel, frame.fields)?,
            wire::FLOW => self.on_flow(channel, frame.fields)?,
            wire::OPEN => wire::open(&mut self.output, "hub"),
            wire::BEGIN => self.on_begin(channel, frame.fields),
            wire::ATTACH => self.on_attach(channel, frame.fields)?,
            wire::DETACH => self.on_detach(channel, frame.fields)?,
            wire::END => {
                let ended = self.sessions.remove(&channel).unwrap_or_default();
                self.site.send_again(ended.unsettled.into_values());
                self.links.retain(|(of, _), _| *of != channel);
                wire::FrameWriter::amqp(&mut self.output, channel, wire::END).finish();
            }
            wire::CLOSE => {
                wire::FrameWriter::amqp(&mut self.output, 0, wire::CLOSE).finish();
                self.is_closed = true;
            }
            wire::EMPTY => {}
            other => return Err(Failure::new(format!("a frame with the performative {other:#x}"))),
        }
        Ok(())
    }

    fn on_begin(&mut self, channel: u16, mut fields: Fields<'_>) {
        fields.skip(1);
        let session = Session {
            next_incoming: fields.uint().unwrap_or(0),
            window_end: fields.uint().unwrap_or(0),
            ..Session::default()
        };
        self.sessions.insert(channel, session);
        wire::begin(&mut self.output, channel, Some(channel));
    }

    fn on_attach(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let (name, handle) = (fields.text(), fields.uint());
        let (Some(name), Some(handle)) = (name, handle) else {
            return Err(Failure::new("an attach without a name or a handle"));
        };
        let is_outgoing = fields.bool() == Some(true);
        fields.skip(2);
        let (source, target) = (fields.first_of_described(), fields.first_of_described());
        let role = if is_outgoing { Role::Sender } else { Role::Receiver };
        let address = if is_outgoing { &source } else { &target };
        let node = LinkNode::of(address.as_deref().unwrap_or_default())?;
        let termini = Termini {
            source: source.as_deref(),
            target: target.as_deref(),
        };
        wire::attach(&mut self.output, channel, &name, handle, role, termini);
        if !is_outgoing {
            let flow = self.session(channel)?.flow();
            wire::flow(&mut self.output, channel, flow, Some((handle, 0, CREDIT)));
        }
        let link = Link {
            node,
            is_outgoing,
            delivery_count: 0,
            since_flow: 0,
            credit: 0,
            begun: Vec::new(),
            last: None,
            next_command: Instant::now(),
        };
        self.links.insert((channel, handle), link);
        Ok(())
    }

    fn on_detach(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let handle = fields.uint().unwrap_or(u32::MAX);
        let Some(link) = self.links.remove(&(channel, handle)) else {
            return Err(Failure::new("a detach of no link"));
        };
        wire::detach(&mut self.output, channel, handle);
        if let (LinkNode::Device(device), true) = (link.node, link.is_outgoing) {
            let mut lost = Vec::new();
            self.session(channel)?.unsettled.retain(|_, command| {
                let is_lost = command.0 == device;
                lost.extend(is_lost.then_some(*command));
                !is_lost
            });
            self.site.send_again(lost.into_iter());
        }
        Ok(())
    }

    fn on_transfer(&mut self, channel: u16, mut fields: Fields<'_>, payload: &[u8]) -> Result<(), Failure> {
        let handle = fields.uint().unwrap_or(u32::MAX);
        let id = fields.uint();
        fields.skip(3);
        let more = fields.bool() == Some(true);
        fields.skip(3);
        let is_aborted = fields.bool() == Some(true);

        let link = self.links.get_mut(&(channel, handle));
        let link = link.ok_or_else(|| Failure::new("a transfer on no link"))?;
        let session = self.sessions.get_mut(&channel);
        let session = session.ok_or_else(|| no_session(channel))?;
        session.next_incoming = session.next_incoming.wrapping_add(1);
        session.since_flow += 1;
        if link.begun.is_empty() {
            // The first frame of a message.
            let expected = session.next_delivery;
            let id = id.or(expected).unwrap_or(0);
            if expected.is_some_and(|expected| expected != id) {
                self.site
                    .fault(format!("delivery-id {id} after {expected:?}: a gap"));
            }
            session.next_delivery = Some(id.wrapping_add(1));
        }
        link.begun.extend_from_slice(payload);
        let mut credit = None;
        if is_aborted {
            link.begun.clear();
        } else if !more {
            let message = std::mem::take(&mut link.begun);
            let id = session.next_delivery.unwrap_or(0).wrapping_sub(1);
            session.to_accept = Some((session.to_accept.map_or(id, |(first, _)| first), id));
            link.delivery_count = link.delivery_count.wrapping_add(1);
            link.since_flow += 1;
            if link.since_flow >= CREDIT / 2 {
                link.since_flow = 0;
                credit = Some((handle, link.delivery_count, CREDIT));
            }
            match link.node {
                LinkNode::Cbs => self.answer(channel, &message)?,
                LinkNode::Device(device) => note(&self.site, device, Way::Up, &message, &mut link.last),
            }
        }
        let session = self.session(channel)?;
        if credit.is_some() || session.since_flow >= WINDOW / 2 {
            let flow = session.flow();
            wire::flow(&mut self.output, channel, flow, credit);
        }
        Ok(())
    }

    /// Takes any token.
    fn answer(&mut self, channel: u16, request: &[u8]) -> Result<(), Failure> {
        let reply = self
            .links
            .iter()
            .find(|((of, _), link)| *of == channel && link.node == LinkNode::Cbs && link.is_outgoing)
            .map(|((_, handle), _)| *handle);
        let handle = reply.ok_or_else(|| Failure::new("a request without a link for its answer"))?;
        let session = self.sessions.get_mut(&channel);
        let session = session.ok_or_else(|| no_session(channel))?;
        let delivery = session.next_outgoing_delivery;
        cbs::answer(&mut self.output, channel, handle, delivery, request)
            .ok_or_else(|| Failure::new("a request without a message-id"))?;
        session.next_outgoing_delivery = delivery.wrapping_add(1);
        session.next_outgoing = session.next_outgoing.wrapping_add(1);
        Ok(())
    }

    fn on_disposition(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let (is_receiver, first) = (fields.bool() == Some(true), fields.uint().unwrap_or(0));
        let last = fields.uint().unwrap_or(first);
        let is_settled = fields.bool() == Some(true);
        let is_accepted = fields.encoded().is_some_and(wire::is_accepted);
        let site = Arc::clone(&self.site);
        let session = self.session(channel)?;
        if !(is_receiver && is_settled) {
            return Ok(());
        }
        for id in first..=last {
            match session.unsettled.remove(&id) {
                Some((device, number)) if is_accepted => site.ledger.accepted(device, Way::Down, number),
                Some(command) => site.send_again([command].into_iter()),
                // An answer of `$cbs`.
                None => {}
            }
        }
        Ok(())
    }

    fn on_flow(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let next_incoming = fields.uint().unwrap_or(0);
        let window = fields.uint().unwrap_or(0);
        self.session(channel)?.window_end = next_incoming.wrapping_add(window);
        fields.skip(2);
        if let Some(handle) = fields.uint()
            && let Some(link) = self.links.get_mut(&(channel, handle))
            && link.is_outgoing
        {
            let count = fields.uint().unwrap_or(0);
            let credit = fields.uint().unwrap_or(0);
            link.credit = count.wrapping_add(credit).wrapping_sub(link.delivery_count);
        }
        Ok(())
    }

    /// What is in doubt first, then new ones when their time has come.
    pub(crate) fn send_commands(&mut self) {
        let now = Instant::now();
        for ((channel, handle), link) in &mut self.links {
            let (LinkNode::Device(device), true) = (link.node, link.is_outgoing) else {
                continue;
            };
            let Some(session) = self.sessions.get_mut(channel) else {
                continue;
            };
            while link.credit > 0 && room(session.window_end, session.next_outgoing) > 0 {
                let number = match self.site.next_again(device) {
                    Some(number) => number,
                    None if link.next_command <= now && self.site.goes_on() => {
                        link.next_command = now + COMMAND_EVERY;
                        self.site.ledger.next(device, Way::Down)
                    }
                    None => break,
                };
                self.site.ledger.sent(device, Way::Down, number);
                let delivery = session.next_outgoing_delivery;
                let payload = ledger::payload(device, number, COMMAND_SIZE);
                wire::transfer(&mut self.output, *channel, *handle, delivery, &payload);
                session.unsettled.insert(delivery, (device, number));
                session.next_outgoing_delivery = delivery.wrapping_add(1);
                session.next_outgoing = session.next_outgoing.wrapping_add(1);
                link.credit -= 1;
                link.delivery_count = link.delivery_count.wrapping_add(1);
            }
        }
    }

    fn session(&mut self, channel: u16) -> Result<&mut Session, Failure> {
        self.sessions.get_mut(&channel).ok_or_else(|| no_session(channel))
    }
}

/// Enters a message that has come over a device's link; on one link they keep their order.
pub(crate) fn note(site: &Site, device: usize, way: Way, message: &[u8], last: &mut Option<u32>) {
    let Some((of, number)) = ledger::read(message) else {
        return site.fault(format!("{way:?}: a message for {device} that nobody sent"));
    };
    if of != device {
        site.fault(format!("{way:?}: a message of {of} on a link of {device}"));
    }
    if last.is_some_and(|last| last >= number) {
        site.fault(format!(
            "{way:?}: {device}: number {number} after {last:?} on one link"
        ));
    }
    *last = Some(number);
    if !site.ledger.seen(of, way, number) {
        site.fault(format!(
            "{way:?}: a message of {of} with the number {number} that nobody sent"
        ));
    }
}

fn no_session(channel: u16) -> Failure {
    Failure::new(format!("no session on channel {channel}"))
}
