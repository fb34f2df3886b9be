//! The vhost policy: who is admitted, and to what. Asked once at an open and once at an attach, never for a transfer.
//!
//! A [`Policy`] never changes: a reload replaces it as a whole, and whoever was admitted keeps the [`Group`] that
//! admitted him. How many connections there are is in the [`Book`], which outlives policies.

use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;
use std::sync::Arc;

use super::identity::climbs;
use super::pattern::PatternTree;
use super::settings::Direction;
use super::settings::policy::{Addresses, GroupSettings, PolicySettings, RemoteHost, VhostSettings};

const EVERYONE: &str = "*";
const USER: &str = "${user}";

/// What the configuration allows.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// Bytes of one message from a device; 0: no limit. Not asked for where a group decides.
    max_message_size: u64,
    vhosts: Option<Vhosts>,
}

#[derive(Debug)]
struct Vhosts {
    all: Vec<Vhost>,
    /// Names and aliases as they stand.
    names: HashMap<String, usize>,
    /// The same as patterns, if they are.
    patterns: Option<PatternTree<Option<usize>>>,
    default: Option<usize>,
}

#[derive(Debug)]
struct Vhost {
    max_connections: usize,
    groups: Vec<Arc<Group>>,
    /// The group of each user.
    users: HashMap<String, usize>,
    /// That of everybody else.
    others: Option<usize>,
}

/// What a device that was admitted may do.
#[derive(Debug)]
pub(super) struct Group {
    /// Distinguishes it from the other groups of its policy.
    pub(super) id: usize,
    pub(super) vhost: Arc<str>,
    pub(super) settings: GroupSettings,
}

/// A device's place in the [`Book`], to be given back to it.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) group: Arc<Group>,
    user: Box<str>,
    host: Box<str>,
}

/// An attach as the policy sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkRequest<'a> {
    pub(super) direction: Direction,
    /// The address of the terminus that routes the link, as the device wrote it.
    pub(super) address: Option<&'a str>,
    /// The device asks for a dynamic node.
    pub(super) is_dynamic: bool,
    /// Links of this direction that the device has already.
    pub(super) present: usize,
}

/// Why a link is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkDenial {
    /// There are as many as the group may have.
    Count,
    /// The address is not one of the group's.
    Address,
    /// The group may have no such link.
    DynamicSource,
    /// The group may have no such link.
    AnonymousSender,
}

impl LinkDenial {
    pub(super) const fn reason(self) -> &'static str {
        match self {
            LinkDenial::Count => "the group's maxSenders or maxReceivers are attached already",
            LinkDenial::Address => "the address is in neither list nor pattern of the group",
            LinkDenial::DynamicSource => "the group has no allowDynamicSource",
            LinkDenial::AnonymousSender => "the group has no allowAnonymousSender",
        }
    }
}

impl Policy {
    pub(super) fn new(settings: PolicySettings) -> Self {
        let vhosts = settings.vhosts.map(|policy| {
            let mut next_id = 0;
            let all: Vec<Vhost> = policy
                .vhosts
                .iter()
                .map(|vhost| Vhost::new(vhost, &mut next_id))
                .collect();
            let mut names = HashMap::new();
            let mut patterns = policy.name_patterns.then(PatternTree::<Option<usize>>::default);
            for (index, vhost) in policy.vhosts.iter().enumerate() {
                for name in std::iter::once(&vhost.name).chain(&vhost.aliases) {
                    names.entry(name.clone()).or_insert(index);
                    if let Some(tree) = &mut patterns {
                        tree.entry(name).get_or_insert(index);
                    }
                }
            }
            let default = policy
                .vhosts
                .iter()
                .position(|vhost| vhost.name == policy.default_vhost);
            Vhosts {
                all,
                names,
                patterns,
                default,
            }
        });
        Policy {
            max_message_size: settings.max_message_size,
            vhosts,
        }
    }

    /// Bytes of one message from a device of this group; 0: no limit.
    pub(super) fn max_message_size(&self, group: Option<&Group>) -> u64 {
        group.map_or(self.max_message_size, |group| group.settings.max_message_size)
    }

