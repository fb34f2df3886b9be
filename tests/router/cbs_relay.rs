//! The CBS relay, seen from both sides: requests and answers, what is carried and what is not.

use linkrouterd::amqp::message::{Body, Message};
use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{CbsMode, Secret};

use crate::cbs_hub::{
    ASKS, CBS_HUB_AUTO, CbsAnswer, CbsDevice, CbsHub, HEARS, SAS, answer_to, answers_on, audience,
    cbs_settings, cbs_world, encoded, put_token, replying_to, request, token,
};
use crate::peer::Announces;
use crate::wire::{self, ACCEPTED, Frame, composite, condition, described, string, symbol, terminus, uint};
use crate::world::{DEVICE_AUTO, PeerId, World};

fn said(answers: &[CbsAnswer]) -> Vec<(Option<Value>, i32)> {
    answers
        .iter()
        .map(|answer| (answer.id.clone(), answer.code()))
        .collect()
}

// ---- what is carried -------------------------------------------------------------------------------------------------

#[test]
fn a_request_is_sent_on_and_its_answer_comes_back_under_the_id_that_it_had() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let request = hub.request(&mut world);
    assert_eq!(request.text("operation"), "put-token");
    assert_eq!(request.text("name"), audience("d1"));
    assert_eq!(request.token(), token("d1"));
    assert_eq!(device.answers(&mut world), [], "not before the hub has spoken");
    let asked = world.peer(device.peer).link(0, ASKS);
    assert_eq!(asked.settled, [(0, Some(ACCEPTED))], "the hub's outcome");
    hub.answer(&mut world, &request, 200, "OK");
    let answers = device.answers(&mut world);
    assert_eq!(said(&answers), [(Some(Value::Ulong(0)), 200)]);
    assert_eq!(
        answers.first().and_then(|answer| answer.description.clone()),
        Some(string("OK"))
    );
    assert_eq!(hub.attached(&mut world), (1, 1));
}

#[test]
fn message_ids_of_every_type_come_back_as_they_were() {
    let ids = [
        Value::Ulong(0),
        Value::Ulong(u64::MAX),
        Value::Uuid(*b"\x00\x01\x02\x03\xfc\xfd\xfe\xff\x10\x20\x30\x40\x50\x60\x70\x80"),
        string("cbs/1"),
        string(""),
        Value::Binary(vec![0, 255, 7]),
    ];
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    for id in &ids {
        device.ask(&mut world, &put_token("d1", id.clone()));
    }
    device.ask(&mut world, &put_token("d1", Value::Null));
    let requests = hub.requests(&mut world);
    let mut seen: Vec<_> = requests
        .iter()
        .map(|request| request.message.properties.message_id.clone())
        .collect();
    seen.dedup();
    assert_eq!(seen.len(), 7, "at the hub each has an id of its own");
    for request in &requests {
        hub.answer(&mut world, request, 200, "OK");
    }
    let expected = ids.into_iter().map(Some).chain([None]);
    let answers = device.answers(&mut world);
    assert_eq!(said(&answers), expected.map(|id| (id, 200)).collect::<Vec<_>>());
}

#[test]
fn two_devices_with_the_same_ids_get_their_own_answers_in_whatever_order_these_come() {
    let mut world = cbs_world(cbs_settings());
    let devices = [CbsDevice::new(&mut world, "d1"), CbsDevice::new(&mut world, "d2")];
    let mut hub = CbsHub::new(&world);
    for (device, name) in devices.iter().zip(["d1", "d2"]) {
        device.ask(&mut world, &put_token(name, Value::Ulong(0)));
    }
    let requests = hub.requests(&mut world);
    for request in requests.iter().rev() {
        let status = if request.text("name") == audience("d1") {
            200
        } else {
            401
        };
        hub.answer(&mut world, request, status, "as it is");
    }
    assert_eq!(
        said(&devices[0].answers(&mut world)),
        [(Some(Value::Ulong(0)), 200)]
    );
    assert_eq!(
        said(&devices[1].answers(&mut world)),
        [(Some(Value::Ulong(0)), 401)]
    );
}

