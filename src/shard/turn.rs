//! What the tasks of one shard share: the router, who waits for what, and the one timer.
//!
//! A *turn* is one borrow of the [`Core`] by one task. It never crosses an `.await`; and when it ends, [`Turn::settle`]
//! has done what the router asked for: tasks are woken, dials are started, the timer is set. Woken tasks run in the
//! order of the runtime's queue, so an upstream connection writes once, after all devices that are ready now.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::ShardSettings;
use super::dial::{self, DialSettings, Transport};
use super::driver::Driver;
use super::listener::ListenSettings;
use super::login::{self, Intake, Logins};
use super::passwords::Passwords;
use super::tls::ServerTls;
use crate::router::settings::{ConnectorId, ListenerId};
use crate::router::{Action, ConnectionKey, Login, Overview, Reloaded, Router, TransportState};

/// Size of the buffer that every connection reads into.
const READ_BUFFER: usize = 128 * 1024;
/// The timer's resolution: a deadline in the past still leaves a turn to everybody else.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// How old the time of the day may be.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// The time, for the router and for timers.
pub(super) fn now() -> Instant {
    // Tokio's clock: the system's monotonic one, or a test's.
    tokio::time::Instant::now().into_std()
}

/// What a turn works on.
pub(super) struct Core {
    pub(super) router: Router,
    /// Lent to whichever connection reads: an idle one owns no buffer.
    pub(super) read_buffer: Box<[u8]>,
    pub(super) wakers: WakerTable,
}

/// See the module.
pub(super) struct Turn {
    core: RefCell<Core>,
    connectors: RefCell<BTreeMap<ConnectorId, DialSettings>>,
    logins: Logins,
    /// How each listener encrypts connections that it accepts now.
    listeners: RefCell<Vec<ListenSettings>>,
    /// The dials in progress.
    dials: RefCell<BTreeMap<ConnectorId, AbortHandle>>,
    /// What the timer task waits for.
    armed: Cell<Option<Instant>>,
    rearmed: Notify,
    /// When the router was last told the time.
    told: Cell<Option<Instant>>,
    /// Connection tasks that exist.
    drivers: Cell<usize>,
    driver_ended: Notify,
    /// Whether there was a turn since somebody last looked.
    is_touched: Cell<bool>,
    touched: Notify,
    /// Every connection task must end.
    stopped: Cell<bool>,
}

impl Turn {
    pub(super) fn new(
        router: Router,
        connectors: Vec<DialSettings>,
        passwords: Arc<Passwords>,
        listeners: Vec<ListenSettings>,
    ) -> Self {
        let connectors = (0..).map(ConnectorId).zip(connectors).collect();
        Turn {
            core: RefCell::new(Core {
                router,
                read_buffer: vec![0; READ_BUFFER].into_boxed_slice(),
                wakers: WakerTable::default(),
            }),
            connectors: RefCell::new(connectors),
            logins: Logins::new(passwords),
            listeners: RefCell::new(listeners),
            dials: RefCell::default(),
            armed: Cell::new(None),
            rearmed: Notify::new(),
            told: Cell::new(None),
            drivers: Cell::new(0),
            driver_ended: Notify::new(),
            is_touched: Cell::new(false),
            touched: Notify::new(),
            stopped: Cell::new(false),
        }
    }

    /// One turn.
    pub(super) fn enter<R>(self: &Rc<Self>, work: impl FnOnce(&mut Core, Instant) -> R) -> R {
        self.enter_as(None, work)
    }

    /// One turn of a connection's own task, which looks at everything again before it waits and so need not be woken
    /// for what it caused itself.
    pub(super) fn enter_as<R>(
        self: &Rc<Self>,
        own: Option<ConnectionKey>,
        work: impl FnOnce(&mut Core, Instant) -> R,
    ) -> R {
        let core = &mut *self.core.borrow_mut();
        let now = now();
        self.tell_time(core, now);
        let result = work(core, now);
        self.settle(core, own);
        if !self.is_touched.replace(true) {
            self.touched.notify_one();
        }
        result
    }

