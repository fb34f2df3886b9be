//! How the address of a routed terminus changes on its way: virtual hosts, and the external prefixes of a route.

use super::pattern;
use super::settings::RouteSettings;
use crate::amqp::edit::{self, EditedTail, Edits};
use crate::amqp::fields::Tail;
use crate::amqp::performative::{Attach, Role};
use crate::amqp::terminus::Terminus;

/// A tenant's address: the virtual host and a slash in front, in place of a URL's scheme and host or of one leading
/// slash (qdrouterd 1.19: the address is matched and forwarded so, and the hub's answer is not changed back).
pub(super) fn of_tenant(vhost: &str, address: &str) -> String {
    let path = pattern::strip_url(address);
    format!("{vhost}/{}", path.strip_prefix('/').unwrap_or(path))
}

/// Another address for the terminus that decided the route: the target if the device sends, else the source.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Readdressing {
    /// What the hub is asked for.
    address: Box<str>,
    /// What a prefix of the hub's answer is, if it has one.
    added: Box<str>,
    /// What the device's address had in its place.
    removed: Box<str>,
}

impl Readdressing {
    /// What a route makes of an address: `written` by the device, and `asked` for by its virtual host. `None`: nothing.
    pub(super) fn new(written: &str, asked: &str, route: &RouteSettings) -> Option<Box<Self>> {
        let (removed, rest) = match asked.strip_prefix(&*route.del_external_prefix) {
            Some(rest) if !rest.is_empty() => (&*route.del_external_prefix, rest),
            Some(_) | None => ("", asked),
        };
        let added = &*route.add_external_prefix;
        let is_other = !added.is_empty() || !removed.is_empty() || asked != written;
        is_other.then(|| {
            Box::new(Readdressing {
                address: format!("{added}{rest}").into(),
                added: added.into(),
                removed: removed.into(),
            })
        })
    }

    /// What the hub is asked for.
    pub(super) const fn address(&self) -> &str {
        &self.address
    }

    /// The fields of the device's attach as the hub gets them.
    pub(super) fn towards_hub(&self, role: Role, tail: Tail<'_>) -> Option<EditedTail> {
        edit::attach_tail(tail, &edits(role, &self.address))
    }

    /// The fields of the hub's answer as the device gets them; `None` when they stay as they are: the hub refused, chose
    /// the address itself, or was asked for the virtual host's address only.
    pub(super) fn towards_device(&self, role: Role, answer: &Attach<'_>) -> Option<EditedTail> {
        let encoded = match role {
            Role::Sender => answer.target,
            Role::Receiver => answer.source,
        };
        let terminus = Terminus::parse(encoded?).ok()?;
        let address = terminus.address.filter(|_| !terminus.dynamic)?;
        let rest = match address.strip_prefix(&*self.added) {
            Some(rest) if !rest.is_empty() => rest,
            Some(_) | None => address,
        };
        let restored = format!("{}{rest}", self.removed);
        if restored == address {
            return None;
        }
        edit::attach_tail(answer.tail, &edits(role, &restored))
    }
}

/// `role` is the device's.
fn edits(role: Role, address: &str) -> Edits<'_> {
    match role {
        Role::Sender => Edits {
            target_address: Some(address),
            ..Edits::default()
        },
        Role::Receiver => Edits {
            source_address: Some(address),
            ..Edits::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Destination, Direction, Matcher};
    use super::*;

    fn route(add: &str, del: &str) -> RouteSettings {
        RouteSettings {
            name: "r".into(),
            matcher: Matcher::Prefix("ext".into()),
            direction: Direction::Out,
            destination: Destination::Connection("HUB".into()),
            add_external_prefix: add.into(),
            del_external_prefix: del.into(),
        }
    }

    #[test]
    fn del_goes_by_text_and_add_comes_in_front() {
        for (add, del, asked, expected) in [
            ("hub1/", "ext/", "ext/out", Some("hub1/out")),
            ("hub1/", "ext.", "ext/q", Some("hub1/ext/q")),
            ("", "ext/", "ext/out", Some("out")),
            ("", "ext/", "ext/", None), // not longer than what would be taken off
            ("hub1/", "", "ext/out", Some("hub1/ext/out")),
            ("", "", "ext/out", None),
            ("", "other/", "ext/out", None),
        ] {
            let found = Readdressing::new(asked, asked, &route(add, del));
            assert_eq!(
                found.as_ref().map(|r| &*r.address),
                expected,
                "{add} {del} {asked}"
            );
        }
    }

    #[test]
    fn a_tenant_has_its_host_in_front() {
        for (address, expected) in [
            ("d/1", "vh1/d/1"),
            ("/d/1", "vh1/d/1"),
            ("//d/1", "vh1//d/1"),
            ("amqps://h:5671/d/1", "vh1/d/1"),
            ("amqp:/d/1", "vh1/d/1"),
        ] {
            assert_eq!(of_tenant("vh1", address), expected, "{address}");
        }
    }
}