#[test]
fn however_many_devices_there_are_the_hub_sees_one_pair() {
    let mut world = cbs_world(cbs_settings());
    let devices: Vec<CbsDevice> = (0..40)
        .map(|number| CbsDevice::new(&mut world, &format!("d{number}")))
        .collect();
    let mut hub = CbsHub::new(&world);
    for (number, device) in devices.iter().enumerate() {
        device.ask(&mut world, &put_token(&format!("d{number}"), Value::Ulong(0)));
    }
    assert_eq!(hub.accept_all(&mut world), 40);
    for device in devices {
        assert_eq!(said(&device.answers(&mut world)), [(Some(Value::Ulong(0)), 200)]);
    }
    assert_eq!(hub.attached(&mut world), (1, 1));
}

#[test]
fn delete_token_is_carried() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "d1");
    device.ask(
        &mut world,
        &request(string("x"), "delete-token", SAS, &audience("d1"), Body::Empty),
    );
    let asked = hub.request(&mut world);
    assert_eq!(
        (asked.text("operation"), asked.text("name")),
        ("delete-token", audience("d1").as_str())
    );
    hub.answer(&mut world, &asked, 202, "Accepted");
    assert_eq!(
        said(&device.answers(&mut world)).last(),
        Some(&(Some(string("x")), 202))
    );
}

#[test]
fn what_a_hub_says_in_its_answer_is_carried_in_its_own_types() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(5)));
    let asked = hub.request(&mut world);
    let mut answer = answer_to(&asked, 404, "");
    answer.application_properties = vec![
        (symbol("status-code"), Value::Ulong(404)),
        (string("status-description"), symbol("Device d1 not registered.")),
        (string("x-more"), Value::Uuid([7; 16])),
    ];
    answer.message_annotations = vec![(symbol("x-opt-trace"), uint(9))];
    answer.properties.subject = Some("s".into());
    answer.body = Body::Value(string("b"));
    hub.say(&mut world, &answer);
    world.run();
    let received = &world.peer(device.peer).link(0, HEARS).received;
    let heard = Message::decode(&received.first().expect("an answer").payload).expect("a message");
    answer.properties.correlation_id = Some(Value::Ulong(5));
    assert!(heard == answer, "all but the correlation-id is untouched");
}

#[test]
fn the_name_at_the_hub_is_that_of_the_token() {
    // What the Netduino's program says, and one who knows only its gateway.
    for name in ["/devices/d1/events", "amqps://gateway:5671/devices/d1", "d1"] {
        let mut world = cbs_world(cbs_settings());
        let device = CbsDevice::new(&mut world, "d1");
        let mut hub = CbsHub::new(&world);
        let body = Body::Value(string(&token("d1")));
        device.ask(
            &mut world,
            &request(string("1"), "PUT-TOKEN", "azure-devices.net:sastoken", name, body),
        );
        let asked = hub.request(&mut world);
        assert_eq!(asked.text("name"), audience("d1"));
        assert_eq!(asked.text("type"), "azure-devices.net:sastoken");
    }
}

#[test]
fn the_gateway_s_host_in_the_name_of_a_token_that_does_not_tell_becomes_the_hub_s() {
    for (name, expected) in [
        ("amqps://gateway.lan/devices/d1", "amqps://hub.example/devices/d1"),
        ("sb://GATEWAY.lan:5671/q", "sb://hub.example/q"),
        ("gateway.lan/devices/d1", "hub.example/devices/d1"),
        ("gateway.lan", "hub.example"),
        ("https://elsewhere/q", "https://elsewhere/q"),
    ] {
        let mut world = cbs_world(cbs_settings());
        let peer = world
            .connect("d1", DEVICE_AUTO, Announces::default())
            .expect("room");
        world.peer(peer).hostname = Some("gateway.lan".into());
        world.peer(peer).open();
        world.peer(peer).begin(0);
        world.run();
        let device = CbsDevice::on(&mut world, peer, 0);
        let mut hub = CbsHub::new(&world);
        let body = Body::Value(string("eyJ0eXAiOiJKV1QifQ"));
        device.ask(&mut world, &request(string("1"), "put-token", "jwt", name, body));
        assert_eq!(hub.request(&mut world).text("name"), expected);
    }
}

// ---- what is not -----------------------------------------------------------------------------------------------------