    /// Whether a user may connect to a vhost from a host. `Ok(None)`: there is no vhost policy.
    ///
    /// # Errors
    /// Why not, for the log.
    pub(super) fn admit(
        &self,
        book: &mut Book,
        vhost: &str,
        user: &str,
        host: &str,
    ) -> Result<Option<Admission>, &'static str> {
        let Some(vhosts) = &self.vhosts else {
            return Ok(None);
        };
        let vhost = vhosts
            .find(vhost)
            .ok_or("there is no such vhost, and no default vhost")?;
        let group = vhost
            .group(user)
            .ok_or("the user is in no group, and unknown users are not allowed")?;
        if !group.settings.remote_hosts.iter().any(|it| it.covers(host)) {
            return Err("the user may not connect from this host (remoteHosts of the group)");
        }
        let admission = Admission {
            group: Arc::clone(group),
            user: user.into(),
            host: host.into(),
        };
        book.enter(&admission, vhost.max_connections)?;
        Ok(Some(admission))
    }
}

impl Vhosts {
    fn find(&self, name: &str) -> Option<&Vhost> {
        let known = self.names.get(name).copied();
        let matching = || self.patterns.as_ref()?.find(name).copied().flatten();
        let named = known.or_else(matching).filter(|_| !name.is_empty());
        self.all.get(named.or(self.default)?)
    }
}

impl Vhost {
    fn new(settings: &VhostSettings, next_id: &mut usize) -> Self {
        let name: Arc<str> = settings.name.as_str().into();
        let mut users = HashMap::new();
        for (index, group) in settings.groups.iter().enumerate() {
            for user in &group.users {
                users.entry(user.clone()).or_insert(index);
            }
        }
        let unknown = settings
            .unknown_users
            .as_ref()
            .and_then(|wanted| settings.groups.iter().position(|group| group.name == *wanted));
        let groups = settings
            .groups
            .iter()
            .map(|group| {
                *next_id += 1;
                Arc::new(Group {
                    id: *next_id,
                    vhost: Arc::clone(&name),
                    settings: group.clone(),
                })
            })
            .collect();
        Vhost {
            max_connections: settings.max_connections,
            groups,
            // A device may call itself `*`: that is not the wildcard.
            others: users.remove(EVERYONE).or(unknown),
            users,
        }
    }

    fn group(&self, user: &str) -> Option<&Arc<Group>> {
        self.groups.get(self.users.get(user).copied().or(self.others)?)
    }
}

impl Group {
    /// Whether a device may attach a link.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admit_link(&self, user: &str, link: &LinkRequest<'_>) -> Result<(), LinkDenial> {
        let settings = &self.settings;
        let (limit, addresses) = match link.direction {
            Direction::In => (settings.max_senders, &settings.targets),
            Direction::Out => (settings.max_receivers, &settings.sources),
        };
        if limit.is_some_and(|limit| link.present >= limit) {
            return Err(LinkDenial::Count);
        }
        if link.direction == Direction::Out && link.is_dynamic && !settings.allow_dynamic_source {
            return Err(LinkDenial::DynamicSource);
        }
        match (link.address.filter(|address| !address.is_empty()), link.direction) {
            (Some(address), _) if addresses.contain(user, address) => Ok(()),
            (Some(_), _) => Err(LinkDenial::Address),
            (None, Direction::In) if settings.allow_anonymous_sender => Ok(()),
            (None, Direction::In) => Err(LinkDenial::AnonymousSender),
            (None, Direction::Out) if link.is_dynamic => Ok(()),
            (None, Direction::Out) => Err(LinkDenial::Address),
        }
    }
}

impl RemoteHost {
    fn covers(&self, host: &str) -> bool {
        match self {
            RemoteHost::Any => true,
            // Addresses are ordered by family first, so that a range never holds one of the other.
            RemoteHost::Range(first, last) => host
                .parse::<IpAddr>()
                .is_ok_and(|address| (*first..=*last).contains(&address)),
        }
    }
}

impl Addresses {
    fn contain(&self, user: &str, address: &str) -> bool {
        // From what a wildcard stands for a hub may get to where the list does not lead.
        let climbs = climbs(address);
        let may_match =
            |entry: &str, everything: &str| !climbs || entry == everything || !entry.contains(['*', '#']);
        match self {
            Addresses::Listed(texts) => texts
                .iter()
                .any(|text| may_match(text, "*") && is_listed(text, user, address)),
            Addresses::Patterns(patterns) => patterns
                .iter()
                .any(|pattern| may_match(pattern, "#") && matches_pattern(pattern, user, address)),
        }
    }
}

