//! What peers may do: connect, attach, send, settle, stall, go.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::ListenerId;

use super::Simulation;
use super::promises::{is_live, live_links};
use super::setup::{Temper, announces};
use crate::peer::{Announces, Auto, Kind, Link};
use crate::wire;
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId};

/// Handles of the bystander's links.
pub(super) const UP: u32 = 0;
pub(super) const DOWN: u32 = 1;

impl Simulation {
    // ---- hubs and time -------------------------------------------------------------------------------------------

    /// What the next hub is like that a dial is answered with.
    pub(super) fn draw_hub(&mut self) {
        let is_steady = self.setup.temper == Temper::Steady;
        let hub = (
            self.setup.auto(&mut self.random, HUB_AUTO, is_steady),
            announces(&mut self.random, self.setup.is_heavy),
        );
        if self.setup.hubs_come_and_go && self.random.one_in(6) {
            self.hub_is_away = !self.hub_is_away;
        }
        let is_absent = self.hub_is_away || (!is_steady && self.random.one_in(20));
        self.world.hub = (!is_absent).then_some(hub);
    }

    /// Answers a dial, not always the first, or lets it fail.
    pub(super) fn treat_dial(&mut self) {
        let dials = self.world.dials.clone();
        let Some(&connector) = dials.get(self.random.below(dials.len())) else {
            return;
        };
        match self.world.hub {
            Some((auto, announces)) if self.random.one_in(2) => {
                self.world.answer_dial_of(connector, "hub", auto, announces);
            }
            _ => self.world.fail_dial_of(connector),
        }
    }

    pub(super) fn pass_time(&mut self) {
        let most = if self.random.one_in(4) { 25_000 } else { 3000 };
        let by = u64::try_from(self.random.below(most)).expect("small");
        self.advance(Duration::from_millis(by));
    }

    /// Time passes, in which what does not stall arrives. Where silence has an end, everybody who can says now and then
    /// that it is there.
    pub(super) fn advance(&mut self, by: Duration) {
        self.world.run();
        let pause = Duration::from_secs(3);
        let mut left = by;
        while self.setup.has_deadlines && left > pause {
            for id in 0..self.world.peers.len() {
                if self.world.is_alive(id) && self.is_talking(id) {
                    self.world
                        .peer(id)
                        .say(&wire::Frame::new(0, wire::EMPTY, Vec::new()));
                }
            }
            self.world.run();
            self.world.advance(pause);
            left -= pause;
        }
        self.world.advance(left);
    }

    /// Another configuration, which is mostly the same one.
    pub(super) fn reload(&mut self) {
        let settings = &mut self.setup.settings;
        if self.setup.temper == Temper::Wild && self.random.one_in(4) {
            let connector = settings.connectors.first_mut().expect("a connector");
            let user = connector.sasl_username.take();
            connector.sasl_username = user.is_none().then(|| "other".to_owned());
            self.totals.losses += 1;
        } else if self.random.one_in(3) {
            // Of no interest to any link that there is.
            match settings.routes.last() {
                Some(route) if route.name == "elsewhere" => drop(settings.routes.pop()),
                _ => {
                    let mut route = settings.routes.first().expect("a route").clone();
                    route.name = "elsewhere".into();
                    route.matcher = linkrouterd::router::settings::Matcher::Prefix("elsewhere/".into());
                    settings.routes.push(route);
                }
            }
        }
        let settings = settings.clone();
        let before = self.world.router.snapshot();
        let reloaded = self.world.reconfigure(settings);
        if reloaded.changed == 0 {
            assert_eq!(self.world.router.snapshot(), before, "nothing changed");
        }
    }

    // ---- a bystander ---------------------------------------------------------------------------------------------

