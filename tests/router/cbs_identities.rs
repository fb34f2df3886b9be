//! Who may use what: a device attaches what it has put an accepted token for itself, and nothing else, in whatever way
//! it asks.

use linkrouterd::amqp::message::Body;
use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::limits;
use linkrouterd::router::settings::{
    CbsMode, Destination, Direction, Matcher, RouteSettings, RouterSettings,
};

use crate::cbs_hub::{
    ASKS, CbsDevice, CbsHub, HEARS, SAS, audience, cbs_settings, cbs_world, put_token, request, seconds,
    token,
};
use crate::wire::{self, string};
use crate::world::{PeerId, World};

const UNAUTHORIZED: &str = "amqp:unauthorized-access";

/// Every address goes to the hub.
fn catch_all() -> RouterSettings {
    let mut settings = cbs_settings();
    for direction in [Direction::In, Direction::Out] {
        settings.routes.push(RouteSettings {
            name: format!("all {direction:?}"),
            matcher: Matcher::Pattern("#".into()),
            direction,
            destination: Destination::Connection("HUB".into()),
            add_external_prefix: String::new(),
            del_external_prefix: String::new(),
        });
    }
    settings
}

/// Condition and description of an error.
fn words(error: &Value) -> (String, String) {
    let (_, fields) = wire::composite(error).expect("an error");
    let text = |index: usize| {
        let field = fields.get(index).and_then(Value::as_text);
        field.unwrap_or_default().to_owned()
    };
    (text(0), text(1))
}

/// Attaches, and says what came of it: the error, or `None` if the hub has the link.
fn attach(
    world: &mut World,
    peer: PeerId,
    channel: u16,
    handle: u32,
    address: &str,
) -> Option<(String, String)> {
    let name = format!("link {handle}");
    let count = attached(world, address);
    world.peer(peer).attach(channel, handle, &name, true, address);
    world.run();
    let link = world.peer(peer).link(channel, handle);
    let error = link.detached.clone();
    match error {
        Some(error) => {
            assert_eq!(
                attached(world, address),
                count,
                "{address}: refused, and at the hub"
            );
            Some(words(&error))
        }
        None => {
            assert!(
                attached(world, address) > count,
                "{address}: neither refused nor at the hub"
            );
            None
        }
    }
}

/// How many links to this address the hub has been asked for.
fn attached(world: &mut World, address: &str) -> usize {
    let is_hub = |it: &&crate::world::Transport| it.peer.kind == crate::peer::Kind::Hub;
    let frames = world.peers.iter().filter(is_hub).flat_map(|it| &it.peer.log);
    let attaches = frames.filter(|frame| frame.code == wire::ATTACH);
    attaches
        .filter(|frame| {
            let terminus = frame.field(if frame.flag(2) { 5 } else { 6 });
            let fields = wire::composite(terminus).map(|(_, fields)| fields);
            fields.is_some_and(|fields| fields.first().and_then(Value::as_text) == Some(address))
        })
        .count()
}

#[track_caller]
fn refused(result: Option<(String, String)>) -> String {
    let (condition, description) = result.expect("refused");
    assert_eq!(condition, UNAUTHORIZED, "{description}");
    description
}

/// A world with device `a`, whose token the hub has accepted, and device `b`, likewise.
fn two_devices(settings: RouterSettings) -> (World, CbsHub, CbsDevice, CbsDevice) {
    let mut world = cbs_world(settings);
    let first = CbsDevice::new(&mut world, "a");
    let second = CbsDevice::new(&mut world, "b");
    let mut hub = CbsHub::new(&world);
    first.puts(&mut world, &mut hub, "a");
    second.puts(&mut world, &mut hub, "b");
    (world, hub, first, second)
}