#[test]
fn malformed_requests_are_answered_400_and_do_not_reach_the_hub() {
    let good = || Body::Value(string(&token("d1")));
    let table: Vec<(&str, &str, &str, Body)> = vec![
        ("", SAS, "n", good()),
        ("put-token", "", "n", good()),
        ("put-token", SAS, "", good()),
        ("put-token", SAS, "n", Body::Empty),
        ("put-token", SAS, "n", Body::Data(vec![token("d1").into_bytes()])),
        ("put-token", SAS, "n", Body::Value(Value::Binary(vec![1]))),
        ("put-token", SAS, "n", Body::Value(string(""))),
        (
            "put-token",
            SAS,
            "n",
            Body::Value(string("SharedAccessSignature sr=x")),
        ),
        ("put-token", SAS, "n", Body::Value(string("nonsense"))),
        ("put-token", "jwt", "n", Body::Value(Value::Null)),
        ("get-token", SAS, "n", good()),
    ];
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    for (number, (operation, kind, name, body)) in table.into_iter().enumerate() {
        let id = Value::Ulong(number as u64);
        let mut message = request(id.clone(), operation, kind, name, body);
        message
            .application_properties
            .retain(|(_, value)| value.as_text() != Some(""));
        device.ask(&mut world, &message);
        let answers = device.answers(&mut world);
        assert_eq!(answers.len(), number + 1);
        let answer = answers.last().expect("one");
        assert_eq!((answer.id.clone(), answer.code()), (Some(id), 400));
        let text = answer.description.as_ref().and_then(Value::as_text);
        assert!(text.is_some_and(|text| text.len() > 10), "it says why: {text:?}");
    }
    let mut bare = put_token("d1", string("bare"));
    bare.application_properties.clear();
    device.ask(&mut world, &bare);
    assert_eq!(
        said(&device.answers(&mut world)).pop(),
        Some((Some(string("bare")), 400))
    );
    assert!(hub.requests(&mut world).is_empty());
    assert_eq!(hub.attached(&mut world), (0, 0), "there was nothing to ask");
    let asked = world.peer(device.peer).link(0, ASKS);
    assert!(asked.unsettled.is_empty(), "each was taken");
    device.puts(&mut world, &mut hub, "d1");
}

#[test]
fn malformed_requests_never_use_up_the_credit() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    world.peer(device.peer).grant(0, HEARS, 1000);
    for number in 0..350 {
        let wrong = request(Value::Ulong(number), "get-token", SAS, "n", Body::Empty);
        device.ask(&mut world, &wrong);
    }
    assert_eq!(device.answers(&mut world).len(), 350);
}

#[test]
fn what_is_no_message_ends_the_link_and_nothing_else() {
    for payload in [
        &b"\xff\xff"[..],
        b"",
        b"\x00\x53\x77\xa1\x05ab",
        b"\x00\x53\x73\x40\x00\x53\x70\x45",
    ] {
        let mut world = cbs_world(cbs_settings());
        let device = CbsDevice::new(&mut world, "d1");
        let other = CbsDevice::new(&mut world, "d2");
        let mut hub = CbsHub::new(&world);
        world.peer(device.peer).send(0, ASKS, payload, false);
        world.run();
        let detached = world.peer(device.peer).link(0, ASKS).detached.clone();
        let is_request_without_anything = payload.is_empty();
        if is_request_without_anything {
            assert_eq!(detached, None, "an empty message is one");
            assert_eq!(said(&device.answers(&mut world)), [(None, 400)]);
        } else {
            assert_eq!(
                detached.as_ref().and_then(condition),
                Some("amqp:decode-error"),
                "{payload:02x?}"
            );
        }
        assert!(hub.requests(&mut world).is_empty());
        other.puts(&mut world, &mut hub, "d2");
        assert!(world.is_alive(device.peer));
    }
}

#[test]
fn a_request_that_is_too_large_ends_the_link() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    let long = |bytes: usize| {
        let body = Body::Value(string(&"j".repeat(bytes)));
        request(string("1"), "put-token", "jwt", "hub.example", body)
    };
    device.ask(&mut world, &long(15_000));
    assert_eq!(hub.request(&mut world).token().len(), 15_000);
    device.ask(&mut world, &long(16_500));
    let detached = world.peer(device.peer).link(0, ASKS).detached.clone();
    assert_eq!(
        detached.as_ref().and_then(condition),
        Some("amqp:link:message-size-exceeded")
    );
    assert!(hub.requests(&mut world).is_empty());
}

// ---- frames and credit -----------------------------------------------------------------------------------------------

