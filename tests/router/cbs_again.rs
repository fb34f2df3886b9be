//! Tokens that a connection to the hub does not know: the router puts them again before what needs them goes out; and
//! what the clocks of three machines make of when they end.

use std::time::Duration;

use linkrouterd::amqp::message::{Body, Message};
use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::RouterSettings;

use crate::cbs_hub::{
    CBS_HUB_AUTO, CbsDevice, CbsHub, SAS, audience, cbs_settings, cbs_world, put_token, request, seconds,
    token,
};
use crate::peer::{Announces, Auto};
use crate::said_in_log::Said;
use crate::wire::{self, composite, string};
use crate::world::{PeerId, World};

const DETACH_FORCED: &str = "amqp:link:detach-forced";
const UNAUTHORIZED: &str = "amqp:unauthorized-access";

fn events(device: &str) -> String {
    format!("devices/{device}/messages/events")
}

/// Attaches a sender; what came of it is for [`result`].
fn attach(world: &mut World, peer: PeerId, handle: u32, device: &str) {
    let (name, address) = (format!("{device} {handle}"), events(device));
    world.peer(peer).attach(0, handle, &name, true, &address);
    world.run();
}

/// Condition and description of the error that a link ended with.
fn result(world: &mut World, peer: PeerId, handle: u32) -> Option<(String, String)> {
    let error = world.peer(peer).link(0, handle).detached.clone()?;
    let (_, fields) = composite(&error).expect("an error");
    let text = |index: usize| {
        let field = fields.get(index).and_then(Value::as_text);
        field.unwrap_or_default().to_owned()
    };
    Some((text(0), text(1)))
}

/// What a hub was sent on links of devices and on that to `$cbs`, in order: `put AUDIENCE` or `attach ADDRESS`.
fn heard(world: &mut World, hub: PeerId) -> Vec<String> {
    let frames = world.peer(hub).log.iter();
    frames
        .filter_map(|frame| match frame.code {
            wire::ATTACH => {
                let (_, fields) = composite(frame.field(if frame.flag(2) { 5 } else { 6 }))?;
                let address = fields.first()?.as_text()?;
                (address != "$cbs").then(|| format!("attach {address}"))
            }
            wire::TRANSFER => {
                let message = Message::decode(&frame.payload).ok()?;
                let name = message.application_property("name")?.as_text()?.to_owned();
                Some(format!("put {name}"))
            }
            _ => None,
        })
        .collect()
}

fn put(device: &str) -> String {
    format!("put {}", audience(device))
}

fn attached(device: &str) -> String {
    format!("attach {}", events(device))
}

/// A world in which a device has put tokens for these ids, and its connection to the hub is lost since; what is dialed
/// is the next hub.
fn lost_hub(ids: &[&str]) -> (World, CbsDevice) {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d");
    let mut hub = CbsHub::new(&world);
    for id in ids {
        device.puts(&mut world, &mut hub, id);
    }
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    (world, device)
}

/// Waits for the next hub.
fn next_hub(world: &mut World) -> CbsHub {
    let made = world.hubs_made;
    for _ in 0..10 {
        if world.hubs_made > made {
            break;
        }
        world.advance(seconds(1));
    }
    assert_eq!(world.hubs_made, made + 1, "dialed again");
    CbsHub::new(world)
}

#[test]
fn a_token_is_put_again_before_what_needs_it() {
    let (mut world, device) = lost_hub(&["a"]);
    attach(&mut world, device.peer, 10, "a");
    attach(&mut world, device.peer, 11, "a");
    let mut hub = next_hub(&mut world);
    assert_eq!(heard(&mut world, hub.peer), [put("a")], "and no attach yet");
    let request = hub.request(&mut world);
    assert_eq!(request.token(), token("a"));
    hub.answer(&mut world, &request, 200, "OK");
    assert_eq!(
        heard(&mut world, hub.peer),
        [put("a"), attached("a"), attached("a")]
    );
    assert_eq!(
        device.answers(&mut world).len(),
        1,
        "the device has not asked again"
    );
    // Once is enough.
    attach(&mut world, device.peer, 12, "a");
    assert_eq!(heard(&mut world, hub.peer).len(), 4);
    assert_eq!(hub.requests(&mut world).len(), 0);
}