#[test]
fn a_device_may_use_what_it_has_authorised_and_not_what_others_have() {
    let (mut world, _, a, b) = two_devices(catch_all());
    assert_eq!(
        attach(&mut world, a.peer, 0, 10, "devices/a/messages/events"),
        None
    );
    assert_eq!(
        attach(&mut world, b.peer, 0, 10, "/devices/b/messages/events"),
        None
    );
    for (handle, address) in (20..).zip([
        "devices/a/messages/events",
        "/devices/a/messages/devicebound",
        "/DEVICES/a/messages/events",
        "devices/a",
        "devices/a/",
        "/devices/%61/messages/events",
        "devices/b/../a/messages/events",
        "devices/b/%2e%2e/a/messages/events",
        "//devices/a/messages/events",
        "devices/b%2F..%2Fa/messages/events",
        "amqps://hub.example/devices/a/messages/events",
        "amqps://other.example:5671/devices/a/twin",
        "amqps:/devices/a/messages/events",
        "devices/bb/messages/events",
        "devices/B/messages/events",
        "devices/a/modules/b/messages/events",
        "devices/*/messages/events",
        "devices/",
        "devices",
        "messages/devicebound",
        "/messages/serviceBound/feedback",
        "$management",
        "here",
    ]) {
        let why = refused(attach(&mut world, b.peer, 0, handle, address));
        assert!(why.contains("may not use '"), "{why}");
        assert!(
            why.contains("its tokens are for 'hub.example/devices/b'"),
            "{why}"
        );
    }
    assert!(world.is_alive(b.peer));
    assert_eq!(
        attach(&mut world, b.peer, 0, 11, "/devices/b/messages/devicebound"),
        None
    );
}

#[test]
fn a_device_without_a_token_may_use_nothing() {
    let (mut world, _, _, _) = two_devices(cbs_settings());
    let third = CbsDevice::new(&mut world, "c");
    let why = refused(attach(&mut world, third.peer, 0, 10, "devices/a/messages/events"));
    assert!(why.contains("has put no token"), "{why}");
    // Nor the one that the hub refuses.
    third.ask(&mut world, &put_token("c", string("1")));
    let mut hub = CbsHub::new(&world);
    let requests = hub.requests(&mut world);
    let request = requests.last().expect("a request");
    hub.answer(&mut world, request, 401, "Unauthorized");
    let why = refused(attach(&mut world, third.peer, 0, 11, "devices/c/messages/events"));
    assert!(why.contains("401 Unauthorized"), "{why}");
}

#[test]
fn the_first_attach_on_a_new_connection_is_checked_too() {
    let mut world = cbs_world(cbs_settings());
    let device = world.device("b");
    refused(attach(&mut world, device, 0, 10, "devices/a/messages/events"));
    assert_eq!(world.hubs_made, 0, "no reason to dial");
}

#[test]
fn an_attach_behind_its_token_waits_for_the_answer() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "a");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("a", string("1")));
    world
        .peer(device.peer)
        .attach(0, 10, "events", true, "devices/a/messages/events");
    world
        .peer(device.peer)
        .attach(0, 11, "other", true, "devices/b/messages/events");
    world.run();
    assert_eq!(attached(&mut world, "devices/a/messages/events"), 0);
    let other = world
        .peer(device.peer)
        .link(0, 11)
        .detached
        .clone()
        .expect("refused at once");
    assert_eq!(words(&other).0, UNAUTHORIZED);
    let request = hub.request(&mut world);
    hub.answer(&mut world, &request, 200, "OK");
    assert_eq!(attached(&mut world, "devices/a/messages/events"), 1);
    assert_eq!(world.peer(device.peer).link(0, 10).detached, None);
}

#[test]
fn an_attach_behind_a_token_that_is_refused_is_refused_with_the_hubs_words() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "a");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("a", string("1")));
    world
        .peer(device.peer)
        .attach(0, 10, "events", true, "devices/a/messages/events");
    world.run();
    let request = hub.request(&mut world);
    hub.answer(&mut world, &request, 404, "Device a not registered.");
    let error = world
        .peer(device.peer)
        .link(0, 10)
        .detached
        .clone()
        .expect("refused");
    let (condition, why) = words(&error);
    assert_eq!(condition, UNAUTHORIZED);
    assert!(why.contains("404 Device a not registered."), "{why}");
}

#[test]
fn a_departed_device_takes_its_authority_along() {
    for way in ["close", "loss", "end of stream"] {
        let (mut world, _, a, b) = two_devices(cbs_settings());
        match way {
            "close" => world.peer(a.peer).close(Value::Null),
            "loss" => world.lose(a.peer),
            _ => world.end_of_stream(a.peer),
        }
        world.run();
        assert!(!world.is_alive(a.peer));
        // Its token is still on the connection, and its slot is free for another.
        refused(attach(&mut world, b.peer, 0, 10, "devices/a/messages/events"));
        let next = world.device("a");
        let why = refused(attach(&mut world, next, 0, 10, "devices/a/messages/events"));
        assert!(why.contains("has put no token"), "{way}: {why}");
    }
}