#[test]
fn requests_come_in_pieces_and_those_that_are_aborted_count_for_nothing() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    let payload = encoded(&put_token("d1", Value::Ulong(1)));
    for id in 0..250 {
        let peer = world.peer(device.peer);
        peer.say_transfer(
            0,
            ASKS,
            Some((id, id)),
            false,
            true,
            payload.get(..50).expect("long"),
        );
        let mut abort = vec![uint(ASKS), Value::Null, Value::Null, Value::Null, Value::Null];
        abort.extend([Value::Boolean(false), Value::Null, Value::Null, Value::Null]);
        abort.push(Value::Boolean(true));
        peer.transfer_frame(0, abort, &[]);
        world.run();
        assert_eq!(world.peer(device.peer).link(0, ASKS).detached, None, "{id}");
    }
    for (piece, chunk) in payload.chunks(40).enumerate() {
        let is_last = (piece + 1) * 40 >= payload.len();
        let first = (piece == 0).then_some((250, 250));
        world
            .peer(device.peer)
            .say_transfer(0, ASKS, first, false, !is_last, chunk);
        world.run();
    }
    assert_eq!(hub.request(&mut world).token(), token("d1"));
}

#[test]
fn a_hundred_requests_under_way_are_all_the_credit_and_answers_bring_more() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    world.peer(device.peer).grant(0, HEARS, 1000);
    for number in 0..300 {
        device.ask(&mut world, &put_token("d1", Value::Ulong(number)));
    }
    let first = hub.requests(&mut world);
    assert_eq!(first.len(), 100);
    assert_eq!(world.peer(device.peer).link(0, ASKS).credit, 0);
    let mut answered = 0;
    let mut under_way: std::collections::VecDeque<_> = first.into();
    while let Some(request) = under_way.pop_front() {
        hub.answer(&mut world, &request, 200, "OK");
        answered += 1;
        under_way.extend(hub.requests(&mut world));
        assert!(under_way.len() <= 100, "never more than the credit");
    }
    assert_eq!(answered, 300);
    let answers = device.answers(&mut world);
    let ids: Vec<_> = answers.into_iter().map(|answer| answer.id).collect();
    assert_eq!(ids, (0..300).map(|id| Some(Value::Ulong(id))).collect::<Vec<_>>());
    assert_eq!(world.router.snapshot().cbs_requests, 0);
}

#[test]
fn a_message_without_credit_ends_the_link_and_nothing_else() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let other = CbsDevice::new(&mut world, "d2");
    let mut hub = CbsHub::new(&world);
    let payload = encoded(&put_token("d1", Value::Null));
    for id in 0..101 {
        world
            .peer(device.peer)
            .say_transfer(0, ASKS, Some((id, id)), false, false, &payload);
    }
    world.run();
    let detached = world.peer(device.peer).link(0, ASKS).detached.clone();
    assert_eq!(
        detached.as_ref().and_then(condition),
        Some("amqp:link:transfer-limit-exceeded")
    );
    hub.accept_all(&mut world);
    other.puts(&mut world, &mut hub, "d2");
}

#[test]
fn a_device_that_does_not_take_its_answers_may_not_ask_for_more() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("d1");
    world.peer(peer).attach(0, ASKS, "cbs-sender", true, "$cbs");
    world.peer(peer).attach(0, HEARS, "cbs-receiver", false, "$cbs");
    world.run();
    let device = CbsDevice { peer, channel: 0 };
    for number in 0..1000 {
        let wrong = request(Value::Ulong(number), "get-token", SAS, "n", Body::Empty);
        device.ask(&mut world, &wrong);
    }
    assert!(world.router.snapshot().cbs_answers <= 100);
    assert!(world.is_alive(peer));
    world.peer(peer).grant(0, HEARS, 2000);
    world.run();
    assert_eq!(device.answers(&mut world).len(), 1000, "none was lost");
}