    /// A device with a link each way to a hub that does all that it should.
    pub(super) fn place_bystander(&mut self) {
        if self.setup.temper != Temper::Steady {
            return;
        }
        self.draw_hub();
        let auto = Auto {
            credit: 50,
            accept: true,
            ..DEVICE_AUTO
        };
        let id = self.world.device_with("bystander", auto, Announces::default());
        let peer = self.world.peer(id);
        peer.attach(0, UP, "up", true, "devices/bystander/messages");
        peer.attach(0, DOWN, "down", false, "devices/bystander/messages");
        peer.grant(0, DOWN, 50);
        self.world.run();
        self.bystander = Some(id);
    }

    pub(super) fn bystander_speaks(&mut self) {
        if let Some(id) = self.bystander {
            self.queue_message(id, 0, UP, 10);
            self.world.peer(id).push_out(0);
        }
    }

    // ---- connections, sessions and links -------------------------------------------------------------------------

    pub(super) fn connect(&mut self) {
        self.next_device += 1;
        let (auto, announces) = (
            self.setup.auto(&mut self.random, DEVICE_AUTO, false),
            announces(&mut self.random, self.setup.is_heavy),
        );
        // Some devices share their container-id.
        let name = format!("dev{}", self.next_device % 3);
        if self.setup.has_choice && self.random.one_in(4) {
            let auto = Auto {
                begin: true,
                attach: true,
                ..auto
            };
            self.world.broker_with(ListenerId(1), "broker", auto, announces);
            return;
        }
        let id = self.world.connect(&name, auto, announces).expect("room");
        self.world.peer(id).open();
        self.world.peer(id).begin(0);
        if self.random.one_in(8) {
            // It is there before anything is heard of it.
            self.conduct(id).has_stalled = true;
            self.world.set_speaks(id, false);
        }
    }

    pub(super) fn is_talking(&mut self, id: PeerId) -> bool {
        let peer = self.world.peer(id);
        peer.is_open && !peer.close_sent && peer.closed.is_none() && !peer.is_mute
    }

    pub(super) fn channel_of(&mut self, id: PeerId) -> Option<u16> {
        if !self.is_talking(id) {
            return None;
        }
        let sessions = self.world.peer(id).sessions.iter();
        let channels: Vec<u16> = sessions
            .filter(|(_, session)| !session.end_sent && !session.is_ended && session.remote.is_some())
            .map(|(&channel, _)| channel)
            .collect();
        channels.get(self.random.below(channels.len())).copied()
    }

    pub(super) fn begin(&mut self, id: PeerId) {
        if self.world.peer(id).kind == Kind::Device && self.is_talking(id) {
            self.next_channel += 1;
            self.world.peer(id).begin(self.next_channel);
        }
    }

    pub(super) fn attach(&mut self, id: PeerId) -> Option<()> {
        let channel = self.channel_of(id)?;
        if self.world.peer(id).kind != Kind::Device {
            return None;
        }
        self.next_handle += 1;
        let handle = 1 + self.next_handle;
        let is_sender = self.random.one_in(2);
        let name = format!("link{}", self.random.below(4));
        // A name that is in use is in use (AMQP 1.0 part 2, §2.6.1). One that is being detached can be told from its
        // successor by the order of the answers, if both come from one hub.
        let has_choice = self.setup.has_choice;
        let is_over = |link: &Link| link.detach_sent && (link.detached.is_some() || !has_choice);
        let in_use = |link: &Link| link.name == name && link.is_sender == is_sender && !is_over(link);
        let mut sessions = self.world.peer(id).sessions.values();
        if sessions.any(|session| session.links.values().any(in_use)) {
            return None;
        }
        let address = match self.random.below(12) {
            0 => "nowhere",
            _ => "/devices/d1/messages",
        };
        let routed = self.terminus(if is_sender { 0x29 } else { 0x28 }, address);
        let (source, target) = match is_sender {
            true => (wire::terminus(0x28, "here"), routed),
            false => (routed, wire::terminus(0x29, "here")),
        };
        self.world
            .peer(id)
            .attach_with(channel, handle, &name, is_sender, source, target);
        if !is_sender && self.random.one_in(2) {
            let credit = self.world.peer(id).auto.credit;
            self.world.peer(id).grant(channel, handle, credit);
        }
        if self.random.one_in(12) && self.bystander != Some(id) {
            self.world.peer(id).detach(channel, handle, true, Value::Null);
        }
        Some(())
    }

