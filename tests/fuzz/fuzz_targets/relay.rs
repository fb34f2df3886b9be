//! What is carried to another peer reads as it did, with other numbers, in frames that the peer accepts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linkrouterd::amqp::edit::{Edits, attach_tail};
use linkrouterd::amqp::fields::Tail;
use linkrouterd::amqp::frame::{Frame, FrameType, MIN_MAX_FRAME_SIZE, write_frame};
use linkrouterd::amqp::performative::{Performative, Transfer};
use linkrouterd::amqp::plain::PlainTransfer;
use linkrouterd::amqp::relay::{self, SessionFlow, Written};
use linkrouterd::amqp::serial::{Channel, DeliveryId, Handle, TransferId};
use linkrouterd::amqp::shrink::{self, Attaching};

const CHANNEL: Channel = Channel(0x1234);

fuzz_target!(|data: &[u8]| {
    let Some((&[a, b, c, d, width], body)) = data.split_first_chunk::<5>() else {
        return;
    };
    // A number of any width on the wire.
    let number = u32::from_be_bytes([a, b, c, d]) >> (width % 32);
    read_at_a_glance(body, number);
    let Ok(performative) = Performative::parse(body) else {
        return;
    };
    let mut out = Vec::new();
    match performative {
        Performative::Transfer(transfer) => return carry_transfer(&transfer, number),
        Performative::Attach(attach) => {
            relay::write_attach(
                &mut out,
                CHANNEL,
                "another name",
                Handle(number),
                attach.role,
                attach.tail,
            );
            let Performative::Attach(carried) = read(&out) else {
                panic!("no attach")
            };
            assert_eq!(
                (carried.name, carried.handle, carried.role),
                ("another name", Handle(number), attach.role)
            );
            assert_eq!((carried.source, carried.target), (attach.source, attach.target));
            assert_eq!(carried.tail, attach.tail);
            let edits = Edits {
                max_message_size: Some(u64::from(number)),
                ..Edits::default()
            };
            let edited = attach_tail(attach.tail, &edits).expect("no terminus is edited");
            assert!(edited.tail().bytes.len() <= attach.tail.bytes.len() + 8 + 9);
            let room = attach.tail.bytes.len() / 2;
            for attaching in [Attaching::Request, Attaching::Answer(attach.role)] {
                if let Some((count, bytes)) = shrink::attach_tail(attach.tail, attaching, room) {
                    assert!(bytes.len() <= room);
                    let tail = Tail { count, bytes: &bytes };
                    out.clear();
                    relay::write_attach(&mut out, CHANNEL, "n", Handle(0), attach.role, tail);
                    assert!(matches!(read(&out), Performative::Attach(_)));
                }
            }
        }
        Performative::Flow(flow) => {
            let session = SessionFlow {
                next_incoming_id: Some(TransferId(number)),
                incoming_window: number,
                next_outgoing_id: TransferId(number),
                outgoing_window: number,
            };
            let link = flow.link.map(|link| (Handle(number), link.tail));
            relay::write_flow(&mut out, CHANNEL, session, link);
            let Performative::Flow(carried) = read(&out) else {
                panic!("no flow")
            };
            assert_eq!(carried.incoming_window, number);
            assert_eq!(carried.link.map(|link| (link.handle, link.tail)), link);
        }
        Performative::Disposition(disposition) => {
            let (first, last) = (DeliveryId(number), DeliveryId(number).plus(u32::from(width)));
            relay::write_disposition(&mut out, CHANNEL, disposition.role, first, last, disposition.tail);
            let Performative::Disposition(carried) = read(&out) else {
                panic!("no disposition")
            };
            assert_eq!((carried.first, carried.last), (first, last));
            assert_eq!(
                (carried.role, carried.settled),
                (disposition.role, disposition.settled)
            );
            assert_eq!(carried.tail, disposition.tail);
        }
        Performative::Detach(detach) => {
            relay::write_detach(&mut out, CHANNEL, Handle(number), detach.tail);
            let Performative::Detach(carried) = read(&out) else {
                panic!("no detach")
            };
            assert_eq!(carried.handle, Handle(number));
            assert_eq!((carried.closed, carried.error), (detach.closed, detach.error));
        }
        Performative::Open(_) | Performative::Begin(_) | Performative::End(_) | Performative::Close(_) => {
            return;
        }
    }
});

/// What is recognised as plain is what the performative says, and is carried to the same bytes.
fn read_at_a_glance(body: &[u8], number: u32) {
    let mut frame = Vec::new();
    write_frame(&mut frame, FrameType::Amqp, CHANNEL, |out| out.extend_from_slice(body));
    let Some(plain) = PlainTransfer::peek(&frame, u32::MAX) else {
        return;
    };
    let Ok(Performative::Transfer(transfer)) = Performative::parse(body) else {
        panic!("recognised what is no transfer")
    };
    assert_eq!((plain.length, plain.channel), (frame.len(), CHANNEL));
    assert_eq!((plain.handle, Some(plain.delivery_id)), (transfer.handle, transfer.delivery_id));
    assert_eq!(plain.is_settled, transfer.settled == Some(true));
    assert_eq!(plain.tail(), transfer.tail);
    assert!(!transfer.more && !transfer.aborted);
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let (handle, id, max) = (Handle(number), DeliveryId(number), usize::MAX);
    assert!(relay::write_plain(&mut one, CHANNEL, handle, id, &plain, max));
    relay::write_transfer(&mut other, CHANNEL, handle, Some(id), &transfer, 0, max);
    assert_eq!(one, other);
}

fn carry_transfer(transfer: &Transfer<'_>, number: u32) {
    let max = MIN_MAX_FRAME_SIZE as usize;
    let id = Some(DeliveryId(number));
    let mut payload = Vec::new();
    let mut offset = 0;
    loop {
        let mut out = Vec::new();
        let written = relay::write_transfer(&mut out, CHANNEL, Handle(number), id, transfer, offset, max);
        if written == Written::HeadTooLarge {
            return assert!(offset == 0 && out.is_empty());
        }
        assert!(out.len() <= max);
        let Performative::Transfer(carried) = read(&out) else {
            panic!("no transfer")
        };
        assert_eq!(
            (carried.handle, carried.settled),
            (Handle(number), transfer.settled)
        );
        assert_eq!(carried.delivery_id, if offset == 0 { id } else { None });
        assert_eq!(carried.more, transfer.more || written != Written::All);
        payload.extend_from_slice(carried.payload);
        match written {
            Written::UpTo(next) => assert!(std::mem::replace(&mut offset, next) < next),
            _ => break,
        }
    }
    assert!(payload == transfer.payload || transfer.aborted && payload.is_empty());
}

fn read(bytes: &[u8]) -> Performative<'_> {
    let frame = Frame::parse(bytes).expect("a frame");
    assert_eq!(frame.channel, CHANNEL);
    assert_eq!(
        bytes[..4],
        u32::try_from(bytes.len()).expect("small").to_be_bytes()
    );
    Performative::parse(frame.body).expect("what is written can be read")
}