#[test]
fn credit_of_one_at_the_hub_is_enough() {
    let mut world = cbs_world(cbs_settings());
    let one = crate::peer::Auto {
        credit: 1,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((one, Announces::default()));
    let devices: Vec<CbsDevice> = (0..8)
        .map(|number| CbsDevice::new(&mut world, &format!("d{number}")))
        .collect();
    let mut hub = CbsHub::new(&world);
    for (number, device) in devices.iter().enumerate() {
        device.ask(&mut world, &put_token(&format!("d{number}"), Value::Ulong(0)));
    }
    assert_eq!(hub.accept_all(&mut world), 8);
    for device in devices {
        assert_eq!(device.answers(&mut world).len(), 1);
    }
}

#[test]
fn the_hub_s_credit_is_never_exceeded() {
    let mut world = cbs_world(cbs_settings());
    let none = crate::peer::Auto {
        credit: 0,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((none, Announces::default()));
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    for number in 0..5 {
        device.ask(&mut world, &put_token("d1", Value::Ulong(number)));
    }
    assert!(hub.requests(&mut world).is_empty());
    let (channel, handle) = hub.hears_on(&mut world).expect("a link");
    for credit in [2, 1, 5] {
        world.peer(hub.peer).grant(channel, handle, credit);
        world.run();
    }
    assert_eq!(hub.accept_all(&mut world), 5);
    assert_eq!(device.answers(&mut world).len(), 5);
}

#[test]
fn more_answers_than_a_window_go_through_one_pair() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    for round in 0..700 {
        world.peer(device.peer).grant(0, HEARS, 10);
        device.ask(&mut world, &put_token("d1", Value::Ulong(round)));
        assert_eq!(hub.accept_all(&mut world), 1, "{round}");
    }
    assert_eq!(device.answers(&mut world).len(), 700);
}

#[test]
fn frames_of_512_bytes_and_windows_of_two_carry_everything() {
    let mut settings = cbs_settings();
    for listener in &mut settings.listeners {
        listener.limits.max_frame_size = 512;
        listener.limits.incoming_window = Some(2);
    }
    let mut world = cbs_world(settings);
    let tiny = Announces {
        max_frame_size: 512,
        window: 2,
        ..Announces::default()
    };
    world.hub = Some((CBS_HUB_AUTO, tiny));
    let peer = world.device_with("d1", DEVICE_AUTO, tiny);
    let device = CbsDevice::on(&mut world, peer, 0);
    let mut hub = CbsHub::new(&world);
    for round in 0..20 {
        let body = Body::Value(string(&"j".repeat(3000)));
        let long = request(Value::Ulong(round), "put-token", "jwt", "hub.example", body);
        device.ask(&mut world, &long);
        let asked = hub.request(&mut world);
        assert_eq!(asked.token().len(), 3000);
        hub.answer(&mut world, &asked, 200, &"d".repeat(2000));
    }
    assert_eq!(device.answers(&mut world).len(), 20);
}

#[test]
fn a_receiver_may_drain_its_link_and_ask_where_it_stands() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    world.peer(device.peer).flow(0, Some(HEARS), true, false);
    world.run();
    assert_eq!(world.peer(device.peer).link(0, HEARS).credit, 0, "drained");
    device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    hub.accept_all(&mut world);
    assert_eq!(device.answers(&mut world), [], "no credit is left");
    world.peer(device.peer).grant(0, HEARS, 1);
    world.run();
    assert_eq!(device.answers(&mut world).len(), 1);

    let peer = world.peer(device.peer);
    peer.skip();
    peer.flow(0, Some(HEARS), false, true);
    world.run();
    let flow = world.peer(device.peer).expect(wire::FLOW);
    assert_eq!((flow.uint(5), flow.uint(6)), (Some(101), Some(0)));
    world.peer(device.peer).flow(0, Some(ASKS), false, true);
    world.run();
    let flow = world.peer(device.peer).expect(wire::FLOW);
    assert_eq!((flow.uint(5), flow.uint(6)), (Some(1), Some(99)));
    world.peer(device.peer).expect_nothing();
}

#[test]
fn a_hub_that_asks_where_we_stand_is_told() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "d1");
    let (channel, handle) = hub.answers_on(&mut world).expect("a link");
    world.peer(hub.peer).skip();
    world.peer(hub.peer).flow(channel, Some(handle), false, true);
    world.run();
    let flow = world.peer(hub.peer).expect(wire::FLOW);
    assert_eq!((flow.uint(5), flow.uint(6)), (Some(1), Some(199)));
    let (channel, handle) = hub.hears_on(&mut world).expect("a link");
    world.peer(hub.peer).flow(channel, Some(handle), true, false);
    world.run();
    assert_eq!(world.peer(hub.peer).link(channel, handle).credit, 0, "drained");
}