    /// A terminus of any life time.
    fn terminus(&mut self, code: u64, address: &str) -> Value {
        let policies = ["link-detach", "session-end", "connection-close", "never"];
        let policy = policies.get(self.random.below(6)).copied();
        let timeout = if self.random.one_in(8) { 60 } else { 0 };
        self.totals.resumable += usize::from(policy == Some("never") || timeout > 0);
        let fields = vec![
            wire::string(address),
            Value::Null,
            policy.map_or(Value::Null, wire::symbol),
            wire::uint(timeout),
        ];
        wire::described(code, fields)
    }

    /// A live link, of a peer's choice.
    pub(super) fn link_of(&mut self, id: PeerId, is_sender: bool) -> Option<(u16, u32)> {
        let channel = self.channel_of(id)?;
        let links = self.world.peer(id).session(channel).links.iter();
        let handles: Vec<u32> = links
            .filter(|(_, link)| link.is_sender == is_sender && link.remote.is_some() && !link.detach_sent)
            .map(|(&handle, _)| handle)
            .collect();
        Some((channel, *handles.get(self.random.below(handles.len()))?))
    }

    // ---- deliveries ----------------------------------------------------------------------------------------------

    pub(super) fn send(&mut self, id: PeerId) -> Option<()> {
        let (channel, handle) = self.link_of(id, true)?;
        let (most, sizes) = match self.setup.is_heavy {
            true => (30, [400, 2000, 20_000, 20_000, 60_000, 60_000, 60_000]),
            false => (5, [0, 10, 10, 400, 400, 2000, 20_000]),
        };
        for _ in 0..1 + self.random.below(most) {
            let padding = *sizes.get(self.random.below(7)).expect("one");
            self.queue_message(id, channel, handle, padding);
        }
        if self.random.one_in(3) && self.bystander != Some(id) {
            // A part of a message only.
            let limit = 1 + self.random.below(400);
            self.world.peer(id).send_piece(channel, handle, limit);
        } else {
            self.world.peer(id).push_out(channel);
        }
        Some(())
    }

    fn queue_message(&mut self, id: PeerId, channel: u16, handle: u32, padding: usize) {
        let settled = self.random.one_in(3);
        let link = self.world.peer(id).link(channel, handle);
        let message = self.ledger.message((id, link.number), padding, settled);
        link.queue.push_back((message, settled));
        self.totals.messages += 1;
    }

    /// A receiver settles some of what it has.
    pub(super) fn settle_some(&mut self, id: PeerId) -> Option<()> {
        let channel = self.channel_of(id)?;
        let links = self.world.peer(id).session(channel).links.iter();
        let open_on = |(&handle, link): (&u32, &Link)| {
            let received = link.received.iter().filter(|_| !link.detach_sent);
            let open = received.filter(|delivery| !delivery.settled && delivery.outcome.is_none());
            let open: Vec<u32> = open.map(|delivery| delivery.id).collect();
            (!open.is_empty()).then_some((handle, open))
        };
        let mut unsettled: Vec<(u32, Vec<u32>)> = links.filter_map(open_on).collect();
        if unsettled.is_empty() {
            return None;
        }
        let (handle, open) = unsettled.swap_remove(self.random.below(unsettled.len()));
        for delivery in open.into_iter().take(1 + self.random.below(6)) {
            let outcomes = [wire::ACCEPTED, wire::REJECTED, wire::RELEASED, wire::MODIFIED];
            let outcome = *outcomes.get(self.random.below(4)).expect("one");
            self.totals.settled += 1;
            self.world.peer(id).settle(channel, handle, delivery, outcome);
        }
        if self.random.one_in(8) {
            // Nobody knows these.
            self.world
                .peer(id)
                .dispose(channel, true, 0x4000_0000, 0x4000_0005, true, Value::Null);
        }
        Some(())
    }