#[test]
fn the_end_of_a_session_is_not_that_of_an_authorisation() {
    let (mut world, _, a, _) = two_devices(cbs_settings());
    world.peer(a.peer).end(0, Value::Null);
    world.run();
    world.peer(a.peer).begin(1);
    world.run();
    assert_eq!(
        attach(&mut world, a.peer, 1, 10, "devices/a/messages/events"),
        None
    );
}

#[test]
fn without_the_check_any_device_may_use_any_identity() {
    let mut settings = cbs_settings();
    for connector in &mut settings.connectors {
        connector.sharing.checks_identity = false;
    }
    let (mut world, _, _, b) = two_devices(settings);
    assert_eq!(
        attach(&mut world, b.peer, 0, 10, "devices/a/messages/events"),
        None
    );
}

#[test]
fn a_connector_with_an_identity_of_its_own_checks_nothing() {
    let mut own = cbs_settings();
    for connector in &mut own.connectors {
        connector.sasl_username = Some("policy@sas.root.hub".into());
    }
    let mut tunnel = cbs_settings();
    for connector in &mut tunnel.connectors {
        connector.sharing.cbs = CbsMode::Tunnel;
    }
    for settings in [own, tunnel] {
        let mut world = cbs_world(settings);
        let device = world.device("a");
        assert_eq!(
            attach(&mut world, device, 0, 10, "devices/b/messages/events"),
            None
        );
    }
}

/// A dynamic terminus is routed by its properties; its address must not name another node for a hub that looks there.
#[test]
fn a_dynamic_terminus_with_an_address_of_its_own_is_refused() {
    let (mut world, _, _, b) = two_devices(cbs_settings());
    let dynamic = |address: Value, route: &str| {
        wire::described(
            0x28,
            vec![
                address,
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Boolean(true),
                Value::Map(vec![(wire::symbol("x-opt-qd.address"), string(route))]),
            ],
        )
    };
    let target = || wire::terminus(0x29, "here");
    let own = "devices/b/messages/devicebound";
    for (handle, source) in [
        (10, dynamic(string("devices/a/messages/devicebound"), own)),
        (11, dynamic(Value::Null, "devices/a/messages/devicebound")),
        (12, dynamic(Value::Null, own)),
    ] {
        let name = format!("dynamic {handle}");
        world
            .peer(b.peer)
            .attach_with(0, handle, &name, false, source, target());
        world.run();
        let error = world.peer(b.peer).link(0, handle).detached.clone();
        match handle {
            12 => assert_eq!(error, None),
            10 => assert_eq!(words(&error.expect("refused")).0, "amqp:invalid-field"),
            _ => assert_eq!(words(&error.expect("refused")).0, UNAUTHORIZED),
        }
    }
    assert_eq!(attached(&mut world, "devices/a/messages/devicebound"), 0);
}

/// `$cbs` by any other name is the router's own as well: the hub has one pair on a connection.
#[test]
fn no_spelling_of_cbs_reaches_the_hub() {
    let mut world = cbs_world(catch_all());
    let device = CbsDevice::new(&mut world, "a");
    device.ask(&mut world, &put_token("a", string("1")));
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 1);
    for (handle, address) in (10..).zip([
        "$CBS",
        "/$cbs",
        "$cbs/",
        "%24cbs",
        "amqps://hub.example/$cbs",
        "$cbs/x",
    ]) {
        let name = format!("cbs {handle}");
        world.peer(device.peer).attach(0, handle, &name, true, address);
        world.run();
        assert_eq!(
            world.peer(device.peer).link(0, handle).detached,
            None,
            "{address}"
        );
        assert_eq!(attached(&mut world, address), 0, "{address}");
    }
    assert_eq!(hub.attached(&mut world), (1, 1));
    let asked = world.peer(device.peer).link(0, ASKS);
    assert_eq!(asked.settled.len(), 1);
}

/// A route may give the hub another address than the device wrote: that one counts.
#[test]
fn the_address_that_counts_is_the_one_that_the_hub_gets() {
    let mut settings = cbs_settings();
    for (name, add, del) in [("add", "devices/", ""), ("del", "", "out/")] {
        settings.routes.push(RouteSettings {
            name: name.into(),
            matcher: Matcher::Prefix(if name == "add" { "in" } else { "out" }.into()),
            direction: Direction::In,
            destination: Destination::Connection("HUB".into()),
            add_external_prefix: add.into(),
            del_external_prefix: del.into(),
        });
    }
    let (mut world, _, _, b) = two_devices(settings);
    refused(attach(&mut world, b.peer, 0, 10, "out/devices/a/messages/events"));
    refused(attach(&mut world, b.peer, 0, 11, "in/messages/events"));
    world
        .peer(b.peer)
        .attach(0, 12, "own", true, "out/devices/b/messages/events");
    world.run();
    assert_eq!(world.peer(b.peer).link(0, 12).detached, None);
    assert_eq!(attached(&mut world, "devices/b/messages/events"), 1);
}

