//! What a device may do to the router that a polite stack cannot: say everything in one packet, count from near the end,
//! die in the middle of a delivery or of a frame. Devices here speak frame by frame; the hub is the strict stand-in.

use std::time::{Duration, Instant};

use crate::support::article::{self, DEVICE};
use crate::support::device::{self, PutToken};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::{IotHub, Observed, Settings};
use crate::support::raw::{self, RawDevice};
use crate::support::wire::{self, AMQP_HEADER};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::{Handle, LinkError, Role};
use fe2o3_amqp::types::messaging::{DeliveryState, MessageId};
use fe2o3_amqp::types::performatives::{Begin, Detach, Disposition, Flow, Performative, Transfer};

fn events() -> String {
    format!("/devices/{DEVICE}/messages/events")
}

fn device_bound() -> String {
    format!("/devices/{DEVICE}/messages/deviceBound")
}

/// A gateway whose devices use what another program has authorised, for it is not tokens that these tests are about.
async fn unchecked(settings: Settings) -> Result<Gateway<IotHub>, Failure> {
    Gateway::to_iot_hub_with(settings, |config| {
        config.replace("role: on-demand\n", "role: on-demand\n    checkIdentity: no\n")
    })
    .await
}

/// Puts the tokens of the device and of the service on the router's connection to the hub, where they stay, and, with
/// `command`, a command for the device into the hub's queue.
async fn prepare(gateway: &Gateway<IotHub>, command: Option<&str>) -> Result<(), Failure> {
    let mut connection = gateway.reach.open("preparing").await?;
    for token in [
        article::device_token(DEVICE, &article::device_key()),
        article::service_token(),
    ] {
        let token_type = "servicebus.windows.net:sastoken";
        let request = PutToken {
            token: &token,
            name: "a name",
            token_type,
            message_id: MessageId::Ulong(0),
        };
        ensure_eq(
            "the token",
            device::put_token(&mut connection, request).await?.status,
            200,
        )?;
    }
    if let Some(body) = command {
        let mut session = device::begin(&mut connection).await?;
        let mut sender = device::sender(&mut session, "commands", "/messages/devicebound").await?;
        let mut command = message::data(body);
        if let Some(properties) = &mut command.properties {
            properties.to = Some(device_bound());
        }
        ensure(
            bounded("a command", sender.send(command)).await??.is_accepted(),
            || "not accepted".to_owned(),
        )?;
        bounded("closing", sender.close()).await??;
        device::end(session).await?;
    }
    device::close(connection).await
}

async fn raw_device(gateway: &Gateway<IotHub>, next_outgoing_id: u32) -> Result<RawDevice, Failure> {
    let address = gateway.daemon()?.address();
    RawDevice::begin(
        address,
        raw::open("netduino", 65_536),
        raw::begin(next_outgoing_id),
    )
    .await
}

/// Waits for credit on a handle.
async fn credited(device: &mut RawDevice, of: u32) -> Result<u32, Failure> {
    let credit = |performative| match performative {
        Performative::Flow(Flow {
            handle: Some(Handle(handle)),
            link_credit: Some(credit),
            ..
        }) if handle == of => Some(credit),
        _ => None,
    };
    device.expect("credit", credit).await
}

fn outcome_of(performative: Performative) -> Option<Disposition> {
    match performative {
        Performative::Disposition(disposition) => Some(disposition),
        _ => None,
    }
}

/// Ends a test: the devices go first, for the router gives each that does not answer its close some time.
async fn finish(gateway: Gateway<IotHub>, devices: Vec<RawDevice>) -> Result<(), Failure> {
    drop(devices);
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn everything_in_one_packet_before_any_answer() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, Some("blink")).await?;
    let mut device = RawDevice::connect(gateway.daemon()?.address()).await?;
    let mut packet = AMQP_HEADER.to_vec();
    for performative in [
        Performative::Open(raw::open("netduino", 1_024)),
        Performative::Begin(raw::begin(0)),
        Performative::Attach(raw::attach("send-link", 0, Role::Sender, &events())),
        Performative::Attach(raw::attach("receive-link", 1, Role::Receiver, &device_bound())),
        Performative::Flow(raw::credit(1, 20, 0, 0)),
    ] {
        packet.extend(wire::frame_of(0, &performative)?);
    }
    device.writer.raw(packet);
    device.expect_header().await?;
    credited(&mut device, 0).await?;
    let body = device
        .expect_with_payload("the command", |performative, payload| {
            matches!(performative, Performative::Transfer(_)).then_some(payload)
        })
        .await?;
    ensure_eq(
        "the command",
        message::body_of(&message::decode(&body)?),
        b"blink".as_slice(),
    )?;
    device.transfer(
        raw::transfer(0, 0, b"tag"),
        &message::encode(&message::data("telemetry")),
    )?;
    let disposition = device.expect("the outcome", outcome_of).await?;
    ensure(
        matches!(disposition.state, Some(DeliveryState::Accepted(_))),
        || format!("{disposition:?}"),
    )?;
    finish(gateway, vec![device]).await
}

