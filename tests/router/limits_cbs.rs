//! Each bound on requests to `$cbs` and on their answers, reached exactly and passed. `docs/reliability.md` lists them.

use linkrouterd::amqp::message::Body;
use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::limits;

use crate::cbs_hub::{
    ASKS, CbsDevice, CbsHub, HEARS, SAS, answer_to, cbs_settings, cbs_world, encoded, put_token, request,
};
use crate::wire::{self, Frame, condition, string, uint};
use crate::world::World;

/// A request of exactly so many bytes.
fn request_of(bytes: usize) -> Vec<u8> {
    let message = |padding: usize| {
        let body = Body::Value(string(&"j".repeat(padding)));
        encoded(&request(string("1"), "put-token", "jwt", "hub.example", body))
    };
    let message = message(1000 + bytes - message(1000).len());
    assert_eq!(message.len(), bytes);
    message
}

fn detached(world: &mut World, device: CbsDevice, handle: u32) -> Option<String> {
    let link = world.peer(device.peer).link(device.channel, handle);
    link.detached.as_ref().and_then(condition).map(str::to_owned)
}

#[test]
fn a_request_to_cbs_may_be_so_large_and_not_a_byte_larger() {
    for (bytes, is_taken) in [
        (limits::CBS_REQUEST_BYTES, true),
        (limits::CBS_REQUEST_BYTES + 1, false),
    ] {
        let mut world = cbs_world(cbs_settings());
        let device = CbsDevice::new(&mut world, "d1");
        let mut hub = CbsHub::new(&world);
        world.peer(device.peer).send(0, ASKS, &request_of(bytes), false);
        world.run();
        assert_eq!(hub.requests(&mut world).len(), usize::from(is_taken));
        let why = detached(&mut world, device, ASKS);
        assert_eq!(
            why.as_deref(),
            (!is_taken).then_some("amqp:link:message-size-exceeded")
        );
    }
}

#[test]
fn a_device_has_so_many_cbs_links_and_no_more() {
    let mut world = cbs_world(cbs_settings());
    let device = world.device("d1");
    for handle in 0..=limits::CBS_LINKS as u32 {
        world
            .peer(device)
            .attach(0, handle, &format!("l{handle}"), true, "$cbs");
    }
    world.run();
    for handle in 0..=limits::CBS_LINKS as u32 {
        let link = world.peer(device).link(0, handle);
        let refused = link.detached.as_ref().and_then(condition);
        let is_one_too_many = handle as usize == limits::CBS_LINKS;
        assert_eq!(
            refused,
            is_one_too_many.then_some("amqp:resource-limit-exceeded"),
            "{handle}"
        );
    }
}

/// One device may not hold what others need, by requests that it never ends.
#[test]
fn requests_that_have_begun_are_held_up_to_a_bound_over_all_links_of_a_device() {
    const PIECE: usize = 8 * 1024;
    let pieces = limits::CBS_BEGUN_BYTES / PIECE;
    let mut world = cbs_world(cbs_settings());
    let device = world.device("d1");
    for handle in 0..=pieces as u32 {
        world
            .peer(device)
            .attach(0, handle, &format!("l{handle}"), true, "$cbs");
    }
    world.run();
    let begin = |world: &mut World, handle: u32, bytes: usize| {
        let first = Some((handle, handle));
        world
            .peer(device)
            .say_transfer(0, handle, first, false, true, &vec![0; bytes]);
        world.run();
    };
    for handle in 0..pieces as u32 {
        begin(&mut world, handle, PIECE);
    }
    let lost = |world: &mut World, handle: u32| {
        let link = world.peer(device).link(0, handle);
        link.detached.as_ref().and_then(condition).map(str::to_owned)
    };
    assert!((0..=pieces as u32).all(|handle| lost(&mut world, handle).is_none()));
    begin(&mut world, pieces as u32, 1);
    assert_eq!(
        lost(&mut world, pieces as u32).as_deref(),
        Some("amqp:resource-limit-exceeded")
    );
    assert!((0..pieces as u32).all(|handle| lost(&mut world, handle).is_none()));
    assert!(world.is_alive(device));
}

/// Each of these devices asks so often, nearly as much as it may at once; how many were answered with status 503 so far.
fn under_way(world: &mut World, devices: &[CbsDevice], each: usize) -> Vec<usize> {
    // Towards the hub it has a reply-to besides.
    let payload = request_of(limits::CBS_REQUEST_BYTES - 64);
    let mut refused = Vec::new();
    for device in devices {
        for _ in 0..each {
            world.peer(device.peer).send(0, ASKS, &payload, false);
        }
        world.run();
        let answers = device.answers(world);
        refused.push(answers.iter().filter(|answer| answer.code() == 503).count());
    }
    refused
}

#[test]
fn one_device_has_no_more_than_its_share_of_the_bytes_for_requests() {
    let mut world = cbs_world(cbs_settings());
    let devices = [
        CbsDevice::new(&mut world, "greedy"),
        CbsDevice::new(&mut world, "d2"),
    ];
    let mut hub = CbsHub::new(&world);
    let share = limits::CBS_DEVICE_BYTES / limits::CBS_REQUEST_BYTES;
    assert_eq!(under_way(&mut world, &devices[..1], share + 1), [1]);
    devices[1].ask(&mut world, &put_token("d2", string("1")));
    assert_eq!(hub.accept_all(&mut world), share + 1, "another one is served");
    // What was answered makes room for as much: none is refused but the one of before.
    assert_eq!(under_way(&mut world, &devices[..1], share), [1]);
    assert_eq!(under_way(&mut world, &devices[..1], 1), [2]);
}