#[test]
fn a_hub_that_closed_an_hour_ago_is_no_reason_to_ask_the_device() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "a");
    attach(&mut world, device.peer, 10, "a");
    world.peer(hub.peer).close(Value::Null);
    world.run();
    assert_eq!(
        result(&mut world, device.peer, 10).expect("lost").0,
        DETACH_FORCED
    );
    world.advance(seconds(3600));
    assert!(world.is_alive(device.peer));
    assert_eq!(world.hubs_made, 1, "nobody asked for another");
    attach(&mut world, device.peer, 11, "a");
    let mut hub = CbsHub::new(&world);
    assert_eq!(heard(&mut world, hub.peer), [put("a")]);
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(heard(&mut world, hub.peer), [put("a"), attached("a")]);
}

#[test]
fn a_token_that_the_hub_will_not_have_again_takes_what_waits_for_it() {
    let (mut world, device) = lost_hub(&["a", "b"]);
    for (handle, id) in [(10, "a"), (11, "a"), (12, "b")] {
        attach(&mut world, device.peer, handle, id);
    }
    let mut hub = next_hub(&mut world);
    let requests = hub.requests(&mut world);
    assert_eq!(requests.len(), 2);
    for request in &requests {
        match request.text("name") == audience("a") {
            true => hub.answer(&mut world, request, 401, "The specified SAS token is expired."),
            false => hub.answer(&mut world, request, 200, "OK"),
        }
    }
    for handle in [10, 11] {
        let (condition, why) = result(&mut world, device.peer, handle).expect("refused");
        assert_eq!(condition, UNAUTHORIZED);
        assert!(why.contains("401 The specified SAS token is expired."), "{why}");
    }
    assert_eq!(result(&mut world, device.peer, 12), None);
    assert_eq!(heard(&mut world, hub.peer).last(), Some(&attached("b")));
    // What the hub would not have again is no authority any more, until the device puts a better one.
    attach(&mut world, device.peer, 13, "a");
    assert_eq!(
        result(&mut world, device.peer, 13).expect("refused").0,
        UNAUTHORIZED
    );
    device.puts(&mut world, &mut hub, "a");
    attach(&mut world, device.peer, 14, "a");
    assert_eq!(result(&mut world, device.peer, 14), None);
}

#[test]
fn an_attach_waits_for_no_other_token_than_its_own() {
    let (mut world, device) = lost_hub(&["a", "b", "c"]);
    attach(&mut world, device.peer, 10, "b");
    let mut hub = next_hub(&mut world);
    let requests = hub.requests(&mut world);
    assert_eq!(requests.len(), 3, "all of them are put again");
    let own = requests
        .iter()
        .find(|request| request.text("name") == audience("b"));
    hub.answer(&mut world, own.expect("its own"), 200, "OK");
    assert_eq!(heard(&mut world, hub.peer).last(), Some(&attached("b")));
}

#[test]
fn without_an_answer_what_waits_is_detached_and_may_try_again() {
    let (mut world, device) = lost_hub(&["a"]);
    attach(&mut world, device.peer, 10, "a");
    let mut hub = next_hub(&mut world);
    assert_eq!(hub.requests(&mut world).len(), 1);
    world.advance(seconds(60));
    let (condition, why) = result(&mut world, device.peer, 10).expect("detached");
    assert_eq!(condition, DETACH_FORCED);
    assert!(why.contains("has not answered a request to $cbs"), "{why}");
    assert!(world.is_alive(device.peer));
    attach(&mut world, device.peer, 11, "a");
    let request = hub.request(&mut world);
    hub.answer(&mut world, &request, 200, "OK");
    assert_eq!(result(&mut world, device.peer, 11), None);
    assert_eq!(heard(&mut world, hub.peer).last(), Some(&attached("a")));
}

#[test]
fn a_hub_that_is_lost_again_while_a_token_is_on_its_way_gets_it_again() {
    let (mut world, device) = lost_hub(&["a"]);
    attach(&mut world, device.peer, 10, "a");
    let hub = next_hub(&mut world);
    assert_eq!(heard(&mut world, hub.peer), [put("a")]);
    world.lose(hub.peer);
    world.run();
    let mut hub = next_hub(&mut world);
    assert_eq!(heard(&mut world, hub.peer), [put("a")], "once");
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(heard(&mut world, hub.peer), [put("a"), attached("a")]);
    assert_eq!(result(&mut world, device.peer, 10), None);
}