    /// One turn that only looks, and that [`Turn::touched`] does not count.
    pub(super) fn look(self: &Rc<Self>) -> Overview {
        self.is_touched.set(true);
        let overview = self.enter(|core, _| core.router.overview());
        self.is_touched.set(false);
        overview
    }

    /// Waits for the first turn since the last [look](Turn::look).
    pub(super) async fn touched(&self) {
        while !self.is_touched.get() {
            self.touched.notified().await;
        }
    }

    /// Tells the router what time of the day it is, once a second: the system's clock may be set at any time.
    fn tell_time(&self, core: &mut Core, now: Instant) {
        if self.told.get().is_none_or(|told| now >= told + CLOCK_STEP) {
            self.told.set(Some(now));
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            core.router.tell_time(since_1970.unwrap_or_default(), now);
        }
    }

    /// Does what the router asks for.
    fn settle(self: &Rc<Self>, core: &mut Core, own: Option<ConnectionKey>) {
        while let Some(action) = core.router.poll_action() {
            match action {
                Action::Wake(key) if Some(key) == own => {}
                Action::Wake(key) => core.wakers.wake(key),
                Action::Dial(connector) => self.start_dial(connector),
                Action::Authenticate(key, login) => self.start_login(core, key, login),
            }
        }
        // A deadline that moved away is found out when the timer fires; only a nearer one is worth a wake-up.
        if let Some(wanted) = core.router.poll_timeout()
            && self.armed.get().is_none_or(|armed| wanted < armed)
        {
            self.armed.set(Some(wanted));
            self.rearmed.notify_one();
        }
    }

    /// Takes over other settings, which [`ShardSettings::check`] has passed; sockets and connections that are the same
    /// in them stay. Users and certificates are for connections to come.
    pub(super) fn reconfigure(self: &Rc<Self>, settings: ShardSettings) -> Reloaded {
        self.logins.replace(settings.passwords);
        *self.listeners.borrow_mut() = settings.listeners;
        self.enter(|core, now| {
            let mut connectors = self.connectors.borrow_mut();
            let is_same_way = |id, position: usize| connectors.get(&id) == settings.connectors.get(position);
            let reloaded = core.router.reconfigure(settings.router, is_same_way, now);
            let ids = reloaded.connectors.iter().copied();
            *connectors = ids.zip(settings.connectors).collect();
            self.dials.borrow_mut().retain(|&id, dial| {
                let is_wanted = core.router.dial_target(id).is_some();
                if !is_wanted {
                    dial.abort();
                }
                is_wanted
            });
            reloaded
        })
    }

    fn start_dial(self: &Rc<Self>, connector: ConnectorId) {
        let task = tokio::task::spawn_local(dial(Rc::clone(self), connector));
        self.dials.borrow_mut().insert(connector, task.abort_handle());
    }

    fn start_login(self: &Rc<Self>, core: &mut Core, key: ConnectionKey, login: Box<Login>) {
        let is_there = |key| core.router.transport_state(key) == TransportState::Open;
        match self.logins.take(key, login, is_there) {
            Intake::Judged(verdict) => {
                core.router.authenticated(key, verdict, now());
                // Its own task may be the one whose turn this is, and have looked already.
                core.wakers.wake(key);
            }
            Intake::Waiting => {}
            Intake::NeedsWorker => {
                tokio::task::spawn_local(login::work(Rc::clone(self)));
            }
        }
    }

    pub(super) const fn logins(&self) -> &Logins {
        &self.logins
    }

    /// How a listener encrypts connections that it accepts now.
    pub(super) fn listener_tls(&self, listener: ListenerId) -> Option<Arc<ServerTls>> {
        self.listeners.borrow().get(listener.0)?.tls.clone()
    }