#[test]
fn a_policy_token_opens_the_service_side_and_a_modules_token_the_module() {
    let (mut world, mut hub, a, b) = two_devices(catch_all());
    let put = |name: &str, text: &str| {
        let body = Body::Value(string(text));
        request(string(name), "put-token", SAS, name, body)
    };
    let service = "SharedAccessSignature sr=hub.example&sig=c2ln&se=2000000000&skn=service";
    a.ask(&mut world, &put("hub.example", service));
    assert_eq!(hub.accept_all(&mut world), 1);
    for (handle, address) in [
        (10, "/messages/devicebound"),
        (11, "/messages/serviceBound/feedback"),
    ] {
        assert_eq!(attach(&mut world, a.peer, 0, handle, address), None);
        refused(attach(&mut world, b.peer, 0, handle, address));
    }
    let module = "SharedAccessSignature sr=hub.example%2Fdevices%2Fc%2Fmodules%2Fm&sig=c2ln&se=2000000000";
    b.ask(&mut world, &put("hub.example/devices/c/modules/m", module));
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(
        attach(&mut world, b.peer, 0, 20, "/devices/c/modules/m/messages/events"),
        None
    );
    refused(attach(&mut world, b.peer, 0, 21, "/devices/c/messages/events"));
    refused(attach(&mut world, b.peer, 0, 22, "/devices/c/modules/mm/twin"));
}

/// What a token that is no SAS token is for is the client's own word, and no device has such a token.
#[test]
fn a_token_whose_resource_nobody_signed_opens_no_device() {
    let (mut world, mut hub, _, b) = two_devices(catch_all());
    for name in ["hub.example", "hub.example/devices/a"] {
        let body = Body::Value(string("eyJhbGciOiJub25lIn0.e30."));
        b.ask(&mut world, &request(string(name), "put-token", "jwt", name, body));
        assert_eq!(hub.accept_all(&mut world), 1);
    }
    for (handle, address) in (10..).zip([
        "/devices/a/messages/events",
        "/%64evices/a/messages/events",
        "//devices/a/messages/events",
        "/x/../devices/a/messages/events",
        "/x%2F..%2Fdevices/a/messages/events",
        "amqps://hub.example/%44evices/a/twin",
    ]) {
        refused(attach(&mut world, b.peer, 0, handle, address));
    }
    assert_eq!(attach(&mut world, b.peer, 0, 30, "/messages/devicebound"), None);
}

/// A request to delete a token goes to the hub's connection, which holds those of all devices.
#[test]
fn a_device_deletes_its_own_tokens_only() {
    let (mut world, mut hub, a, b) = two_devices(cbs_settings());
    let delete = |id: &str, device: &str| {
        let name = audience(device);
        request(string(id), "delete-token", SAS, &name, Body::Value(Value::Null))
    };
    b.ask(&mut world, &delete("theirs", "a"));
    assert_eq!(hub.requests(&mut world).len(), 0, "not the hub's business");
    assert_eq!(b.answers(&mut world).last().expect("an answer").code(), 404);
    assert_eq!(
        attach(&mut world, a.peer, 0, 10, "devices/a/messages/events"),
        None
    );
    b.ask(&mut world, &delete("own", "b"));
    let asked = hub.request(&mut world);
    assert_eq!(
        (asked.text("operation"), asked.text("name")),
        ("delete-token", "hub.example/devices/b")
    );
    hub.answer(&mut world, &asked, 200, "OK");
    refused(attach(&mut world, b.peer, 0, 10, "devices/b/messages/events"));
    // Nor does a token make it another's that anybody may put for any name.
    let body = Body::Value(string("eyJhbGciOiJub25lIn0.e30."));
    let jwt = request(string("jwt"), "put-token", "jwt", &audience("a"), body);
    b.ask(&mut world, &jwt);
    assert_eq!(hub.accept_all(&mut world), 1);
    b.ask(&mut world, &delete("theirs again", "a"));
    assert_eq!(hub.requests(&mut world).len(), 0, "not the hub's business");
}