#[test]
fn a_device_that_puts_its_own_token_first_is_not_forestalled() {
    let (mut world, device) = lost_hub(&["a"]);
    device.ask(&mut world, &put_token("a", string("again")));
    attach(&mut world, device.peer, 10, "a");
    let mut hub = next_hub(&mut world);
    while hub.accept_all(&mut world) > 0 {}
    let heard = heard(&mut world, hub.peer);
    assert_eq!(heard.first(), Some(&put("a")));
    assert_eq!(heard.last(), Some(&attached("a")));
    assert_eq!(device.answers(&mut world).len(), 2);
}

#[test]
fn a_device_that_leaves_takes_its_tokens_off_the_list() {
    let (mut world, device) = lost_hub(&["a"]);
    let other = CbsDevice::new(&mut world, "other");
    world.lose(device.peer);
    world.run();
    other.ask(&mut world, &put_token("b", string("1")));
    let mut hub = next_hub(&mut world);
    hub.accept_all(&mut world);
    attach(&mut world, other.peer, 10, "b");
    assert_eq!(heard(&mut world, hub.peer), [put("b"), attached("b")]);
}

#[test]
fn a_device_whose_token_is_refused_at_renewal_keeps_the_old_one() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "a");
    device.ask(&mut world, &put_token("a", string("renewal")));
    let request = hub.request(&mut world);
    hub.answer(&mut world, &request, 500, "InternalServerError");
    attach(&mut world, device.peer, 10, "a");
    assert_eq!(result(&mut world, device.peer, 10), None);
}

// ---- another configuration -----------------------------------------------------------------------------------------

/// The same connector with something else about it, so that it starts anew.
fn changed() -> RouterSettings {
    let mut settings = cbs_settings();
    for connector in &mut settings.connectors {
        connector.dial_timeout += seconds(1);
    }
    settings
}

#[test]
fn a_reload_forgets_no_attach_that_waits_for_a_token() {
    let (mut world, device) = lost_hub(&["a"]);
    attach(&mut world, device.peer, 10, "a");
    let hub = next_hub(&mut world);
    assert_eq!(heard(&mut world, hub.peer), [put("a")]);
    assert_eq!(world.reload(changed()).changed, 1);
    world.advance(seconds(5));
    let mut hub = CbsHub::new(&world);
    assert_eq!(heard(&mut world, hub.peer), [put("a")]);
    hub.accept_all(&mut world);
    assert_eq!(heard(&mut world, hub.peer), [put("a"), attached("a")]);
    assert_eq!(result(&mut world, device.peer, 10), None);
    // Its `$cbs` links lead to the successor.
    device.puts(&mut world, &mut hub, "b");
}

#[test]
fn a_connector_that_is_removed_takes_its_cbs_links_and_what_waits_along() {
    let (mut world, device) = lost_hub(&["a"]);
    attach(&mut world, device.peer, 10, "a");
    next_hub(&mut world);
    let mut settings = cbs_settings();
    settings.connectors.clear();
    world.reload(settings);
    for handle in [0, 1, 10] {
        let (condition, why) = result(&mut world, device.peer, handle).expect("detached");
        assert_eq!(condition, DETACH_FORCED);
        assert!(why.contains("removed from the configuration"), "{handle}: {why}");
    }
    assert!(world.is_alive(device.peer));
}

// ---- clocks --------------------------------------------------------------------------------------------------------

/// A put-token whose token ends at this time.
fn put_until(device: &str, expiry: u64) -> Message {
    let text = format!("SharedAccessSignature sr=hub.example%2Fdevices%2F{device}&sig=c2ln&se={expiry}");
    let body = Body::Value(string(&text));
    request(string("1"), "put-token", SAS, &audience(device), body)
}

const NOW: u64 = 1_764_000_000;

