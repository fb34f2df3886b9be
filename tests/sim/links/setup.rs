//! What the router of a schedule is configured to, and what its peers are like.

use std::time::Duration;

use linkrouterd::router::settings::{Destination, Direction, ListenerRole, RouterSettings};

use crate::peer::{Announces, Auto};
use crate::world::{Chunks, Random, settings};

/// How much is done to peers that do no wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Temper {
    /// Nobody goes before the end: all that is sent arrives.
    Calm,
    /// Hubs do all that they should, devices what they like: one that does no wrong does not notice.
    Steady,
    /// Anybody does anything.
    Wild,
}

/// What distinguishes one schedule from another, before anything happens.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) settings: RouterSettings,
    pub(super) temper: Temper,
    pub(super) chunks: Chunks,
    /// Two connectors and the brokers of a listener serve the same addresses.
    pub(super) has_choice: bool,
    /// Messages are large and many.
    pub(super) is_heavy: bool,
    /// Whoever is silent for long is gone.
    pub(super) has_deadlines: bool,
    /// Whoever may be careless opens its session windows late: not before all is used up.
    pub(super) opens_late: bool,
    /// Hubs are away for some time; dials are then answered late, in any order, or fail.
    pub(super) hubs_come_and_go: bool,
}

impl Setup {
    pub(super) fn of(seed: u64, random: &mut Random) -> Self {
        let temper = *[Temper::Calm, Temper::Steady, Temper::Wild]
            .get(usize::try_from(seed % 3).expect("small"))
            .expect("one");
        let mut settings = settings();
        if random.one_in(3) {
            narrow(&mut settings, random);
        }
        if temper != Temper::Steady && random.one_in(6) {
            limit_connections(&mut settings, random);
        }
        let has_choice = temper != Temper::Steady && random.one_in(2);
        if has_choice {
            offer_choice(&mut settings);
        }
        let has_deadlines = random.one_in(4);
        if has_deadlines {
            expire(&mut settings);
        }
        Setup {
            settings,
            temper,
            chunks: *[Chunks::Random, Chunks::Random, Chunks::Whole]
                .get(random.below(3))
                .expect("one"),
            has_choice,
            is_heavy: random.one_in(12),
            has_deadlines,
            opens_late: seed % 4 == 1,
            hubs_come_and_go: temper != Temper::Steady && random.one_in(3),
        }
    }

    /// What a peer does by itself. One that is not `dutiful` leaves something unanswered now and then.
    pub(super) fn auto(&self, random: &mut Random, base: Auto, dutiful: bool) -> Auto {
        let mut answers = |usually: bool| usually && (dutiful || !random.one_in(12));
        Auto {
            attach: answers(base.attach),
            detach: answers(base.detach),
            end: answers(base.end),
            window: dutiful || !self.opens_late,
            credit: *[1, 3, 50].get(random.below(3)).expect("one"),
            accept: random.one_in(2),
            ..base
        }
    }
}

/// Small frames, and few of them under way.
fn narrow(settings: &mut RouterSettings, random: &mut Random) {
    let mut frames = || Some(1 + u32::try_from(random.below(4)).expect("small"));
    for listener in &mut settings.listeners {
        listener.limits.incoming_window = frames();
        listener.limits.max_frame_size = 512;
    }
    for connector in &mut settings.connectors {
        connector.limits.incoming_window = frames();
        connector.limits.max_frame_size = 1024;
    }
}

/// A connector that is full with a few links, and has several connections.
fn limit_connections(settings: &mut RouterSettings, random: &mut Random) {
    for connector in &mut settings.connectors {
        connector.sharing.max_links = 1 + random.below(3);
        connector.sharing.pool_size = 2 + random.below(3);
        connector.limits.channel_max = *[1, 2, 32767].get(random.below(3)).expect("one");
    }
}

/// A second connector, and a listener for brokers, behind the addresses of the first; one of them under other names.
fn offer_choice(settings: &mut RouterSettings) {
    let mut second = settings.connectors.first().expect("a connector").clone();
    second.name = "HUB2".into();
    settings.connectors.push(second);
    let mut brokers = settings.listeners.first().expect("a listener").clone();
    brokers.name = "BROKERS".into();
    brokers.role = ListenerRole::RouteContainer;
    settings.listeners.push(brokers);
    for (name, added) in [("HUB2", "second/"), ("BROKERS", "")] {
        for direction in [Direction::In, Direction::Out] {
            let mut route = settings.routes.first().expect("a route").clone();
            route.name = format!("{name} {direction:?}");
            route.direction = direction;
            route.destination = Destination::Connection(name.into());
            route.add_external_prefix = added.into();
            settings.routes.push(route);
        }
    }
}

/// Silence has an end, for devices and for hubs.
fn expire(settings: &mut RouterSettings) {
    let timeout = Some(Duration::from_secs(16));
    for listener in &mut settings.listeners {
        listener.limits.idle_timeout = timeout;
    }
    for connector in &mut settings.connectors {
        connector.limits.idle_timeout = timeout;
    }
}

// ---- peers -------------------------------------------------------------------------------------------------------

/// What a peer announces: small frames, tiny windows, numbers about to wrap. Where messages
/// are large, no window is so wide that they do not use it up.
pub(super) fn announces(random: &mut Random, is_heavy: bool) -> Announces {
    let wide = if is_heavy { 500 } else { 2048 };
    let first = *[0, 0xffff_fffd, 7].get(random.below(3)).expect("one");
    Announces {
        max_frame_size: *[512, 700, 4096, 65536].get(random.below(4)).expect("one"),
        idle_time_out: random.one_in(4).then_some(10_000),
        channel_max: 8191,
        window: *[1, 2, 5, wide].get(random.below(4)).expect("one"),
        first_transfer_id: first,
        first_delivery_id: first.wrapping_add(u32::try_from(random.below(3)).expect("small")),
        ..Announces::default()
    }
}