#[test]
fn a_receiver_that_settles_in_two_steps_hears_the_second() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("d1");
    world.peer(peer).attach(0, ASKS, "cbs-sender", true, "$cbs");
    let fields = vec![
        string("cbs-receiver"),
        uint(HEARS),
        Value::Boolean(true),
        Value::Ubyte(0),
        Value::Ubyte(1),
        terminus(0x28, "$cbs"),
        terminus(0x29, "here"),
    ];
    world.peer(peer).say_attach(&Frame::new(0, wire::ATTACH, fields));
    world.run();
    world.peer(peer).grant(0, HEARS, 10);
    world.run();
    let device = CbsDevice { peer, channel: 0 };
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "d1");
    let delivery = world
        .peer(peer)
        .link(0, HEARS)
        .received
        .first()
        .expect("one")
        .clone();
    assert!(!delivery.settled);
    let accepted = || described(ACCEPTED, Vec::new());
    world
        .peer(peer)
        .dispose(0, true, delivery.id, delivery.id, false, accepted());
    world.run();
    let link = world.peer(peer).link(0, HEARS);
    assert!(link.received.first().expect("one").settled, "by the sender");
    world.peer(peer).skip();
    world
        .peer(peer)
        .dispose(0, true, delivery.id, delivery.id, false, accepted());
    world.run();
    world.peer(peer).expect_nothing();
}

// ---- which receiver --------------------------------------------------------------------------------------------------

/// A receiver with a name, a target address or none, on a session of a device, with credit.
fn receiver(world: &mut World, peer: PeerId, at: (u16, u32), name: &str, target: Option<&str>) {
    let target = target.map_or(described(0x29, Vec::new()), |address| terminus(0x29, address));
    world
        .peer(peer)
        .attach_with(at.0, at.1, name, false, terminus(0x28, "$cbs"), target);
    world.run();
    world.peer(peer).grant(at.0, at.1, 10);
    world.run();
}

#[test]
fn an_answer_goes_to_the_receiver_that_the_request_names_or_to_the_likeliest() {
    let places = [(0, 1), (0, 2), (0, 3), (4, 1)];
    // What reply-to says, and the place of the receiver that is meant.
    let table = [
        (Some("target-of-a"), (0, 1)),
        (Some("name-of-b"), (0, 2)),
        (Some("name-of-d"), (4, 1)),
        (Some("target-of-d"), (4, 1)),
        (Some("cbs"), (0, 3)),
        (Some(""), (0, 3)),
        (None, (0, 3)),
    ];
    for (reply_to, expected) in table {
        let mut world = cbs_world(cbs_settings());
        let peer = world.device("d1");
        world.peer(peer).begin(4);
        world.peer(peer).attach(0, ASKS, "ask", true, "$cbs");
        receiver(&mut world, peer, places[0], "name-of-a", Some("target-of-a"));
        receiver(&mut world, peer, places[1], "name-of-b", None);
        receiver(&mut world, peer, places[2], "name-of-c", Some("target-of-c"));
        receiver(&mut world, peer, places[3], "name-of-d", Some("target-of-d"));
        let mut message = put_token("d1", Value::Ulong(1));
        if let Some(reply_to) = reply_to {
            message = replying_to(message, reply_to);
        }
        CbsDevice { peer, channel: 0 }.ask(&mut world, &message);
        CbsHub::new(&world).accept_all(&mut world);
        for place in places {
            let count = answers_on(world.peer(peer), place.0, place.1).len();
            assert_eq!(count, usize::from(place == expected), "{reply_to:?} at {place:?}");
        }
    }
}

#[test]
fn an_answer_waits_for_a_receiver_that_is_not_there_yet() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("d1");
    world.peer(peer).attach(0, ASKS, "ask", true, "$cbs");
    world.run();
    let device = CbsDevice { peer, channel: 0 };
    device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    let mut hub = CbsHub::new(&world);
    hub.accept_all(&mut world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(2)));
    receiver(&mut world, peer, (0, 1), "hear", Some("here"));
    hub.accept_all(&mut world);
    let answers = device.answers(&mut world);
    assert_eq!(
        said(&answers),
        [(Some(Value::Ulong(1)), 200), (Some(Value::Ulong(2)), 200)]
    );
}