/// A user's name stands for itself, whatever wildcards it may hold.
fn is_listed(text: &str, user: &str, address: &str) -> bool {
    let (text, is_prefix) = match text.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    let mut rest = address;
    for (index, piece) in text.split(USER).enumerate() {
        if index > 0 {
            match rest.strip_prefix(user) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        match rest.strip_prefix(piece) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    is_prefix || rest.is_empty()
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    One,
    Any,
    Text(String),
}

fn matches_pattern(pattern: &str, user: &str, address: &str) -> bool {
    let is_separator = |letter: char| matches!(letter, '.' | '/');
    let mut tokens = Vec::new();
    for token in pattern.trim_matches(is_separator).split(is_separator) {
        match token {
            "*" => tokens.push(Token::One),
            "#" => tokens.push(Token::Any),
            // A name with separators in it is several tokens.
            text => {
                let text = text.replace(USER, user);
                tokens.extend(
                    text.split(is_separator)
                        .map(|token| Token::Text(token.to_owned())),
                );
            }
        }
    }
    let address: Vec<&str> = address.trim_matches(is_separator).split(is_separator).collect();
    matches_tokens(&tokens, &address)
}

/// One point to go back to is enough: what an earlier `#` could take, the last one can take as well.
fn matches_tokens(mut pattern: &[Token], mut address: &[&str]) -> bool {
    let mut retry: Option<(&[Token], &[&str])> = None;
    loop {
        match (pattern, address) {
            ([], []) => return true,
            ([Token::Any, rest @ ..], _) => {
                retry = Some((rest, address));
                pattern = rest;
                continue;
            }
            ([Token::One, rest @ ..], [_, others @ ..]) => {
                (pattern, address) = (rest, others);
                continue;
            }
            ([Token::Text(text), rest @ ..], [token, others @ ..]) if text == token => {
                (pattern, address) = (rest, others);
                continue;
            }
            ([] | [Token::One | Token::Text(_), ..], _) => {}
        }
        let Some((after, [_, others @ ..])) = retry else {
            return false;
        };
        retry = Some((after, others));
        (pattern, address) = (after, others);
    }
}

/// Who is connected, by vhost, user and host. What [`enter`](Book::enter) counts, [`leave`](Book::leave) takes back.
#[derive(Debug, Default)]
pub(super) struct Book {
    vhosts: HashMap<Arc<str>, Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    users: HashMap<Box<str>, usize>,
    hosts: HashMap<Box<str>, usize>,
}

impl Book {
    fn enter(&mut self, admission: &Admission, max_connections: usize) -> Result<(), &'static str> {
        let settings = &admission.group.settings;
        let present = self.vhosts.get(&admission.group.vhost);
        let of = |counts: fn(&Counts) -> &HashMap<Box<str>, usize>, key: &str| {
            present
                .and_then(|vhost| counts(vhost).get(key))
                .map_or(0, |count| *count)
        };
        if present.map_or(0, |vhost| vhost.connections) >= max_connections {
            return Err("the vhost's maxConnections are connected already");
        }
        if of(|vhost| &vhost.users, &admission.user) >= settings.max_connections_per_user {
            return Err("the user's maxConnectionsPerUser are connected already");
        }
        if of(|vhost| &vhost.hosts, &admission.host) >= settings.max_connections_per_host {
            return Err("the host's maxConnectionsPerHost are connected already");
        }
        let counts = self.vhosts.entry(Arc::clone(&admission.group.vhost)).or_default();
        counts.connections += 1;
        *counts.users.entry(admission.user.clone()).or_default() += 1;
        *counts.hosts.entry(admission.host.clone()).or_default() += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self, admission: &Admission) {
        let Some(counts) = self.vhosts.get_mut(&admission.group.vhost) else {
            return;
        };
        counts.connections = counts.connections.saturating_sub(1);
        subtract(&mut counts.users, &admission.user);
        subtract(&mut counts.hosts, &admission.host);
        if counts.connections == 0 {
            self.vhosts.remove(&admission.group.vhost);
        }
    }

    /// How many devices are in it.
    pub(super) fn connections(&self) -> usize {
        self.vhosts.values().map(|counts| counts.connections).sum()
    }
}

fn subtract(counts: &mut HashMap<Box<str>, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The host of `HOST:PORT`, in the form in which addresses are compared: an IPv4 address in IPv6's clothes is itself.
pub(super) fn host_of(peer: &str) -> String {
    if let Ok(address) = peer.parse::<SocketAddr>() {
        return address.ip().to_canonical().to_string();
    }
    peer.rsplit_once(':').map_or(peer, |(host, _)| host).to_owned()
}

#[cfg(test)]
mod tests;
