//! The codec alone: bytes a second for each way to look at a telemetry message in its transfer.
//!
//! ```text
//! cargo bench --bench codec
//! ```

// A benchmark is all clocks; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use linkrouterd::amqp::deframer::Deframer;
use linkrouterd::amqp::frame::{Frame, FrameType, write_frame};
use linkrouterd::amqp::message::{Body, Message, Properties};
use linkrouterd::amqp::performative::Performative;
use linkrouterd::amqp::plain::PlainTransfer;
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::relay::{self, Written};
use linkrouterd::amqp::serial::{Channel, DeliveryId, Handle};
use linkrouterd::amqp::value::Value;
use linkrouterd::amqp::writer::Writer;

const SIZES: [(usize, &str); 3] = [(256, "256 B"), (4096, "4 KiB"), (65536, "64 KiB")];
/// Of the peer that it goes to, and as large as our own: larger than any frame here.
const MAX_FRAME_SIZE: usize = 1 << 20;

/// A transfer as a device's client library writes it, with a message of so many bytes of content.
fn transfer(size: usize) -> Vec<u8> {
    let text = |text: &str| Value::String(text.into());
    let message = Message {
        properties: Properties {
            message_id: Some(text("00f4c0a8-6f3e-4b12-9d64-7c5a0f1b2e3d")),
            to: Some("/devices/sensor-17/messages/events".into()),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            ..Properties::default()
        },
        application_properties: vec![
            (text("temperatureAlert"), text("false")),
            (text("firmware"), text("1.4.2")),
        ],
        body: Body::Data(vec![vec![b'7'; size]]),
        ..Message::default()
    };
    let mut frame = Vec::new();
    write_frame(&mut frame, FrameType::Amqp, Channel(3), |out| {
        let mut fields = Vec::new();
        let mut writer = Writer::new(&mut fields);
        writer.uint(1);
        writer.uint(70_000);
        writer.raw(&[0xa0, 4, 0, 1, 17, 112]);
        writer.uint(0);
        writer.boolean(false);
        writer.boolean(false);
        let mut writer = Writer::new(out);
        writer.list_head(0x14, 6, fields.len());
        writer.raw(&fields);
        message.encode(out);
    });
    frame
}

/// What relaying reads where a glance at a plain transfer is not enough: handle, delivery-id and flags, all other fields only
/// checked.
fn peek<'a>(frame: &Frame<'a>) -> Performative<'a> {
    Performative::parse(frame.body).expect("a performative")
}

/// Every field and every section as a value.
fn decode(frame: &Frame<'_>) -> (Value, Message) {
    let mut reader = Reader::new(frame.body);
    let performative = Value::read(&mut reader).expect("a value");
    let message = Message::decode(reader.rest()).expect("a message");
    (performative, message)
}

fn ways(criterion: &mut Criterion) {
    for (size, label) in SIZES {
        let bytes = transfer(size);
        let frame = Frame::parse(&bytes).expect("a frame");
        let mut group = criterion.benchmark_group(label);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("glance", |bencher| {
            bencher
                .iter(|| PlainTransfer::peek(black_box(&bytes), MAX_FRAME_SIZE as u32).expect("a plain one"));
        });
        group.bench_function("peek", |bencher| bencher.iter(|| peek(black_box(&frame))));
        group.bench_function("relay", |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| {
                out.clear();
                let Performative::Transfer(transfer) = peek(black_box(&frame)) else {
                    panic!("no transfer");
                };
                let id = Some(DeliveryId(5));
                let written =
                    relay::write_transfer(&mut out, Channel(9), Handle(0), id, &transfer, 0, MAX_FRAME_SIZE);
                assert_eq!(written, Written::All);
                black_box(out.len())
            });
        });
        group.bench_function("full decode", |bencher| {
            bencher.iter(|| decode(black_box(&frame)));
        });
        group.finish();
    }
}

/// A stream of frames as reads bring it: cut where the frames are not.
fn deframe(criterion: &mut Criterion) {
    for (size, label) in SIZES {
        let stream = transfer(size).repeat((1 << 20) / size);
        let mut group = criterion.benchmark_group(label);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        for (read, name) in [
            (1448, "deframe, reads of 1448 B"),
            (64 * 1024, "deframe, reads of 64 KiB"),
        ] {
            group.bench_function(name, |bencher| {
                let mut deframer = Deframer::new(MAX_FRAME_SIZE as u32);
                bencher.iter(|| {
                    let mut frames = 0;
                    for mut input in black_box(&stream).chunks(read) {
                        while let Some(frame) = deframer.next_frame(&mut input).expect("frames") {
                            black_box(frame.body);
                            frames += 1;
                        }
                    }
                    assert_eq!(frames, (1 << 20) / size);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, ways, deframe);
criterion_main!(benches);
