//! How the address of a routed terminus changes on its way: virtual hosts, the external prefixes of a route, and the
//! host in a URL.

use std::borrow::Cow;

use super::pattern::{self, Url};
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
    seen: Seen,
}

/// What the device sees of the address in the hub's answer.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The address that it has written, however the hub writes that.
    Written(Box<str>),
    /// What the hub says, with one prefix for another.
    Prefixed {
        /// What is taken off the hub's answer, if it begins so.
        added: Box<str>,
        /// What the device's address had in its place.
        removed: Box<str>,
    },
}

impl Readdressing {
    /// What a route makes of an address: `written` by the device, and `asked` for by its virtual host. `None`: nothing.
    ///
    /// `hub` is the name of a hub that must not see another in a URL's authority, for devices that were pointed at a
    /// gateway write that (Azure SDKs with GatewayHostName: `amqps://GATEWAY:5671/devices/…`). The prefixes then
    /// belong to the path.
    pub(super) fn new(
        written: &str,
        asked: &str,
        route: &RouteSettings,
        hub: Option<&str>,
    ) -> Option<Box<Self>> {
        let url = hub.and_then(|hub| Some((hub, amqp_url(asked)?)));
        let path = url.map_or(asked, |(_, url)| url.path);
        let (removed, rest) = match path.strip_prefix(&*route.del_external_prefix) {
            Some(rest) if !rest.is_empty() => (&*route.del_external_prefix, rest),
            Some(_) | None => ("", path),
        };
        let added = &*route.add_external_prefix;
        let address = match url {
            Some((hub, url)) => format!("{}{added}{rest}", origin(hub, url)),
            None => format!("{added}{rest}"),
        };
        let seen = match url {
            Some(_) => Seen::Written(written.into()),
            None => Seen::Prefixed {
                added: added.into(),
                removed: removed.into(),
            },
        };
        let is_other = !added.is_empty() || !removed.is_empty() || address != written;
        is_other.then(|| {
            Box::new(Readdressing {
                address: address.into(),
                seen,
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
        let restored: Cow<'_, str> = match &self.seen {
            Seen::Written(written) => (&**written).into(),
            Seen::Prefixed { added, removed } => {
                let rest = match address.strip_prefix(&**added) {
                    Some(rest) if !rest.is_empty() => rest,
                    Some(_) | None => address,
                };
                format!("{removed}{rest}").into()
            }
        };
        if restored == address {
            return None;
        }
        edit::attach_tail(answer.tail, &edits(role, &restored))
    }
}

fn amqp_url(address: &str) -> Option<Url<'_>> {
    Url::parse(address).filter(|url| url.is_amqp() && !url.authority.is_empty())
}

/// What comes before the path: as it is written if it names the hub, else with the hub's name, and no port, for that was
/// the gateway's.
fn origin(hub: &str, url: Url<'_>) -> String {
    let Url {
        scheme, authority, ..
    } = url;
    if url.host().eq_ignore_ascii_case(hub) {
        format!("{scheme}://{authority}/")
    } else if hub.contains(':') {
        format!("{scheme}://[{hub}]/")
    } else {
        format!("{scheme}://{hub}/")
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
            let found = Readdressing::new(asked, asked, &route(add, del), None);
            assert_eq!(
                found.as_ref().map(|r| &*r.address),
                expected,
                "{add} {del} {asked}"
            );
        }
    }

    #[test]
    fn a_url_names_the_hub_and_no_other_host() {
        for (written, expected) in [
            ("amqps://gw/devices/d", Some("amqps://hub.example/devices/d")),
            ("amqps://gw:5671/devices/d", Some("amqps://hub.example/devices/d")),
            ("AMQP://10.0.0.7/devices/d", Some("AMQP://hub.example/devices/d")),
            ("amqp://[fe80::1]:5672//d", Some("amqp://hub.example//d")),
            ("amqps://d@sas.hub.example:pw@gw/x", Some("amqps://hub.example/x")),
            (
                "amqps://gw/devices/a@b:c?d#e%23/x",
                Some("amqps://hub.example/devices/a@b:c?d#e%23/x"),
            ),
            ("amqps://hub.example/devices/d", None),
            ("amqps://HUB.Example:5671/devices/d", None),
            ("amqps://u@hub.example:1/devices/d", None),
            ("amqps://hub.example.evil/x", Some("amqps://hub.example/x")),
            ("devices/d", None),
            ("/devices/amqps://gw/x", None),
            ("//gw/devices/d", None),
            ("amqps:devices/d", None),
            ("amqps:/devices/d", None),
            ("amqps:///devices/d", None),
            ("amqps://gw", None),
            ("topic://news/sport", None),
            ("", None),
        ] {
            let asked = |hub| Readdressing::new(written, written, &route("", ""), hub);
            let found = asked(Some("hub.example"));
            assert_eq!(found.as_ref().map(|r| &*r.address), expected, "{written}");
            assert_eq!(asked(None), None, "{written}");
        }
        let v6 = Readdressing::new("amqp://gw/d", "amqp://gw/d", &route("", ""), Some("::1"));
        assert_eq!(&*v6.expect("another").address, "amqp://[::1]/d");
    }

    #[test]
    fn prefixes_belong_to_the_path_of_a_url_that_names_the_hub() {
        for (written, hub, expected) in [
            ("amqps://gw:1/ext/q", Some("h"), "amqps://h/hub1/q"),
            ("amqps://h:1/ext/q", Some("h"), "amqps://h:1/hub1/q"),
            ("ext/q", Some("h"), "hub1/q"),
            // As in 1.19.
            ("amqps://gw:1/ext/q", None, "hub1/amqps://gw:1/ext/q"),
        ] {
            let found = Readdressing::new(written, written, &route("hub1/", "ext/"), hub);
            assert_eq!(&*found.expect("another").address, expected);
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
            ("amqp:d/1", "vh1/d/1"),
        ] {
            assert_eq!(of_tenant("vh1", address), expected, "{address}");
        }
    }
}