#[tokio::test]
async fn delivery_and_transfer_ids_wrap() -> Result<(), Failure> {
    const FIRST: u32 = 0xffff_fffd;
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, None).await?;
    let mut device = raw_device(&gateway, FIRST).await?;
    device.send(Performative::Attach(raw::attach(
        "send-link",
        0,
        Role::Sender,
        &events(),
    )))?;
    credited(&mut device, 0).await?;
    let mut outcomes = Vec::new();
    for count in 0..10_u32 {
        let id = FIRST.wrapping_add(count);
        device.transfer(
            raw::transfer(0, id, &count.to_be_bytes()),
            &message::encode(&message::data("x")),
        )?;
        let disposition = device.expect("the outcome", outcome_of).await?;
        ensure(
            matches!(disposition.state, Some(DeliveryState::Accepted(_))),
            || format!("{disposition:?}"),
        )?;
        outcomes.push(disposition.first == id && disposition.last.is_none_or(|last| last == id));
    }
    ensure(outcomes.iter().all(|right| *right), || {
        "outcomes for other deliveries".to_owned()
    })?;
    let tags = gateway.hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => Some(delivery.tag.clone()),
        _ => None,
    });
    let expected: Vec<_> = (0..10_u32).map(|count| count.to_be_bytes().to_vec()).collect();
    ensure_eq("the delivery-tags at the hub", tags, expected)?;
    finish(gateway, vec![device]).await
}

#[tokio::test]
async fn device_killed_in_mid_transfer_is_aborted_and_detached_at_the_hub() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, None).await?;
    let mut device = raw_device(&gateway, 0).await?;
    device.send(Performative::Attach(raw::attach(
        "doomed",
        0,
        Role::Sender,
        &events(),
    )))?;
    credited(&mut device, 0).await?;
    let begun = Transfer {
        more: true,
        ..raw::transfer(0, 0, b"half")
    };
    device.transfer(begun, &[0; 600])?;
    let journal = gateway.hub.journal();
    let link = journal
        .find("half of the delivery", |observed| match observed {
            Observed::Partial { link, bytes: 600, .. } if link.starts_with("doomed") => Some(link.clone()),
            _ => None,
        })
        .await?;
    device.die();
    let aborted = journal
        .find("the abort", |observed| match observed {
            Observed::Aborted {
                link: of, tag, bytes, ..
            } if *of == link => Some((tag.clone(), *bytes)),
            _ => None,
        })
        .await?;
    ensure_eq("what was aborted", aborted, (b"half".to_vec(), 600))?;
    journal
        .find("the end of the link", |observed| match observed {
            Observed::Detached {
                link: of,
                closed: true,
                ..
            } if *of == link => Some(()),
            _ => None,
        })
        .await?;
    let telemetry = gateway
        .hub
        .journal()
        .select(|observed| matches!(observed, Observed::Telemetry(_)).then_some(()));
    ensure_eq("complete messages at the hub", telemetry.len(), 0)?;
    finish(gateway, Vec::new()).await
}

#[tokio::test]
async fn device_that_aborts_a_delivery_can_send_the_next() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, None).await?;
    let mut device = raw_device(&gateway, 0).await?;
    device.send(Performative::Attach(raw::attach(
        "send-link",
        0,
        Role::Sender,
        &events(),
    )))?;
    credited(&mut device, 0).await?;
    device.transfer(
        Transfer {
            more: true,
            ..raw::transfer(0, 0, b"first")
        },
        &[7; 100],
    )?;
    device.transfer(
        Transfer {
            aborted: true,
            ..raw::transfer(0, 0, b"first")
        },
        &[],
    )?;
    device.transfer(
        raw::transfer(0, 1, b"second"),
        &message::encode(&message::data("x")),
    )?;
    let accepted = |performative| outcome_of(performative).filter(|disposition| disposition.first == 1);
    let disposition = device.expect("the outcome of the second", accepted).await?;
    ensure(
        matches!(disposition.state, Some(DeliveryState::Accepted(_))),
        || format!("{disposition:?}"),
    )?;
    let aborted = gateway.hub.journal().select(|observed| match observed {
        Observed::Aborted { tag, bytes, .. } => Some((tag.clone(), *bytes)),
        _ => None,
    });
    ensure_eq("aborted at the hub", aborted, vec![(b"first".to_vec(), 100)])?;
    finish(gateway, vec![device]).await
}