/// A world whose clock is right, and a device with a token that ends in this many seconds by it.
fn timed(left: u64) -> (World, CbsDevice) {
    let mut world = cbs_world(cbs_settings());
    world.router.tell_time(seconds(NOW), world.now);
    let device = CbsDevice::new(&mut world, "d");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_until("a", NOW + left));
    assert_eq!(hub.accept_all(&mut world), 1);
    (world, device)
}

#[test]
fn a_token_that_has_ended_is_for_the_hub_to_judge_for_a_while() {
    let (mut world, device) = timed(100);
    world.advance(seconds(100 + 599));
    attach(&mut world, device.peer, 10, "a");
    assert_eq!(result(&mut world, device.peer, 10), None, "within the grace");
    world.advance(seconds(11));
    attach(&mut world, device.peer, 11, "a");
    let (condition, why) = result(&mut world, device.peer, 11).expect("refused");
    assert_eq!(condition, UNAUTHORIZED);
    assert!(why.contains("ended 610 s ago"), "{why}");
}

#[test]
fn a_renewed_token_is_good_until_its_own_end() {
    let (mut world, device) = timed(100);
    world.advance(seconds(90));
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_until("a", NOW + 5000));
    assert_eq!(hub.requests(&mut world).len(), 2);
    let requests = CbsHub::new(&world).requests(&mut world);
    hub.answer(&mut world, requests.last().expect("the renewal"), 200, "OK");
    world.advance(seconds(4000));
    attach(&mut world, device.peer, 10, "a");
    assert_eq!(result(&mut world, device.peer, 10), None);
}

#[test]
fn a_token_that_has_ended_is_not_put_again_and_opens_nothing_on_another_connection() {
    let (mut world, device) = timed(100);
    let hub = world.hub_id();
    world.advance(seconds(101));
    world.lose(hub);
    world.run();
    attach(&mut world, device.peer, 10, "a");
    let (condition, why) = result(&mut world, device.peer, 10).expect("refused");
    assert_eq!(condition, UNAUTHORIZED);
    assert!(why.contains("ended 1 s ago"), "{why}");
    let other = CbsDevice::new(&mut world, "other");
    other.ask(&mut world, &put_token("b", string("1")));
    let mut hub = next_hub(&mut world);
    hub.accept_all(&mut world);
    assert_eq!(heard(&mut world, hub.peer), [put("b")]);
}

#[test]
fn a_step_of_the_clock_changes_nothing_for_tokens_that_are_accepted() {
    for step in [NOW - 1_000_000, NOW + 1_000_000] {
        let (mut world, device) = timed(1000);
        world.advance(seconds(10));
        world.router.tell_time(seconds(step), world.now);
        attach(&mut world, device.peer, 10, "a");
        assert_eq!(result(&mut world, device.peer, 10), None, "{step}");
        world.advance(seconds(1000 + 600));
        attach(&mut world, device.peer, 11, "a");
        assert!(result(&mut world, device.peer, 11).is_some(), "{step}");
    }
}

/// A board without a battery: its clock shows 1970 until the network is there, and then jumps by decades.
#[test]
fn a_clock_that_is_set_late_changes_nothing_for_tokens() {
    let said = Said::of(|| {
        let mut world = cbs_world(cbs_settings());
        world.router.tell_time(seconds(100), world.now);
        let device = CbsDevice::new(&mut world, "d");
        let mut hub = CbsHub::new(&world);
        device.ask(&mut world, &put_until("a", NOW + 3600));
        assert_eq!(hub.accept_all(&mut world), 1);
        attach(&mut world, device.peer, 10, "a");
        world.advance(seconds(10));
        world.router.tell_time(seconds(NOW), world.now);
        world.advance(seconds(10));
        attach(&mut world, device.peer, 11, "a");
        // The token is put again, for it has not ended.
        let id = world.hub_id();
        world.lose(id);
        world.run();
        attach(&mut world, device.peer, 12, "a");
        let mut hub = next_hub(&mut world);
        assert_eq!(hub.accept_all(&mut world), 1);
        // One that comes now is measured by the right clock.
        device.ask(&mut world, &put_until("a", NOW + 1000));
        assert_eq!(hub.accept_all(&mut world), 1);
        world.advance(seconds(1000 + 500));
        attach(&mut world, device.peer, 13, "a");
        for handle in [12, 13] {
            assert_eq!(result(&mut world, device.peer, handle), None, "{handle}");
        }
        world.advance(seconds(100));
        attach(&mut world, device.peer, 14, "a");
        assert!(result(&mut world, device.peer, 14).is_some());
    });
    assert!(!said.contains("by this machine's clock"));
}

