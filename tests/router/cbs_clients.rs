//! The CBS relay with each client as that speaks: which links on which sessions, which ids, which reply-to, in which
//! order. The device side is scripted after the programs' own code and published traces.

use linkrouterd::amqp::message::{Body, Message};
use linkrouterd::amqp::value::Value;

use crate::cbs_hub::{
    CbsHub, SAS, answers_on, audience, cbs_settings, cbs_world, encoded, replying_to, request, token,
};
use crate::peer::{Announces, Auto};
use crate::wire::{self, ACCEPTED, Frame, described, string, symbol, terminus, uint};
use crate::world::{DEVICE_AUTO, PeerId, World};

/// A put-token in a client's own words.
fn put(device: &str, id: Value, kind: &str, name: &str) -> Message {
    request(id, "put-token", kind, name, Body::Value(string(&token(device))))
}

fn send(world: &mut World, peer: PeerId, at: (u16, u32), message: &Message) {
    world.peer(peer).send(at.0, at.1, &encoded(message), false);
}

/// What one link has heard: correlation-ids and status codes.
fn heard(world: &mut World, peer: PeerId, at: (u16, u32)) -> Vec<(Option<Value>, i32)> {
    let answers = answers_on(world.peer(peer), at.0, at.1);
    answers
        .iter()
        .map(|answer| (answer.id.clone(), answer.code()))
        .collect()
}

/// Settles all that a link has received, as most clients do by themselves.
fn accept(world: &mut World, peer: PeerId, at: (u16, u32)) {
    let received = world.peer(peer).link(at.0, at.1).received.clone();
    for delivery in received.iter().filter(|it| it.outcome.is_none()) {
        world.peer(peer).settle(at.0, at.1, delivery.id, ACCEPTED);
    }
    world.run();
}

/// Attaches a link for telemetry and sends one message, which the hub gets.
#[track_caller]
fn telemetry(world: &mut World, peer: PeerId, at: (u16, u32), name: &str, address: &str) {
    world.peer(peer).attach(at.0, at.1, name, true, address);
    world.run();
    let link = world.peer(peer).link(at.0, at.1);
    assert!(link.detached.is_none(), "{:?}", link.detached);
    let before = received_at(world.hub());
    world.peer(peer).send(at.0, at.1, b"21 degrees", false);
    world.run();
    let link = world.peer(peer).link(at.0, at.1);
    assert_eq!(link.settled, [(0, Some(ACCEPTED))]);
    assert_eq!(received_at(world.hub()), before + 1);
}

/// How many messages all links of a hub have received.
fn received_at(hub: &crate::peer::Peer) -> usize {
    let sessions = hub.sessions.values();
    sessions
        .flat_map(|session| session.links.values())
        .map(|link| link.received.len())
        .sum()
}

fn single_pair(world: &mut World) {
    let hub = CbsHub::new(world);
    assert_eq!(hub.attached(world), (1, 1), "one pair at the hub");
}

#[test]
fn netduino_closes_its_cbs_session_before_telemetry_and_fifty_are_told_apart() {
    let mut world = cbs_world(cbs_settings());
    let devices: Vec<(PeerId, String)> = (0..50)
        .map(|number| {
            let container = format!("AMQPNetLite-{number:08x}");
            (world.device(&container), format!("netduino{number}"))
        })
        .collect();
    for (peer, _) in &devices {
        let it = world.peer(*peer);
        it.attach_with(
            0,
            0,
            "cbs-sender",
            true,
            described(0x28, vec![]),
            terminus(0x29, "$cbs"),
        );
        it.attach_with(
            0,
            1,
            "cbs-reply-to",
            false,
            terminus(0x28, "$cbs"),
            described(0x29, vec![]),
        );
    }
    world.run();
    let mut hub = CbsHub::new(&world);
    for (peer, name) in &devices {
        world.peer(*peer).grant(0, 1, 200);
        let resource = format!("/devices/{name}/events");
        let message = put(name, string("7b0f"), "azure-devices.net:sastoken", &resource);
        send(&mut world, *peer, (0, 0), &replying_to(message, "cbs-reply-to"));
    }
    world.run();
    let requests = hub.requests(&mut world);
    assert_eq!(requests.len(), 50);
    // In any order: the program takes the first message for its own answer.
    for request in requests.iter().rev() {
        let is_even = request.text("name").ends_with(['0', '2', '4', '6', '8']);
        let status = if is_even { 200 } else { 202 };
        hub.answer(&mut world, request, status, "OK");
    }
    for (number, (peer, name)) in devices.iter().enumerate() {
        let expected = if number % 2 == 0 { 200 } else { 202 };
        assert_eq!(
            heard(&mut world, *peer, (0, 1)),
            [(Some(string("7b0f")), expected)]
        );
        accept(&mut world, *peer, (0, 1));
        for handle in [0, 1] {
            world.peer(*peer).detach(0, handle, true, Value::Null);
        }
        world.peer(*peer).end(0, Value::Null);
        world.run();
        world.peer(*peer).begin(1);
        world.run();
        // The sender goes after each message.
        for handle in [0, 1] {
            let address = format!("/devices/{name}/messages/events");
            telemetry(&mut world, *peer, (1, handle), "send-link", &address);
            world.peer(*peer).detach(1, handle, true, Value::Null);
            world.run();
        }
        let address = format!("/devices/{name}/messages/deviceBound");
        world.peer(*peer).attach(1, 2, "receive-link", false, &address);
        world.run();
        assert!(world.peer(*peer).link(1, 2).detached.is_none());
    }
    single_pair(&mut world);
    assert_eq!(world.router.snapshot().cbs_requests, 0);
}