#[tokio::test]
async fn command_of_a_device_that_died_is_given_back_to_the_hub() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, Some("blink")).await?;
    let mut device = raw_device(&gateway, 0).await?;
    device.send(Performative::Attach(raw::attach(
        "receive-link",
        0,
        Role::Receiver,
        &device_bound(),
    )))?;
    device.send(Performative::Flow(raw::credit(0, 1, 0, 0)))?;
    let tag = |performative| match performative {
        Performative::Transfer(transfer) => transfer.delivery_tag,
        _ => None,
    };
    let lost = device.expect("the command", tag).await?;
    // In the middle of a frame: four of the eight bytes that a frame starts with.
    device.writer.raw(&[0_u8, 0, 0, 30][..]);
    device.die();
    let mut second = raw_device(&gateway, 0).await?;
    second.send(Performative::Attach(raw::attach(
        "receive-link",
        0,
        Role::Receiver,
        &device_bound(),
    )))?;
    second.send(Performative::Flow(raw::credit(0, 1, 0, 0)))?;
    let again = second.expect("the command, again", tag).await?;
    ensure(lost != again, || "the same lock twice".to_owned())?;
    finish(gateway, vec![second]).await
}

#[tokio::test]
async fn drain_is_end_to_end() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, None).await?;
    let mut device = raw_device(&gateway, 0).await?;
    device.send(Performative::Attach(raw::attach(
        "receive-link",
        0,
        Role::Receiver,
        &device_bound(),
    )))?;
    device.send(Performative::Flow(Flow {
        drain: true,
        ..raw::credit(0, 17, 0, 0)
    }))?;
    let drained = |performative| match performative {
        Performative::Flow(flow) if flow.handle == Some(Handle(0)) => {
            (flow.delivery_count == Some(17)).then_some(flow.link_credit)
        }
        _ => None,
    };
    ensure_eq("credit left", device.expect("the drain", drained).await?, Some(0))?;
    finish(gateway, vec![device]).await
}

#[tokio::test]
async fn unknown_protocol_header_is_answered_with_ours_and_closed() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    let mut device = RawDevice::connect(gateway.daemon()?.address()).await?;
    device.writer.raw(&b"GET / HT"[..]);
    let header = bounded("the header", device.reader.header()).await??;
    ensure(header.starts_with(b"AMQP"), || format!("{header:?}"))?;
    // AMQP 1.0 part 2, §2.2: the header and nothing else.
    let end = bounded("the end", device.reader.next())
        .await?
        .map_err(|error| error.kind());
    ensure(matches!(end, Err(std::io::ErrorKind::UnexpectedEof)), || {
        format!("{end:?} after the header")
    })?;
    finish(gateway, vec![device]).await
}

#[tokio::test]
async fn garbage_of_one_device_never_reaches_the_hub_or_another_device() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    prepare(&gateway, None).await?;
    let mut good = raw_device(&gateway, 0).await?;
    good.send(Performative::Attach(raw::attach(
        "send-link",
        0,
        Role::Sender,
        &events(),
    )))?;
    credited(&mut good, 0).await?;
    for garbage in [
        // A transfer on a handle that is not attached, a frame shorter than its header, a data offset beyond the frame.
        wire::frame_of(0, &Performative::Transfer(raw::transfer(5, 0, b"x")))?,
        vec![0, 0, 0, 4, 2, 0, 0, 0],
        vec![0, 0, 0, 9, 9, 0, 0, 0, 0],
        // A performative that is none, and a list that claims to be longer than its frame.
        vec![0, 0, 0, 11, 2, 0, 0, 0, 0x00, 0x53, 0x19],
        vec![0, 0, 0, 13, 2, 0, 0, 0, 0x00, 0x53, 0x14, 0xc0, 0xff],
    ] {
        let mut bad = raw_device(&gateway, 0).await?;
        bad.writer.raw(garbage.clone());
        // An end or a close, and if a close, then the end of the transport.
        let refused = |performative| {
            matches!(performative, Performative::End(_) | Performative::Close(_)).then_some(())
        };
        bad.expect(&format!("an answer to {garbage:?}"), refused).await?;
    }
    good.transfer(raw::transfer(0, 0, b"tag"), &message::encode(&message::data("x")))?;
    good.expect("the outcome", outcome_of).await?;
    finish(gateway, vec![good]).await
}

#[tokio::test]
async fn silent_device_does_not_hold_up_the_stop() -> Result<(), Failure> {
    let gateway = unchecked(article::hub_settings()).await?;
    let silent = raw_device(&gateway, 0).await?;
    let begun = Instant::now();
    gateway.stop().await?;
    let taken = begun.elapsed();
    ensure(taken < Duration::from_secs(8), || {
        format!("stopping took {taken:?}")
    })?;
    silent.die();
    Ok(())
}