#[test]
fn answers_that_a_receiver_did_not_take_are_for_the_next_but_not_too_many() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    world.peer(device.peer).grant(0, HEARS, 0);
    for number in 0..30 {
        device.ask(&mut world, &put_token("d1", Value::Ulong(number)));
    }
    hub.accept_all(&mut world);
    world.peer(device.peer).detach(0, HEARS, true, Value::Null);
    world.run();
    receiver(&mut world, device.peer, (0, 7), "next", None);
    world.peer(device.peer).grant(0, 7, 100);
    world.run();
    let answers = answers_on(world.peer(device.peer), 0, 7);
    let expected: Vec<_> = (14..30).map(|id| (Some(Value::Ulong(id)), 200)).collect();
    assert_eq!(said(&answers), expected, "the last sixteen");
}

#[test]
fn an_answer_to_a_link_that_has_gone_is_not_taken_for_that_of_the_next() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("d1");
    world.peer(peer).attach(0, ASKS, "ask", true, "$cbs");
    world.run();
    let device = CbsDevice { peer, channel: 0 };
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let mut hub = CbsHub::new(&world);
    let old = hub.request(&mut world);
    world.peer(peer).detach(0, ASKS, true, Value::Null);
    world.run();
    hub.answer(&mut world, &old, 401, "of the link that has gone");
    world.peer(peer).session(0).links.clear();
    let device = CbsDevice::on(&mut world, device.peer, 0);
    assert_eq!(device.answers(&mut world), []);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    hub.accept_all(&mut world);
    assert_eq!(said(&device.answers(&mut world)), [(Some(Value::Ulong(0)), 200)]);
}

#[test]
fn a_request_whose_sender_is_detached_before_the_answer_is_answered_all_the_same() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    world.peer(device.peer).detach(0, ASKS, true, Value::Null);
    world.run();
    hub.accept_all(&mut world);
    assert_eq!(said(&device.answers(&mut world)), [(Some(Value::Ulong(0)), 200)]);
}

// ---- what a hub may get wrong ----------------------------------------------------------------------------------------