#[test]
fn uamqp_sends_its_token_before_its_receiver_is_answered_and_all_use_the_same_ids() {
    let mut world = cbs_world(cbs_settings());
    let peers: Vec<PeerId> = ["c1", "c2"].map(|name| world.device(name)).into();
    for &peer in &peers {
        let it = world.peer(peer);
        it.attach_with(
            0,
            0,
            "$cbs-sender",
            true,
            terminus(0x28, "$cbs"),
            terminus(0x29, "$cbs"),
        );
    }
    world.run();
    for (&peer, name) in peers.iter().zip(["c1", "c2"]) {
        // There is credit: nothing else is waited for.
        let it = world.peer(peer);
        assert_eq!(it.link(0, 0).credit, 100);
        it.attach_with(
            0,
            1,
            "$cbs-receiver",
            false,
            terminus(0x28, "$cbs"),
            terminus(0x29, "$cbs"),
        );
        send(
            &mut world,
            peer,
            (0, 0),
            &put(name, Value::Ulong(0), SAS, &audience(name)),
        );
    }
    world.run();
    let mut hub = CbsHub::new(&world);
    let requests = hub.requests(&mut world);
    assert!(requests.iter().all(|it| it.message.properties.reply_to.is_some()));
    for request in requests.iter().rev() {
        hub.answer(&mut world, request, 200, "OK");
    }
    for &peer in &peers {
        // uAMQP gives credit only when the link is attached.
        assert!(heard(&mut world, peer, (0, 1)).is_empty());
        world.peer(peer).grant(0, 1, 10_000);
    }
    world.run();
    for (&peer, name) in peers.iter().zip(["c1", "c2"]) {
        assert_eq!(heard(&mut world, peer, (0, 1)), [(Some(Value::Ulong(0)), 200)]);
        accept(&mut world, peer, (0, 1));
        let address = format!("amqps://hub.example/devices/{name}/messages/events");
        telemetry(&mut world, peer, (0, 2), "link-snd", &address);
        // It renews with the next number, on the same links.
        send(
            &mut world,
            peer,
            (0, 0),
            &put(name, Value::Ulong(1), SAS, &audience(name)),
        );
        world.run();
        hub.accept_all(&mut world);
        let last = heard(&mut world, peer, (0, 1)).pop();
        assert_eq!(last, Some((Some(Value::Ulong(1)), 200)));
    }
    single_pair(&mut world);
}