#[test]
fn three_tokens_of_one_device_connection_open_three_devices() {
    let (mut world, mut hub, a, b) = two_devices(cbs_settings());
    a.puts(&mut world, &mut hub, "c");
    a.puts(&mut world, &mut hub, "d");
    for (handle, device) in (10..).zip(["a", "c", "d"]) {
        let address = format!("devices/{device}/messages/events");
        assert_eq!(attach(&mut world, a.peer, 0, handle, &address), None);
        refused(attach(&mut world, b.peer, 0, handle, &address));
    }
    assert!(
        !format!("{:?}", world.router).contains(&token("a")),
        "a secret in a debug print"
    );
}

/// A world whose hub takes more tokens than a device may have.
fn generous_world() -> World {
    let mut settings = cbs_settings();
    for connector in &mut settings.connectors {
        connector.sharing.max_tokens = 5000;
    }
    cbs_world(settings)
}

/// With tokens of 8 KiB each, these and what they are for are the limit.
#[test]
fn the_tokens_of_a_device_take_no_more_bytes_than_they_may() {
    const SIZE: usize = 8192;
    let number = limits::DEVICE_TOKEN_BYTES / SIZE;
    let device_id = |number: usize| format!("d{number:04}");
    let others = SAS.len() + 2 * audience(&device_id(0)).len();
    let put = |device: &str, size: usize| {
        let short = token(device);
        let (resource, end) = short.split_once("&se=").expect("an end");
        let padding = "A".repeat(size - others - short.len());
        let body = Body::Value(string(&format!("{resource}{padding}&se={end}")));
        request(string("1"), "put-token", SAS, &audience(device), body)
    };
    for excess in [0, 1] {
        let mut world = generous_world();
        let device = CbsDevice::new(&mut world, "many");
        let mut hub = CbsHub::new(&world);
        for number in 0..number {
            let size = SIZE + if number == 1 { excess } else { 0 };
            world.peer(device.peer).grant(0, HEARS, 100);
            device.ask(&mut world, &put(&device_id(number), size));
            assert_eq!(hub.accept_all(&mut world), 1);
        }
        let mut opens = |handle: u32, number: usize| {
            let address = format!("devices/{}/messages/events", device_id(number));
            attach(&mut world, device.peer, 0, handle, &address).is_none()
        };
        assert_eq!(opens(10, 0), excess == 0, "the oldest of {number}");
        assert!(opens(11, 1) && opens(12, number - 1));
    }
}

#[test]
fn a_device_has_no_more_than_a_thousand_tokens() {
    let mut world = generous_world();
    let device = CbsDevice::new(&mut world, "many");
    let mut hub = CbsHub::new(&world);
    for first in (0..1001).step_by(13) {
        world.peer(device.peer).grant(0, HEARS, 100);
        for number in first..first + 13 {
            device.ask(&mut world, &put_token(&format!("d{number}"), string("1")));
        }
        assert_eq!(hub.accept_all(&mut world), 13);
    }
    let why = refused(attach(
        &mut world,
        device.peer,
        0,
        10,
        "devices/d0/messages/events",
    ));
    assert!(why.contains("and 997 more"), "{why}");
    assert_eq!(
        attach(&mut world, device.peer, 0, 11, "devices/d1/messages/events"),
        None
    );
    assert_eq!(
        attach(&mut world, device.peer, 0, 12, "devices/d1000/messages/events"),
        None
    );
}

/// A hub serves a token for some minutes after its end: that of the last one leaves no gap where no route names `$cbs`.
#[test]
fn a_connection_that_had_a_token_stays_guarded_when_the_last_one_has_ended() {
    const NOW: u64 = 1_764_000_000;
    let mut settings = catch_all();
    settings
        .routes
        .retain(|route| matches!(route.matcher, Matcher::Pattern(_)));
    let mut world = cbs_world(settings);
    world.router.tell_time(seconds(NOW), world.now);
    let a = CbsDevice::new(&mut world, "a");
    let text = format!(
        "SharedAccessSignature sr=hub.example%2Fdevices%2Fa&sig=c2ln&se={}",
        NOW + 60
    );
    let body = Body::Value(string(&text));
    a.ask(
        &mut world,
        &request(string("1"), "put-token", SAS, &audience("a"), body),
    );
    assert_eq!(CbsHub::new(&world).accept_all(&mut world), 1);
    let b = world.device("b");
    refused(attach(&mut world, b, 0, 10, "devices/a/messages/events"));
    world.advance(seconds(61));
    refused(attach(&mut world, b, 0, 11, "devices/a/messages/events"));
}
