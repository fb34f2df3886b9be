//! Log-ins by password: judged aside, one after the other, so that nobody else waits for the slow check.
//!
//! A password that was right once is recognised by a keyed digest for as long as the users stay the same: when all
//! devices come back after a power cut, only the first log-in of each costs the slow check. Only right ones are kept, so
//! there are at most as many as users, and a flood of wrong ones neither fills the memory nor keeps known devices out.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use ring::{hmac, rand};

use super::passwords::Passwords;
use super::turn::Turn;
use crate::endpoint::limits;
use crate::router::{ConnectionKey, Login, TransportState, Verdict};

/// See the module.
pub(super) struct Logins {
    passwords: RefCell<Arc<Passwords>>,
    /// Digests of what was right, under a key that no one else knows; without a key nothing is kept.
    recognised: RefCell<HashSet<[u8; 32]>>,
    key: Option<hmac::Key>,
    waiting: RefCell<VecDeque<(ConnectionKey, Box<Login>)>>,
    workers: Cell<usize>,
    workers_max: usize,
}

/// What is to be done about a log-in.
pub(super) enum Intake {
    /// Tell the router.
    Judged(Verdict),
    /// It waits, and a worker is on its way to it.
    Waiting,
    /// It waits; start [`work`].
    NeedsWorker,
}

impl Logins {
    pub(super) fn new(passwords: Arc<Passwords>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Logins {
            passwords: RefCell::new(passwords),
            recognised: RefCell::default(),
            key: hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new()).ok(),
            waiting: RefCell::default(),
            workers: Cell::new(0),
            workers_max: processors.saturating_sub(1).clamp(1, limits::LOGIN_CHECKS),
        }
    }

    /// From now on these users may log in; those who have stay. The same users again change nothing, so that a reload for
    /// another reason costs nobody the slow check.
    pub(super) fn replace(&self, passwords: Arc<Passwords>) {
        if *self.passwords.borrow() == passwords {
            return;
        }
        *self.passwords.borrow_mut() = passwords;
        self.recognised.borrow_mut().clear();
    }

    /// Takes a log-in; `is_there` tells whether a device still waits for one.
    pub(super) fn take(
        &self,
        key: ConnectionKey,
        login: Box<Login>,
        is_there: impl Fn(ConnectionKey) -> bool,
    ) -> Intake {
        if self.is_recognised(&login) {
            return Intake::Judged(Verdict::Accepted);
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= limits::LOGINS_WAITING {
            // Those who did not wait.
            waiting.retain(|(key, _)| is_there(*key));
        }
        if waiting.len() >= limits::LOGINS_WAITING {
            return Intake::Judged(Verdict::Unknown);
        }
        waiting.push_back((key, login));
        if self.workers.get() == self.workers_max {
            return Intake::Waiting;
        }
        self.workers.set(self.workers.get() + 1);
        Intake::NeedsWorker
    }

    fn is_recognised(&self, login: &Login) -> bool {
        self.digest(login)
            .is_some_and(|digest| self.recognised.borrow().contains(&digest))
    }

    fn digest(&self, login: &Login) -> Option<[u8; 32]> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        context.update(&login.user.len().to_be_bytes());
        context.update(login.user.as_bytes());
        context.update(login.password.expose());
        context.sign().as_ref().try_into().ok()
    }

    async fn judge(&self, login: Box<Login>) -> Verdict {
        let login: Arc<Login> = Arc::from(login);
        loop {
            if self.is_recognised(&login) {
                return Verdict::Accepted;
            }
            let passwords = Arc::clone(&self.passwords.borrow());
            let check = {
                let (passwords, login) = (Arc::clone(&passwords), Arc::clone(&login));
                move || passwords.verify(&login.user, login.password.expose())
            };
            // Fails only when the runtime is being shut down, or the thread cannot be made.
            let Ok(is_right) = tokio::task::spawn_blocking(check).await else {
                return Verdict::Unknown;
            };
            // Users that were replaced meanwhile have no say any more.
            if !Arc::ptr_eq(&passwords, &self.passwords.borrow()) {
                continue;
            }
            if !is_right {
                return Verdict::Refused;
            }
            self.recognised.borrow_mut().extend(self.digest(&login));
            return Verdict::Accepted;
        }
    }
}

