//! Devices that log in to their hub by SASL PLAIN, with a token of theirs for a password: the router puts it for them on
//! the connection that all share.

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::policy::GroupSettings;
use linkrouterd::router::settings::{CbsMode, RouterSettings};

use crate::cbs_hub::{CBS_HUB_AUTO, CbsHub, audience, cbs_settings, cbs_world, seconds, token};
use crate::peer::{Announces, Peer};
use crate::scenarios_policy::{everything, vhost, with_vhosts};
use crate::wire::{self, Frame, condition, symbol};
use crate::world::{DEVICE_AUTO, PeerId, World};

const OK: u8 = 0;
const AUTH: u8 = 1;
const SYS_TEMP: u8 = 4;

/// A gateway whose listener demands that devices log in.
fn plain_settings() -> RouterSettings {
    let mut settings = cbs_settings();
    let listener = settings.listeners.first_mut().expect("one");
    listener.sasl_mechanisms = vec!["PLAIN".into()];
    listener.authenticate_peer = true;
    settings
}

/// A device that has connected and chosen PLAIN.
fn logs_in(world: &mut World, container: &str, user: &str, password: &str) -> PeerId {
    let device = world
        .connect(container, DEVICE_AUTO, Announces::default())
        .expect("room");
    say_init(world.peer(device), user, password);
    world.run();
    device
}

fn say_init(peer: &mut Peer, user: &str, password: &str) {
    peer.expects_sasl();
    peer.out.tail().extend(wire::SASL_HEADER);
    let response = format!("\0{user}\0{password}").into_bytes();
    let init = Frame::new(0, wire::SASL_INIT, vec![symbol("PLAIN"), Value::Binary(response)]);
    peer.say(&init);
}

/// What a device has been told of its log-in.
fn outcome(world: &mut World, device: PeerId) -> Option<u8> {
    let log = &world.peer(device).log;
    let outcome = log.iter().find(|frame| frame.code == wire::SASL_OUTCOME)?;
    match outcome.field(0) {
        Value::Ubyte(code) => Some(*code),
        other => panic!("{other:?} is no code"),
    }
}

#[track_caller]
fn expect_refused(world: &mut World, device: PeerId, code: u8) {
    assert_eq!(outcome(world, device), Some(code));
    assert!(!world.is_alive(device), "the connection ends");
}