#[test]
fn node_names_a_reply_to_that_is_nowhere_and_gets_its_answer() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("d1");
    let sender = "rheaSender_0e9b2d9c-5a58-4bb7-b4a4-000000000001";
    let receiver = "rheaReceiver_0e9b2d9c-5a58-4bb7-b4a4-000000000002";
    let it = world.peer(peer);
    it.attach_with(
        0,
        0,
        sender,
        true,
        described(0x28, vec![]),
        terminus(0x29, "$cbs"),
    );
    it.attach_with(
        0,
        1,
        receiver,
        false,
        terminus(0x28, "$cbs"),
        described(0x29, vec![]),
    );
    world.run();
    world.peer(peer).grant(0, 1, 500);
    let id = string("9aa10afc-1a24-4e5b-9f2d-7c4b3ad6c001");
    let mut message = replying_to(put("d1", id.clone(), SAS, &audience("d1")), "cbs");
    message.properties.to = Some("$cbs".into());
    send(&mut world, peer, (0, 0), &message);
    world.run();
    let mut hub = CbsHub::new(&world);
    let asked = hub.request(&mut world);
    assert_eq!(asked.message.properties.to.as_deref(), Some("$cbs"));
    hub.answer(&mut world, &asked, 200, "OK");
    assert_eq!(heard(&mut world, peer, (0, 1)), [(Some(id), 200)]);
    accept(&mut world, peer, (0, 1));
    telemetry(
        &mut world,
        peer,
        (0, 2),
        "rheaSender_3",
        "/devices/d1/messages/events",
    );
    single_pair(&mut world);
}

#[test]
fn azure_amqp_has_a_session_for_cbs_and_one_for_each_identity_of_its_pool() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("4f0c0b9e");
    let properties = || Value::Map(vec![(symbol("com.microsoft:timeout"), uint(60_000))]);
    let mut attach = |handle: u32, name: &str, is_receiver: bool, source: Value, target: Value| {
        let mut fields = vec![string(name), uint(handle), Value::Boolean(is_receiver)];
        fields.extend([
            Value::Ubyte(2),
            Value::Ubyte(0),
            source,
            target,
            Value::Null,
            Value::Null,
        ]);
        fields.push(if is_receiver { Value::Null } else { uint(0) });
        fields.extend([Value::Null, Value::Null, Value::Null, properties()]);
        world.peer(peer).say_attach(&Frame::new(0, wire::ATTACH, fields));
    };
    let reply_to = "b8c5f0d4a1e94d6f8f3b";
    attach(
        0,
        "duplex1:sender",
        false,
        terminus(0x28, reply_to),
        terminus(0x29, "$cbs"),
    );
    attach(
        1,
        "duplex1:receiver",
        true,
        terminus(0x28, "$cbs"),
        terminus(0x29, reply_to),
    );
    world.run();
    world.peer(peer).grant(0, 1, 50);
    let mut hub = CbsHub::new(&world);
    for number in 0..20 {
        let name = format!("d{number}");
        let resource = format!("amqps://hub.example/devices/{name}");
        let id = string(&format!("request{number}"));
        let mut message = replying_to(put(&name, id, SAS, &resource), reply_to);
        let expiry = (string("expiration"), Value::Timestamp(2_000_000_000_000));
        message.application_properties.push(expiry);
        send(&mut world, peer, (0, 0), &message);
    }
    world.run();
    let requests = hub.requests(&mut world);
    assert_eq!(requests.len(), 20, "one behind the other, without waiting");
    for request in &requests {
        let expiry = request.message.application_property("expiration");
        assert_eq!(expiry, Some(&Value::Timestamp(2_000_000_000_000)), "carried");
        hub.answer(&mut world, request, 200, "OK");
    }
    let expected: Vec<_> = (0..20)
        .map(|number| (Some(string(&format!("request{number}"))), 200))
        .collect();
    assert_eq!(heard(&mut world, peer, (0, 1)), expected);
    accept(&mut world, peer, (0, 1));
    for number in 0..20u16 {
        world.peer(peer).begin(number + 1);
        world.run();
        let address = format!("amqps://gateway.lan:5671/devices/d{number}/messages/events");
        telemetry(&mut world, peer, (number + 1, 0), "telemetry", &address);
    }
    single_pair(&mut world);
}