#[test]
fn all_devices_together_have_no_more_than_the_bytes_for_requests() {
    let mut settings = cbs_settings();
    settings.connectors[0].sharing.devices_per_second = 0;
    let mut world = cbs_world(settings);
    world.keeps_logs = false;
    let share = limits::CBS_DEVICE_BYTES / limits::CBS_REQUEST_BYTES;
    let count = limits::CBS_BYTES_TOTAL / limits::CBS_DEVICE_BYTES;
    let devices: Vec<CbsDevice> = (0..=count)
        .map(|number| CbsDevice::new(&mut world, &format!("d{number}")))
        .collect();
    let refused = under_way(&mut world, &devices, share);
    let (last, first) = refused.split_last().expect("some");
    assert!(first.iter().all(|refused| *refused == 0), "{refused:?}");
    assert!(*last >= share - 1, "no room for two more: {refused:?}");
}

#[test]
fn an_answer_of_cbs_may_be_so_large_and_not_a_byte_larger() {
    for (bytes, is_taken) in [
        (limits::CBS_ANSWER_BYTES, true),
        (limits::CBS_ANSWER_BYTES + 1, false),
    ] {
        let mut world = cbs_world(cbs_settings());
        let device = CbsDevice::new(&mut world, "d1");
        let mut hub = CbsHub::new(&world);
        device.ask(&mut world, &put_token("d1", string("1")));
        let asked = hub.request(&mut world);
        let answer = |padding: usize| answer_to(&asked, 200, &"d".repeat(padding));
        let padding = 1000 + bytes - encoded(&answer(1000)).len();
        assert_eq!(encoded(&answer(padding)).len(), bytes);
        hub.say(&mut world, &answer(padding));
        world.run();
        assert_eq!(device.answers(&mut world).len(), usize::from(is_taken));
        world.advance(limits::CBS_TIMEOUT);
        let codes: Vec<i32> = device.answers(&mut world).iter().map(|a| a.code()).collect();
        assert_eq!(codes, [if is_taken { 200 } else { 504 }]);
    }
}

/// A device that settles in two steps hears the last word on so many answers that it has left unsettled.
#[test]
fn of_so_many_answers_in_doubt_a_device_hears_the_last_word() {
    for (answers, first_is_known) in [(limits::CBS_IN_DOUBT, true), (limits::CBS_IN_DOUBT + 1, false)] {
        let mut world = cbs_world(cbs_settings());
        let peer = world.device("d1");
        world.peer(peer).attach(0, ASKS, "cbs-sender", true, "$cbs");
        let fields = vec![
            string("cbs-receiver"),
            uint(HEARS),
            Value::Boolean(true),
            Value::Ubyte(0),
            Value::Ubyte(1),
            wire::terminus(0x28, "$cbs"),
            wire::terminus(0x29, "here"),
        ];
        world.peer(peer).say_attach(&Frame::new(0, wire::ATTACH, fields));
        world.run();
        world.peer(peer).grant(0, HEARS, 1000);
        world.run();
        let device = CbsDevice { peer, channel: 0 };
        // Each is answered by the router.
        let wrong = request(string("1"), "get-token", SAS, "n", Body::Empty);
        for _ in 0..answers {
            device.ask(&mut world, &wrong);
        }
        let heard = |world: &mut World| {
            let received = &world.peer(peer).link(0, HEARS).received;
            let settled = received.iter().filter(|delivery| delivery.settled).count();
            (received.len(), settled)
        };
        assert_eq!(heard(&mut world), (answers, 0));
        let ids = {
            let received = &world.peer(peer).link(0, HEARS).received;
            (
                received.first().expect("one").id,
                received.last().expect("one").id,
            )
        };
        let accepted = wire::described(wire::ACCEPTED, Vec::new());
        world.peer(peer).dispose(0, true, ids.0, ids.1, false, accepted);
        world.run();
        let known = if first_is_known { answers } else { answers - 1 };
        assert_eq!(heard(&mut world), (answers, known));
    }
}

/// A device that asks on one link after the other, and takes none of its answers.
#[test]
fn answers_that_a_device_does_not_take_are_held_up_to_a_bound_whatever_links_it_asks_on() {
    let mut world = cbs_world(cbs_settings());
    let device = world.device("d1");
    world.peer(device).attach(0, HEARS, "hears", false, "$cbs");
    world.run();
    // It is answered by the router.
    let wrong = encoded(&request(string("1"), "get-token", SAS, "n", Body::Empty));
    for handle in 10..20 {
        world
            .peer(device)
            .attach(0, handle, &format!("asks {handle}"), true, "$cbs");
        world.run();
        for _ in 0..world.peer(device).link(0, handle).credit {
            world.peer(device).send(0, handle, &wrong, false);
        }
        world.run();
        world.peer(device).detach(0, handle, true, Value::Null);
        world.run();
    }
    let held = world.router.snapshot().cbs_answers;
    assert_eq!(held, limits::CBS_CREDIT as usize);
    // Who takes them may ask again.
    world.peer(device).grant(0, HEARS, limits::CBS_CREDIT);
    world.peer(device).attach(0, 20, "asks again", true, "$cbs");
    world.run();
    assert_eq!(world.router.snapshot().cbs_answers, 0);
    assert_eq!(world.peer(device).link(0, 20).credit, limits::CBS_CREDIT);
}