    /// Calls the router when its time has come; for ever.
    pub(super) async fn keep_time(self: Rc<Self>) {
        loop {
            let Some(deadline) = self.armed.get() else {
                self.rearmed.notified().await;
                continue;
            };
            let deadline = deadline.max(now() + TIMER_STEP);
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => {}
                () = self.rearmed.notified() => continue,
            }
            self.armed.set(None);
            self.enter(|core, now| {
                if core.router.poll_timeout().is_some_and(|due| due <= now) {
                    core.router.handle_timeout(now);
                }
            });
        }
    }

    /// Ends what must not outlive the shard: dials at once, connections when they next look.
    pub(super) fn stop(&self) {
        self.stop_dialing();
        self.stopped.set(true);
        self.core.borrow_mut().wakers.wake_all();
    }

    /// Ends the dials in progress.
    pub(super) fn stop_dialing(&self) {
        for dial in std::mem::take(&mut *self.dials.borrow_mut()).into_values() {
            dial.abort();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Waits until the router has let go of every connection, and every connection task has ended.
    pub(super) async fn all_closed(&self) {
        while self.drivers.get() > 0 || !self.core.borrow().router.is_empty() {
            self.driver_ended.notified().await;
        }
    }
}

async fn dial(turn: Rc<Turn>, connector: ConnectorId) {
    let Some(target) = turn.core.borrow().router.dial_target(connector) else {
        return;
    };
    let settings = turn.connectors.borrow().get(&target.configured).cloned();
    let outcome = match settings {
        Some(settings) => Box::pin(dial::connect(&settings.towards(&target), target.limit))
            .await
            .map_err(|error| error.to_string()),
        // Excluded by the comparison of the settings; the router must have its answer all the same.
        None => Err("unknown connector".to_owned()),
    };
    // Connections of a pool come and go under ever new numbers.
    turn.dials.borrow_mut().remove(&connector);
    let (transport, info) = match outcome {
        Ok(connected) => connected,
        Err(reason) => {
            return turn.enter(|core, now| core.router.dial_failed(connector, &reason, now));
        }
    };
    let Some(key) = turn.enter(|core, now| core.router.dialed(connector, info, now)) else {
        return;
    };
    match transport {
        Transport::Tcp(stream) => tokio::task::spawn_local(Driver::new(stream, key, turn)),
        Transport::Tls(stream) => tokio::task::spawn_local(Driver::new(stream, key, turn)),
    };
}

/// Counts a connection task for as long as it exists, however it ends.
pub(super) struct Presence(Rc<Turn>);

impl Presence {
    pub(super) fn new(turn: Rc<Turn>) -> Self {
        turn.drivers.set(turn.drivers.get() + 1);
        Presence(turn)
    }

    pub(super) fn turn(&self) -> &Rc<Turn> {
        &self.0
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.drivers.set(self.0.drivers.get() - 1);
        self.0.driver_ended.notify_one();
    }
}

/// Who is to be woken for a connection, by slot.
#[derive(Default)]
pub(super) struct WakerTable {
    slots: Vec<Option<(ConnectionKey, Waker)>>,
}

impl WakerTable {
    /// Notes whom to wake. Free when nothing changed.
    pub(super) fn register(&mut self, key: ConnectionKey, waker: &Waker) {
        if self.slots.len() <= key.index() {
            self.slots.resize_with(key.index() + 1, || None);
        }
        match &mut self.slots[key.index()] {
            Some((owner, known)) if *owner == key && known.will_wake(waker) => {}
            slot => *slot = Some((key, waker.clone())),
        }
    }

    /// Forgets a connection. Its slot may have a new owner, who stays.
    pub(super) fn forget(&mut self, key: ConnectionKey) {
        if let Some(slot) = self.slots.get_mut(key.index())
            && slot.as_ref().is_some_and(|(owner, _)| *owner == key)
        {
            *slot = None;
        }
    }

    /// Wakes a connection's task. One that has not run yet is not known here; it looks at everything when it does.
    fn wake(&self, key: ConnectionKey) {
        if let Some(Some((owner, waker))) = self.slots.get(key.index())
            && *owner == key
        {
            waker.wake_by_ref();
        }
    }

    fn wake_all(&self) {
        for (_, waker) in self.slots.iter().flatten() {
            waker.wake_by_ref();
        }
    }
}