#[test]
fn java_has_uuids_and_one_pair_for_the_sessions_of_many_devices() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("java");
    let it = world.peer(peer);
    let source = || described(0x28, vec![]);
    it.attach_with(0, 0, "cbs-sender-1c", true, source(), terminus(0x29, "$cbs"));
    it.attach_with(
        0,
        1,
        "cbs-receiver-1c",
        false,
        terminus(0x28, "$cbs"),
        described(0x29, vec![]),
    );
    world.run();
    world.peer(peer).grant(0, 1, 100);
    let ids: Vec<Value> = (0..10)
        .map(|number| Value::Uuid([number, 0x80, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]))
        .collect();
    for (number, id) in ids.iter().enumerate() {
        let name = format!("d{number}");
        let message = put(&name, id.clone(), SAS, &audience(&name));
        send(&mut world, peer, (0, 0), &replying_to(message, "cbs"));
    }
    world.run();
    let mut hub = CbsHub::new(&world);
    let requests = hub.requests(&mut world);
    for request in requests.iter().rev() {
        hub.answer(&mut world, request, 200, "OK");
    }
    let mut answers = heard(&mut world, peer, (0, 1));
    answers.reverse();
    let expected: Vec<_> = ids.into_iter().map(|id| (Some(id), 200)).collect();
    assert_eq!(answers, expected, "each to the request that it answers");
    for number in 0..10u16 {
        world.peer(peer).begin(number + 3);
        world.run();
        let address = format!("/devices/d{number}/messages/events");
        telemetry(
            &mut world,
            peer,
            (number + 3, 0),
            "sender-link-telemetry",
            &address,
        );
    }
    single_pair(&mut world);
}

#[test]
fn micro_has_one_session_eight_handles_and_frames_of_1024_bytes() {
    let mut world = cbs_world(cbs_settings());
    let small = Announces {
        max_frame_size: 1024,
        channel_max: 0,
        handle_max: 7,
        window: 100,
        ..Announces::default()
    };
    let by_hand = Auto {
        window: false,
        ..DEVICE_AUTO
    };
    let peer = world.device_with("netmf-lite", by_hand, small);
    let source = || described(0x28, vec![]);
    let it = world.peer(peer);
    it.attach_with(0, 0, "netmf-lite-sender0", true, source(), terminus(0x29, "$cbs"));
    world.run();
    let it = world.peer(peer);
    it.attach_with(
        0,
        1,
        "netmf-lite-receiver1",
        false,
        terminus(0x28, "$cbs"),
        described(0x29, vec![]),
    );
    world.run();
    world.peer(peer).grant(0, 1, 10);
    let mut hub = CbsHub::new(&world);
    let mut handle = 2;
    for round in 0..3 {
        let id = string(&format!("0a52-{round}"));
        send(
            &mut world,
            peer,
            (0, 0),
            &replying_to(put("d1", id.clone(), SAS, &audience("d1")), "client-reply"),
        );
        world.run();
        let asked = hub.request(&mut world);
        // Longer than a frame of this device: its reader puts the pieces together.
        hub.answer(&mut world, &asked, 200, &"O".repeat(1500));
        assert_eq!(heard(&mut world, peer, (0, 1)).pop(), Some((Some(id), 200)));
        accept(&mut world, peer, (0, 1));
        telemetry(
            &mut world,
            peer,
            (0, handle),
            &format!("netmf-lite-sender{handle}"),
            "devices/d1/messages/events",
        );
        world.peer(peer).detach(0, handle, true, Value::Null);
        world.run();
        handle += 1;
    }
    single_pair(&mut world);
}

#[test]
fn proton_settles_a_range_at_once_and_gives_its_credit_again() {
    let mut world = cbs_world(cbs_settings());
    let mut gives = DEVICE_AUTO;
    gives.credit = 10;
    let peer = world.device_with("proton", gives, Announces::default());
    let it = world.peer(peer);
    it.attach_with(
        0,
        0,
        "6e1c-$cbs",
        true,
        described(0x28, vec![]),
        terminus(0x29, "$cbs"),
    );
    it.attach_with(
        0,
        1,
        "6e1c-$cbs",
        false,
        terminus(0x28, "$cbs"),
        terminus(0x29, "reply"),
    );
    world.run();
    world.peer(peer).grant(0, 1, 10);
    let mut hub = CbsHub::new(&world);
    for number in 0..40u64 {
        let message = put("d1", Value::Ulong(number), SAS, &audience("d1"));
        send(&mut world, peer, (0, 0), &replying_to(message, "reply"));
    }
    world.run();
    assert_eq!(hub.accept_all(&mut world), 40);
    assert_eq!(heard(&mut world, peer, (0, 1)).len(), 40);
    world.peer(peer).skip();
    world
        .peer(peer)
        .dispose(0, true, 0, 39, true, described(ACCEPTED, vec![]));
    telemetry(
        &mut world,
        peer,
        (0, 2),
        "6e1c-events",
        "devices/d1/messages/events",
    );
    single_pair(&mut world);
}