/// Judges log-ins until none waits.
pub(super) async fn work(turn: Rc<Turn>) {
    loop {
        let next = turn.logins().waiting.borrow_mut().pop_front();
        let Some((key, login)) = next else { break };
        let is_wanted = turn.enter(|core, _| core.router.transport_state(key) == TransportState::Open)
            && !turn.is_stopped();
        if is_wanted {
            let verdict = turn.logins().judge(login).await;
            turn.enter(|core, now| core.router.authenticated(key, verdict, now));
        }
    }
    let logins = turn.logins();
    logins.workers.set(logins.workers.get() - 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::settings::Secret;
    use crate::shard::passwords::hash_line;

    fn login(user: &str, password: &str) -> Box<Login> {
        Box::new(Login {
            user: user.to_owned(),
            password: Secret::new(password.as_bytes().to_vec()),
        })
    }

    fn users(password: &str) -> Arc<Passwords> {
        Arc::new(Passwords::parse(&hash_line("dev1", password).unwrap()).unwrap())
    }

    #[tokio::test]
    async fn what_was_right_is_recognised_until_the_users_change() {
        let first = users("first");
        let logins = Logins::new(Arc::clone(&first));
        assert!(!logins.is_recognised(&login("dev1", "first")));
        assert_eq!(logins.judge(login("dev1", "wrong")).await, Verdict::Refused);
        assert_eq!(logins.judge(login("dev2", "first")).await, Verdict::Refused);
        assert!(
            logins.recognised.borrow().is_empty(),
            "only what is right is kept"
        );
        assert_eq!(logins.judge(login("dev1", "first")).await, Verdict::Accepted);
        assert!(logins.is_recognised(&login("dev1", "first")));
        assert!(!logins.is_recognised(&login("dev1f", "irst")), "the seam counts");

        logins.replace(Arc::new(Passwords::clone(&first)));
        assert!(logins.is_recognised(&login("dev1", "first")), "the same users");
        logins.replace(users("second"));
        assert!(!logins.is_recognised(&login("dev1", "first")));
        assert_eq!(logins.judge(login("dev1", "first")).await, Verdict::Refused);
        assert_eq!(logins.judge(login("dev1", "second")).await, Verdict::Accepted);
    }

    #[test]
    fn as_many_wait_as_may_and_one_who_has_gone_makes_room() {
        let logins = Logins::new(users("first"));
        let take = |number: usize, is_there: &dyn Fn(ConnectionKey) -> bool| {
            let key = ConnectionKey::of_test(u32::try_from(number).unwrap());
            logins.take(key, login("dev1", "first"), is_there)
        };
        let everybody = |_: ConnectionKey| true;
        for number in 0..limits::LOGINS_WAITING {
            let intake = take(number, &everybody);
            assert!(
                matches!(intake, Intake::NeedsWorker | Intake::Waiting),
                "{number}"
            );
        }
        assert!(logins.workers.get() <= limits::LOGIN_CHECKS);
        assert!(matches!(
            take(9_000, &everybody),
            Intake::Judged(Verdict::Unknown)
        ));
        let all_but_one = |key: ConnectionKey| key.index() != 7;
        assert!(matches!(take(9_001, &all_but_one), Intake::Waiting));
        assert!(matches!(
            take(9_002, &everybody),
            Intake::Judged(Verdict::Unknown)
        ));
    }

    /// The check of the old password is under way when the users are replaced.
    #[tokio::test]
    async fn a_check_that_was_overtaken_is_made_again() {
        let logins = Rc::new(Logins::new(users("first")));
        let judged = logins.judge(login("dev1", "first"));
        let replaced = async { logins.replace(users("second")) };
        assert_eq!(tokio::join!(judged, replaced).0, Verdict::Refused);
        assert!(logins.recognised.borrow().is_empty());
    }
}