#[test]
fn a_token_that_the_hub_accepts_is_good_whatever_our_clock_says() {
    let said = Said::of(|| {
        let mut world = cbs_world(cbs_settings());
        world.router.tell_time(seconds(NOW), world.now);
        let device = CbsDevice::new(&mut world, "d");
        let mut hub = CbsHub::new(&world);
        device.ask(&mut world, &put_until("a", NOW - 7200));
        assert_eq!(hub.accept_all(&mut world), 1);
        world.advance(Duration::from_secs(3 * 3600));
        attach(&mut world, device.peer, 10, "a");
        assert_eq!(result(&mut world, device.peer, 10), None);
    });
    let line = said.line("ended 7200 s ago by this machine's clock");
    assert!(line.contains("WARN") && line.contains("[C1]"), "{line}");
}

// ---- what the operator reads -----------------------------------------------------------------------------------------

const SECRET: &str = "c2VjcmV0";

fn put_signed(host: &str, expiry: u64) -> Message {
    let text = format!("SharedAccessSignature sr={host}%2Fdevices%2Fa&sig={SECRET}&se={expiry}");
    let body = Body::Value(string(&text));
    request(string("1"), "put-token", SAS, &format!("{host}/devices/a"), body)
}

#[test]
fn each_refusal_of_a_token_is_one_plain_line() {
    let bad_signature = "The specified SAS token has an invalid signature. It does not match either the primary or \
                         secondary key.";
    for (host, expiry, status, description, expected) in [
        (
            "hub.example",
            NOW - 93,
            401,
            "Unauthorized",
            "expired 93 s ago: the device's clock is behind",
        ),
        (
            "gateway.local",
            NOW + 60,
            401,
            "Unauthorized",
            "signed for the host 'gateway.local', and the hub is hub.example",
        ),
        (
            "hub.example",
            NOW + 60,
            401,
            bad_signature,
            "is not signed with a key that the hub has for it",
        ),
        (
            "hub.example",
            NOW + 60,
            404,
            "Device a not registered.",
            "does not know device a: register it",
        ),
        (
            "hub.example",
            NOW + 60,
            403,
            "exceeded the allocated quota",
            "daily quota",
        ),
        (
            "hub.example",
            NOW + 60,
            500,
            "The maximum number of tokens per connection",
            "maxTokens",
        ),
    ] {
        let said = Said::of(|| {
            let mut settings = cbs_settings();
            for connector in &mut settings.connectors {
                connector.sharing.pool_size = 1;
            }
            let mut world = cbs_world(settings);
            world.router.tell_time(seconds(NOW), world.now);
            let device = CbsDevice::new(&mut world, "d");
            let mut hub = CbsHub::new(&world);
            device.ask(&mut world, &put_signed(host, expiry));
            let request = hub.request(&mut world);
            hub.answer(&mut world, &request, status, description);
            assert_eq!(
                device.answers(&mut world).first().expect("an answer").code(),
                status
            );
        });
        let line = said.line(expected);
        for part in ["WARN", "[C1]", "refused a token of d ", description] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(said.count("WARN"), 1, "{said:?}");
        assert!(!said.contains(SECRET), "{said:?}");
    }
}

#[test]
fn what_the_hub_says_of_a_device_at_a_detach_is_explained() {
    let quota = "Total number of messages on IotHub 'hub' exceeded the allocated quota.";
    for (condition, description, expected) in [
        (
            "amqp:unauthorized-access",
            "Token Invalid.",
            "the token of device a expired 10 s ago",
        ),
        (
            "com.microsoft:link-creation-conflict",
            "Another AMQP Client has opened a Receive Link",
            "another client has connected to the hub as device a",
        ),
        ("amqp:resource-limit-exceeded", quota, "add units to the hub"),
        (
            "amqp:not-found",
            "Device a at IotHub hub not registered.",
            "does not know device a",
        ),
    ] {
        let said = Said::of(|| {
            let (mut world, device) = timed(100);
            attach(&mut world, device.peer, 10, "a");
            world.advance(seconds(110));
            let hub = world.hub_id();
            let (channel, handle) = world.peer(hub).find("a 10@d", false).expect("a link");
            let fields = vec![wire::symbol(condition), string(description)];
            world
                .peer(hub)
                .detach(channel, handle, true, wire::described(0x1d, fields));
            world.run();
            let (heard, _) = result(&mut world, device.peer, 10).expect("detached");
            assert_eq!(heard, condition);
        });
        let line = said.line(expected);
        for part in ["WARN", "Link detached by the hub", condition, description] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(said.count("Link detached by the hub"), 1, "{said:?}");
    }
}