    /// A sender settles one that its receiver has not settled.
    pub(super) fn forget_one(&mut self, id: PeerId) -> Option<()> {
        let (channel, handle) = self.link_of(id, true)?;
        let link = self.world.peer(id).link(channel, handle);
        let whole: Vec<(u32, u32)> = link
            .unsettled
            .iter()
            .filter(|&(_, &number)| number < link.sent)
            .map(|(&delivery, &number)| (delivery, number))
            .collect();
        let sender = (id, link.number);
        let &(delivery, number) = whole.get(self.random.below(whole.len()))?;
        self.totals.settled += 1;
        self.ledger.forget(sender, number);
        self.world.peer(id).forget(channel, handle, delivery);
        Some(())
    }

    /// A receiver asks for what there is, and no more after that.
    pub(super) fn drain(&mut self, id: PeerId) {
        if let Some((channel, handle)) = self.link_of(id, false) {
            self.world.peer(id).flow(channel, Some(handle), true, false);
        }
    }

    /// Sends what may go, and lets all come that is there.
    pub(super) fn push_and_grant(&mut self, id: PeerId) {
        let credit = self.world.peer(id).auto.credit;
        for (channel, handle, is_sender) in live_links(self.world.peer(id)) {
            if is_sender {
                self.world.peer(id).push_out(channel);
            } else if self.world.peer(id).link(channel, handle).credit < credit {
                self.world.peer(id).grant(channel, handle, credit);
            }
        }
    }

    /// Opens session windows again that have been used up, of those who do not do so by themselves.
    pub(super) fn open_windows(&mut self) {
        for id in self.alive() {
            if !self.is_talking(id) {
                continue;
            }
            let peer = self.world.peer(id);
            let channels: Vec<u16> = peer.sessions.keys().copied().collect();
            for channel in channels {
                let session = peer.session(channel);
                if is_live(session) && session.remote.is_some() && session.incoming_window == 0 {
                    let window = peer.announces.window;
                    peer.widen(channel, window);
                }
            }
        }
    }

    // ---- stalls and ends -----------------------------------------------------------------------------------------

    pub(super) fn stall_reading(&mut self, id: PeerId) {
        let reads = self.random.one_in(3) && !self.conduct(id).is_half_open;
        self.conduct(id).has_stalled |= !reads;
        self.world.set_reads(id, reads);
    }

    pub(super) fn stall_speaking(&mut self, id: PeerId) {
        let speaks = self.random.one_in(3) && !self.conduct(id).is_half_open;
        self.conduct(id).has_stalled |= !speaks;
        self.world.set_speaks(id, speaks);
    }

    /// Its host is gone, and nobody has told us.
    pub(super) fn go_half_open(&mut self, id: PeerId) {
        self.totals.half_open += 1;
        self.conduct(id).is_half_open = true;
        self.world.set_reads(id, false);
        self.world.set_speaks(id, false);
    }

    pub(super) fn detach(&mut self, id: PeerId) {
        let is_sender = self.random.one_in(2);
        if let Some((channel, handle)) = self.link_of(id, is_sender) {
            let closed = self.random.one_in(2);
            self.world.peer(id).detach(channel, handle, closed, Value::Null);
        }
    }

    pub(super) fn end(&mut self, id: PeerId) {
        if let Some(channel) = self.channel_of(id) {
            self.world.peer(id).end(channel, Value::Null);
        }
    }

    pub(super) fn close(&mut self, id: PeerId) {
        if self.is_talking(id) {
            self.conduct(id).has_gone = true;
            self.world.peer(id).close(Value::Null);
        }
    }

    pub(super) fn lose(&mut self, id: PeerId) {
        self.totals.losses += 1;
        self.conduct(id).has_gone = true;
        if self.random.one_in(2) {
            self.world.lose(id);
        } else {
            self.world.end_of_stream(id);
        }
    }
}