/// Whether a device may attach to its telemetry.
fn may_send_as(world: &mut World, device: PeerId, handle: u32, id: &str) -> Result<(), String> {
    let peer = world.peer(device);
    peer.skip();
    let address = format!("devices/{id}/messages/events");
    peer.attach(0, handle, &format!("events-{handle}"), true, &address);
    world.run();
    let peer = world.peer(device);
    peer.expect(wire::ATTACH);
    loop {
        match peer.next() {
            Some(frame) if frame.code == wire::DETACH => {
                return Err(condition(frame.field(2)).unwrap_or_default().to_owned());
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

fn open_and_begin(world: &mut World, device: PeerId) {
    world.peer(device).open();
    world.peer(device).begin(0);
    world.run();
    assert!(world.peer(device).is_open);
}

#[test]
fn a_token_for_a_password_is_put_at_the_hub_and_opens_what_is_the_devices_own() {
    let mut world = cbs_world(plain_settings());
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    let mut hub = CbsHub::new(&world);
    assert_eq!(world.hubs_made, 1, "there is somebody to ask");
    assert_eq!(outcome(&mut world, device), None, "not before the hub has spoken");
    assert!(world.logins.is_empty(), "no password file has a say");
    let request = hub.request(&mut world);
    assert_eq!(request.text("operation"), "put-token");
    assert_eq!(request.text("name"), audience("d1"));
    assert_eq!(request.token(), token("d1"));
    hub.answer(&mut world, &request, 200, "OK");
    assert_eq!(outcome(&mut world, device), Some(OK));
    open_and_begin(&mut world, device);
    assert_eq!(may_send_as(&mut world, device, 0, "d1"), Ok(()));
    assert_eq!(
        may_send_as(&mut world, device, 1, "d2"),
        Err("amqp:unauthorized-access".to_owned())
    );
}

#[test]
fn any_number_of_devices_log_in_over_one_connection_and_one_pair() {
    let mut world = cbs_world(plain_settings());
    let devices: Vec<PeerId> = (0..20)
        .map(|number| {
            let id = format!("d{number}");
            logs_in(&mut world, &id, &format!("{id}@sas.hub"), &token(&id))
        })
        .collect();
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 20);
    for (number, device) in devices.into_iter().enumerate() {
        assert_eq!(outcome(&mut world, device), Some(OK), "d{number}");
        open_and_begin(&mut world, device);
        assert_eq!(may_send_as(&mut world, device, 0, &format!("d{number}")), Ok(()));
    }
    assert_eq!((world.hubs_made, hub.attached(&mut world)), (1, (1, 1)));
}

#[test]
fn the_hubs_answer_is_the_outcome_of_the_log_in() {
    for (status, code) in [
        (200, OK),
        (202, OK),
        (400, AUTH),
        (401, AUTH),
        (404, AUTH),
        (429, SYS_TEMP),
        (500, SYS_TEMP),
        (503, SYS_TEMP),
    ] {
        let mut world = cbs_world(plain_settings());
        let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
        let mut hub = CbsHub::new(&world);
        let request = hub.request(&mut world);
        hub.answer(&mut world, &request, status, "because");
        match code {
            OK => assert_eq!(outcome(&mut world, device), Some(OK), "{status}"),
            code => expect_refused(&mut world, device, code),
        }
    }
}

#[test]
fn a_token_of_somebody_else_never_reaches_the_hub() {
    for (user, of) in [
        ("d1@sas.hub", "d2"),
        ("d1/modules/m@sas.hub", "d1%2Fmodules%2Fn"),
        ("d1@sas.hub", "d1%2Fmodules%2Fm"),
        ("service@sas.root.hub", "d1"),
    ] {
        let mut world = cbs_world(plain_settings());
        let device = logs_in(&mut world, "c1", user, &token(of));
        expect_refused(&mut world, device, AUTH);
        assert_eq!(world.hubs_made, 0, "{user}");
    }
    let mut world = cbs_world(plain_settings());
    let device = logs_in(
        &mut world,
        "c1",
        "d1@sas.hub",
        "SharedAccessSignature sr=nonsense",
    );
    expect_refused(&mut world, device, AUTH);
    assert_eq!(world.hubs_made, 0, "what is no token is not sent, either");
}

#[test]
fn modules_and_policies_log_in_as_what_they_are() {
    let policy = "SharedAccessSignature sr=hub.example&skn=service&sig=c2ln&se=2000000000";
    let module = token("d1%2Fmodules%2Fm");
    for (user, password, known_as) in [
        ("d1/modules/m@sas.hub", module.as_str(), "d1/modules/m"),
        ("service@sas.root.hub", policy, "service@sas.root"),
        ("plant%2B7@sas.hub", &token("plant%2B7"), "plant+7"),
    ] {
        let group = GroupSettings {
            users: vec![known_as.into()],
            ..everything()
        };
        let settings = RouterSettings {
            policy: with_vhosts(vec![vhost("hub.example", group)]).policy,
            ..plain_settings()
        };
        let mut world = cbs_world(settings);
        let device = logs_in(&mut world, "c1", user, password);
        let mut hub = CbsHub::new(&world);
        assert_eq!(hub.accept_all(&mut world), 1);
        assert_eq!(outcome(&mut world, device), Some(OK));
        // Whoever is called otherwise is closed by the policy.
        open_and_begin(&mut world, device);
        assert!(world.peer(device).closed.is_none(), "{user} is {known_as}");
    }
}

#[test]
fn what_the_micro_client_says_behind_its_password_waits_for_the_hub() {
    let mut world = cbs_world(plain_settings());
    let device = world
        .connect(
            "c1",
            DEVICE_AUTO,
            Announces {
                max_frame_size: 1024,
                ..Announces::default()
            },
        )
        .expect("room");
    let peer = world.peer(device);
    say_init(peer, "d1@sas.hub", &token("d1"));
    peer.open();
    peer.begin(0);
    world.run();
    assert_eq!(outcome(&mut world, device), None);
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(outcome(&mut world, device), Some(OK));
    assert!(world.peer(device).is_open);
    assert_eq!(may_send_as(&mut world, device, 0, "d1"), Ok(()));
}

#[test]
fn a_dial_may_take_longer_than_the_time_for_the_handshake() {
    let mut world = cbs_world(plain_settings());
    world.hub = None;
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    world.advance(seconds(20));
    assert!(world.is_alive(device), "its time for the handshake was 10 s");
    world.answer_dial(CBS_HUB_AUTO, Announces::default());
    world.run();
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(outcome(&mut world, device), Some(OK));
    // It has no more of it than others.
    world.advance(seconds(16));
    assert!(
        !world.is_alive(device),
        "a device that says no more is not waited for"
    );
}

#[test]
fn a_hub_that_is_away_or_silent_is_no_reason_to_call_a_device_wrong() {
    let mut world = cbs_world(plain_settings());
    world.hub = None;
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    world.advance(seconds(30));
    expect_refused(&mut world, device, SYS_TEMP);

    let mut world = cbs_world(plain_settings());
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    world.advance(seconds(30));
    expect_refused(&mut world, device, SYS_TEMP);

    // The hub closes with the question on its way; it is asked again on the next connection.
    let mut world = cbs_world(plain_settings());
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    let first = world.hub_id();
    world.lose(first);
    world.run();
    world.advance(seconds(5));
    assert_eq!(world.hubs_made, 2);
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(outcome(&mut world, device), Some(OK));
}

#[test]
fn a_device_that_does_not_wait_leaves_nothing_behind() {
    let mut world = cbs_world(plain_settings());
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    let mut hub = CbsHub::new(&world);
    let request = hub.request(&mut world);
    world.lose(device);
    hub.answer(&mut world, &request, 200, "OK");
    // Its place is another's now, who is none the wiser.
    let other = logs_in(&mut world, "c2", "d2@sas.hub", &token("d2"));
    assert_eq!(outcome(&mut world, other), None);
    assert_eq!(hub.accept_all(&mut world), 1);
    open_and_begin(&mut world, other);
    assert_eq!(
        may_send_as(&mut world, other, 0, "d1"),
        Err("amqp:unauthorized-access".to_owned())
    );
}

#[test]
fn a_token_is_put_again_when_the_hub_is_back() {
    let mut world = cbs_world(plain_settings());
    let device = logs_in(&mut world, "c1", "d1@sas.hub", &token("d1"));
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 1);
    open_and_begin(&mut world, device);
    let first = world.hub_id();
    world.lose(first);
    world.run();
    world
        .peer(device)
        .attach(0, 0, "events", true, "devices/d1/messages/events");
    world.run();
    world.advance(seconds(5));
    let mut hub = CbsHub::new(&world);
    let request = hub.request(&mut world);
    assert_eq!(request.token(), token("d1"));
    assert!(
        world.hub().find("events@c1", false).is_none(),
        "not before its token"
    );
    hub.answer(&mut world, &request, 200, "OK");
    assert!(world.hub().find("events@c1", false).is_some());
}

/// Passwords are as they were.
#[test]
fn everybody_else_is_judged_by_the_password_file() {
    let tunnelled = |settings: &mut RouterSettings| {
        for connector in &mut settings.connectors {
            connector.sharing.cbs = CbsMode::Tunnel;
        }
    };
    let with_identity = |settings: &mut RouterSettings| {
        for connector in &mut settings.connectors {
            connector.sasl_username = Some("rule".into());
        }
    };
    let multi_tenant = |settings: &mut RouterSettings| {
        for listener in &mut settings.listeners {
            listener.multi_tenant = true;
        }
    };
    let unrouted = |settings: &mut RouterSettings| settings.routes.clear();
    let plain: &dyn Fn(&mut RouterSettings) = &|_| {};
    let token = token("d1");
    for (user, password, edit) in [
        ("d1@sas.hub", "s3cret", plain),
        ("d1", token.as_str(), plain),
        ("d1@sas.hub", &token, &tunnelled),
        ("d1@sas.hub", &token, &with_identity),
        ("d1@sas.hub", &token, &multi_tenant),
        ("d1@sas.hub", &token, &unrouted),
    ] {
        let mut settings = plain_settings();
        edit(&mut settings);
        let mut world = cbs_world(settings);
        logs_in(&mut world, "c1", user, password);
        assert_eq!(world.logins.len(), 1, "{user}");
        assert_eq!(world.logins[0].1.user, user);
        assert_eq!(world.hubs_made, 0);
    }
}