#[test]
fn what_a_hub_says_of_itself_at_a_detach_needs_no_advice() {
    let said = Said::of(|| {
        let (mut world, device) = timed(100);
        attach(&mut world, device.peer, 10, "a");
        let hub = world.hub_id();
        let (channel, handle) = world.peer(hub).find("a 10@d", false).expect("a link");
        let fields = vec![wire::symbol(DETACH_FORCED), string("The link is moved.")];
        world
            .peer(hub)
            .detach(channel, handle, true, wire::described(0x1d, fields));
        world.run();
    });
    let line = said.line("Link detached by the hub");
    assert!(
        line.contains("INFO") && line.trim_end().ends_with("The link is moved."),
        "{line}"
    );
}

#[test]
fn an_impostor_is_logged_once_with_what_it_may_use() {
    let said = Said::of(|| {
        let (mut world, device) = timed(100);
        for handle in 10..30 {
            attach(&mut world, device.peer, handle, "victim");
        }
    });
    assert_eq!(said.count("DENY AMQP Attach"), 1, "{said:?}");
    let line = said.line("DENY AMQP Attach");
    for part in [
        "WARN",
        "[C1]",
        "of d (container 'd')",
        "may not use 'devices/victim/messages/events'",
        "its tokens are for 'hub.example/devices/a'",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn impostors_that_come_again_and_again_do_not_fill_the_log() {
    let said = Said::of(|| {
        let mut world = cbs_world(cbs_settings());
        for _ in 0..100 {
            let device = world.device("impostor");
            attach(&mut world, device, 10, "victim");
            world.lose(device);
            world.run();
        }
    });
    let count = said.count("DENY AMQP Attach");
    assert!((1..=20).contains(&count), "{count}");
}

// ---- a hub that does not do as it should ---------------------------------------------------------------------------

#[test]
fn a_request_that_the_hub_rejects_leaves_nothing_behind_it() {
    let mut world = cbs_world(cbs_settings());
    world.hub = Some((
        Auto {
            accept: false,
            ..CBS_HUB_AUTO
        },
        Announces::default(),
    ));
    let device = CbsDevice::new(&mut world, "d");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("a", string("1")));
    attach(&mut world, device.peer, 10, "a");
    let request = hub.request(&mut world);
    let (channel, handle) = hub.hears_on(&mut world).expect("a link");
    world
        .peer(hub.peer)
        .settle(channel, handle, request.delivery, wire::REJECTED);
    world.run();
    assert_eq!(
        result(&mut world, device.peer, 10).expect("refused").0,
        UNAUTHORIZED
    );
    let asked = world.peer(device.peer).link(0, crate::cbs_hub::ASKS);
    assert_eq!(asked.settled, [(0, Some(wire::REJECTED))]);
}

/// A device that has started is not held up by those who wait for their turn to start.
#[test]
fn a_token_is_renewed_at_once_however_many_devices_wait_to_start() {
    let mut settings = cbs_settings();
    for connector in &mut settings.connectors {
        connector.sharing.devices_per_second = 1;
    }
    let mut world = cbs_world(settings);
    let device = CbsDevice::new(&mut world, "known");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "a");
    for number in 0..30 {
        let stranger = CbsDevice::new(&mut world, &format!("stranger {number}"));
        stranger.ask(&mut world, &put_token(&format!("s{number}"), string("1")));
    }
    assert_eq!(hub.requests(&mut world).len(), 0, "not their turn");
    device.puts(&mut world, &mut hub, "a");
}
