//! Names of links at a hub: no two links of one role have the same one on one connection.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::amqp::performative::Role;

/// The first number that is put behind a name that is in use.
const FIRST_SUFFIX: u32 = 2;

/// Link names in use on one upstream connection, by the device's role.
#[derive(Debug, Default)]
pub(super) struct LinkNames {
    senders: Names,
    receivers: Names,
}

#[derive(Debug, Default)]
struct Names {
    used: HashSet<Box<str>>,
    /// Of names that several links would like to have: the numbers behind them. Identical devices are many, and the
    /// next of them must not try what all others have.
    suffixes: HashMap<Box<str>, Suffixes>,
}

/// Every number below `next` is in use, or was given back.
#[derive(Debug)]
struct Suffixes {
    next: u32,
    given_back: BTreeSet<u32>,
}

impl LinkNames {
    /// The name, or one made of it that nobody has: `NAME#2`, with the lowest number that is free.
    pub(super) fn claim(&mut self, role: Role, name: &str) -> Box<str> {
        self.of(role).claim(name)
    }

    /// Takes a name as it is. `false`: it is in use.
    pub(super) fn insert(&mut self, role: Role, name: &str) -> bool {
        self.of(role).used.insert(name.into())
    }

    /// The name is free.
    pub(super) fn release(&mut self, role: Role, name: &str) {
        self.of(role).release(name);
    }

    /// How many are in use.
    pub(super) fn len(&self) -> usize {
        self.senders.used.len() + self.receivers.used.len()
    }

    const fn of(&mut self, role: Role) -> &mut Names {
        match role {
            Role::Sender => &mut self.senders,
            Role::Receiver => &mut self.receivers,
        }
    }
}

impl Names {
    fn claim(&mut self, name: &str) -> Box<str> {
        if self.used.insert(name.into()) {
            return name.into();
        }
        let suffixes = self.suffixes.entry(name.into()).or_insert(Suffixes {
            next: FIRST_SUFFIX,
            given_back: BTreeSet::new(),
        });
        loop {
            let suffix = suffixes.given_back.pop_first().unwrap_or(suffixes.next);
            suffixes.next = suffixes.next.max(suffix.saturating_add(1));
            let candidate: Box<str> = format!("{name}#{suffix}").into();
            // A peer may call its link so by itself.
            if self.used.insert(candidate.clone()) {
                return candidate;
            }
        }
    }

    fn release(&mut self, name: &str) {
        if !self.used.remove(name) {
            return;
        }
        let numbered = name
            .rsplit_once('#')
            .and_then(|(base, number)| Some((base, number.parse::<u32>().ok()?)));
        let Some((base, number)) = numbered else { return };
        let Some(suffixes) = self.suffixes.get_mut(base) else {
            return;
        };
        if (FIRST_SUFFIX..suffixes.next).contains(&number) {
            suffixes.given_back.insert(number);
        }
        let all_numbers = suffixes.next.saturating_sub(FIRST_SUFFIX);
        if u32::try_from(suffixes.given_back.len()).is_ok_and(|free| free >= all_numbers) {
            self.suffixes.remove(base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_told_apart_and_come_back() {
        let mut names = LinkNames::default();
        assert_eq!(&*names.claim(Role::Sender, "send@dev"), "send@dev");
        assert_eq!(&*names.claim(Role::Receiver, "send@dev"), "send@dev");
        assert_eq!(&*names.claim(Role::Sender, "send@dev"), "send@dev#2");
        assert_eq!(&*names.claim(Role::Sender, "send@dev"), "send@dev#3");
        assert_eq!(names.len(), 4);
        names.release(Role::Sender, "send@dev#2");
        names.release(Role::Sender, "send@dev");
        assert_eq!(&*names.claim(Role::Sender, "send@dev"), "send@dev");
        assert_eq!(&*names.claim(Role::Sender, "send@dev"), "send@dev#2");
        assert_eq!(&*names.claim(Role::Sender, "send@dev"), "send@dev#4");
    }

    #[test]
    fn a_link_whose_own_name_looks_numbered_is_passed_over() {
        let mut names = LinkNames::default();
        for (wanted, given) in [("a#2", "a#2"), ("a", "a"), ("a", "a#3"), ("a#3", "a#3#2")] {
            assert_eq!(&*names.claim(Role::Sender, wanted), given);
        }
        names.release(Role::Sender, "a#2");
        assert_eq!(&*names.claim(Role::Sender, "a"), "a#2");
        assert!(!names.insert(Role::Sender, "a#3"), "in use");
    }

    #[test]
    fn nothing_is_kept_of_names_that_are_free() {
        let mut names = LinkNames::default();
        let given: Vec<Box<str>> = (0..5000).map(|_| names.claim(Role::Receiver, "l@d")).collect();
        assert_eq!(given.last().map(|name| &**name), Some("l@d#5000"));
        for name in &given {
            names.release(Role::Receiver, name);
            names.release(Role::Receiver, name);
        }
        assert_eq!(names.len(), 0);
        assert!(names.receivers.suffixes.is_empty());
    }
}