#[tokio::test]
async fn delivery_half_received_when_the_hub_is_lost_never_looks_complete() -> Result<(), Failure> {
    let mut gateway = Gateway::to_broker().await?;
    let address = gateway.daemon()?.address();
    let begin = Begin {
        incoming_window: 2,
        ..raw::begin(0)
    };
    let mut device = RawDevice::begin(address, raw::open("slow", 4_096), begin).await?;
    let source = "source/1/1000000";
    device.send(Performative::Attach(raw::attach(
        "down",
        0,
        Role::Receiver,
        source,
    )))?;
    device.send(Performative::Flow(Flow {
        incoming_window: 2,
        ..raw::credit(0, 1, 0, 0)
    }))?;
    let transferred = |performative| match performative {
        Performative::Transfer(transfer) => Some(transfer),
        _ => None,
    };
    let begun = Instant::now();
    for _ in 0..2 {
        ensure(device.expect("a transfer", transferred).await?.more, || {
            "all in two frames".to_owned()
        })?;
    }
    // What fits into the device's window is sent when it is there, though the rest of its delivery waits.
    let taken = begun.elapsed();
    ensure(taken < Duration::from_secs(5), || {
        format!("the first two transfers took {taken:?}")
    })?;
    gateway.hub.stop().await?;
    // From here on there is room again for whatever the router has to say.
    device.send(Performative::Flow(Flow {
        next_incoming_id: Some(2),
        handle: None,
        delivery_count: None,
        link_credit: None,
        ..raw::credit(0, 0, 0, 0)
    }))?;
    let mut complete = false;
    let end = |performative| match performative {
        Performative::Transfer(transfer) => {
            complete |= !transfer.more && !transfer.aborted;
            None
        }
        Performative::Detach(detach) => Some(detach),
        _ => None,
    };
    let Detach { closed, error, .. } = device.expect("the detach", end).await?;
    ensure(closed && !complete, || {
        "the delivery was passed off as complete".to_owned()
    })?;
    let condition = error.map(|error| error.condition);
    ensure_eq("the condition", condition, Some(LinkError::DetachForced.into()))?;
    drop(device);
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn session_windows_of_a_few_frames_carry_large_messages_both_ways() -> Result<(), Failure> {
    const SIZE: usize = 40_000;
    let mut settings = article::hub_settings();
    settings.incoming_window = 3;
    let gateway = unchecked(settings).await?;
    prepare(&gateway, Some(&"blink".repeat(SIZE / 5))).await?;
    let address = gateway.daemon()?.address();
    let begin = Begin {
        incoming_window: 1,
        ..raw::begin(0)
    };
    let mut device = RawDevice::begin(address, raw::open("netduino", 1_024), begin).await?;
    device.send(Performative::Attach(raw::attach(
        "receive-link",
        0,
        Role::Receiver,
        &device_bound(),
    )))?;
    device.send(Performative::Flow(Flow {
        incoming_window: 1,
        ..raw::credit(0, 1, 0, 0)
    }))?;
    let mut received = Vec::new();
    for count in 1.. {
        let transferred = |performative, payload| match performative {
            Performative::Transfer(transfer) => Some((transfer.more, payload)),
            _ => None,
        };
        let (more, payload) = device.expect_with_payload("a transfer", transferred).await?;
        received.extend_from_slice(&payload);
        if !more {
            break;
        }
        // The window is opened by one frame at a time.
        device.send(Performative::Flow(Flow {
            next_incoming_id: Some(count),
            incoming_window: 1,
            handle: None,
            delivery_count: None,
            link_credit: None,
            ..raw::credit(0, 0, 0, 0)
        }))?;
    }
    let command = message::body_of(&message::decode(&received)?);
    ensure(command == "blink".repeat(SIZE / 5).into_bytes(), || {
        format!("{} bytes", command.len())
    })?;

    device.send(Performative::Attach(raw::attach(
        "send-link",
        1,
        Role::Sender,
        &events(),
    )))?;
    credited(&mut device, 1).await?;
    let sent = message::encode(&message::data(vec![5; SIZE]));
    for id in 0..3 {
        let chunks: Vec<&[u8]> = sent.chunks(900).collect();
        for (number, chunk) in chunks.iter().enumerate() {
            let more = number + 1 < chunks.len();
            let first = raw::transfer(1, id, &id.to_be_bytes());
            let transfer = match number {
                0 => Transfer { more, ..first },
                _ => Transfer {
                    more,
                    delivery_id: None,
                    delivery_tag: None,
                    message_format: None,
                    ..first
                },
            };
            device.transfer(transfer, chunk)?;
        }
        let disposition = device.expect("the outcome", outcome_of).await?;
        ensure_eq("the delivery", disposition.first, id)?;
    }
    let telemetry = gateway.hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => Some(delivery.payload == sent),
        _ => None,
    });
    ensure_eq("whether each is unchanged", telemetry, vec![true; 3])?;
    finish(gateway, vec![device]).await
}