#[test]
fn a_hub_that_takes_a_request_with_another_outcome_is_heard_by_whoever_asked() {
    let mut world = cbs_world(cbs_settings());
    let sulky = crate::peer::Auto {
        accept: false,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((sulky, Announces::default()));
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    for number in 0..250 {
        device.ask(&mut world, &put_token("d1", Value::Ulong(number)));
        let request = hub.request(&mut world);
        let (channel, _) = hub.hears_on(&mut world).expect("a link");
        let error = wire::error("amqp:not-allowed", "no", Value::Null);
        let state = described(wire::REJECTED, vec![error]);
        let id = request.delivery;
        world.peer(hub.peer).dispose(channel, true, id, id, true, state);
        world.run();
    }
    let asked = world.peer(device.peer).link(0, ASKS);
    assert_eq!(asked.settled.len(), 250);
    assert!(
        asked
            .settled
            .iter()
            .all(|&(_, state)| state == Some(wire::REJECTED))
    );
    assert_eq!(device.answers(&mut world), []);
    assert_eq!(world.router.snapshot().cbs_requests, 0);
}

#[test]
fn a_hub_that_settles_in_two_steps_or_not_at_all_is_understood() {
    let mut world = cbs_world(cbs_settings());
    let sulky = crate::peer::Auto {
        accept: false,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((sulky, Announces::default()));
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let first = hub.request(&mut world);
    let (channel, handle) = hub.hears_on(&mut world).expect("a link");
    let received = described(0x23, vec![uint(0), Value::Ulong(0)]);
    let say = |world: &mut World, id: u32, state: Value| {
        world.peer(hub.peer).dispose(channel, true, id, id, false, state);
        world.run();
    };
    say(&mut world, first.delivery, received);
    assert!(world.peer(device.peer).link(0, ASKS).settled.is_empty());
    say(&mut world, first.delivery, described(ACCEPTED, Vec::new()));
    assert_eq!(
        world.peer(device.peer).link(0, ASKS).settled,
        [(0, Some(ACCEPTED))]
    );
    let link = world.peer(hub.peer).link(channel, handle);
    assert!(
        link.received.first().expect("one").settled,
        "the router settles as well"
    );
    // The next it never settles, and answers: the answer says enough.
    device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    let second = hub.request(&mut world);
    hub.answer(&mut world, &first, 200, "OK");
    hub.answer(&mut world, &second, 200, "OK");
    let asked = world.peer(device.peer).link(0, ASKS);
    assert_eq!(asked.settled, [(0, Some(ACCEPTED)), (1, Some(ACCEPTED))]);
    assert_eq!(device.answers(&mut world).len(), 2);
}

#[test]
fn answers_that_nobody_has_asked_for_are_dropped() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let asked = hub.request(&mut world);
    let mut stray = asked.clone();
    for id in [
        None,
        Some(string("99")),
        Some(string("x")),
        Some(Value::Ulong(1)),
        Some(string("-1")),
    ] {
        stray.message.properties.message_id = id;
        hub.answer(&mut world, &stray, 200, "OK");
    }
    hub.say(&mut world, &Message::default());
    hub.say(&mut world, &asked.message);
    let (channel, handle) = hub.answers_on(&mut world).expect("a link");
    world.peer(hub.peer).send(channel, handle, b"\xff", false);
    world.peer(hub.peer).send(channel, handle, b"", true);
    world.run();
    assert_eq!(device.answers(&mut world), []);
    hub.answer(&mut world, &asked, 200, "OK");
    hub.answer(&mut world, &asked, 401, "again");
    assert_eq!(said(&device.answers(&mut world)), [(Some(Value::Ulong(0)), 200)]);
    // And all of that has used up no credit for good.
    for _ in 0..300 {
        hub.answer(&mut world, &stray, 200, "OK");
    }
    device.puts(&mut world, &mut hub, "d1");
}

// ---- connectors that do not relay ------------------------------------------------------------------------------------

#[test]
fn tunnel_mode_and_a_connector_with_an_identity_of_its_own_carry_the_links() {
    let mut tunnel = cbs_settings();
    tunnel.connectors[0].sharing.cbs = CbsMode::Tunnel;
    let mut plain = cbs_settings();
    plain.connectors[0].sasl_username = Some("d1@sas.hub".into());
    plain.connectors[0].sasl_password = Some(Secret::new("token".into()));
    let mut certified = cbs_settings();
    certified.connectors[0].has_client_certificate = true;
    for settings in [tunnel, plain, certified] {
        let mut world = cbs_world(settings);
        let peer = world.device("d1");
        world.peer(peer).attach(0, ASKS, "ask", true, "$cbs");
        receiver(&mut world, peer, (0, 1), "hear", Some("here"));
        let hub = world.hub();
        assert!(hub.find("ask@d1", false).is_some());
        let (channel, handle) = hub.find("hear@d1", true).expect("carried");
        let device = CbsDevice { peer, channel: 0 };
        device.ask(&mut world, &put_token("d1", Value::Ulong(3)));
        let (at, link) = world.hub().find("ask@d1", false).expect("carried");
        let received = world.hub().link(at, link).received.first().expect("one").clone();
        let asked = Message::decode(&received.payload).expect("a message");
        assert_eq!(asked.properties.message_id, Some(Value::Ulong(3)), "untouched");
        world.hub().send(channel, handle, b"whatever", false);
        world.run();
        let heard = &world.peer(peer).link(0, HEARS).received;
        assert_eq!(heard.first().expect("one").payload, b"whatever");
    }
}

#[test]
fn the_answer_to_an_attach_repeats_what_was_asked_for() {
    let mut world = cbs_world(cbs_settings());
    let peer = world.device("d1");
    let source = described(0x28, vec![string("mine"), uint(2)]);
    let properties = Value::Map(vec![(symbol("com.microsoft:timeout"), uint(60_000))]);
    let mut fields = vec![
        string("ask"),
        uint(0),
        Value::Boolean(false),
        Value::Ubyte(0),
        Value::Ubyte(0),
    ];
    fields.extend([
        source.clone(),
        terminus(0x29, "$cbs"),
        Value::Null,
        Value::Null,
        uint(0),
    ]);
    fields.extend([Value::Null, Value::Null, Value::Null, properties.clone()]);
    world.peer(peer).say_attach(&Frame::new(0, wire::ATTACH, fields));
    world.run();
    world.peer(peer).expect(wire::OPEN);
    world.peer(peer).expect(wire::BEGIN);
    let answer = world.peer(peer).expect(wire::ATTACH);
    assert_eq!(answer.field(5), &source);
    assert_eq!(
        composite(answer.field(6)).and_then(|(_, fields)| fields.first()),
        Some(&string("$cbs"))
    );
    assert_eq!(answer.field(13), &properties);
    let flow = world.peer(peer).expect(wire::FLOW);
    assert_eq!(flow.uint(6), Some(100), "the credit that IoT Hub gives");
}
