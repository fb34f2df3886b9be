//! Whatever the bytes: no panic, no endless loop, bounded text, and readers that agree with each other.

use linkrouterd::amqp::DecodeError;
use linkrouterd::amqp::condition::ErrorView;
use linkrouterd::amqp::deframer::Deframer;
use linkrouterd::amqp::display::{Direction, LIMIT, Trace};
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::performative::Performative;
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::sasl::SaslFrame;
use linkrouterd::amqp::serial::Channel;
use linkrouterd::amqp::terminus::Terminus;
use linkrouterd::amqp::value::Value;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::golden::recorded_bytes;

/// Noise, and noise of the kind that gets far: format codes and small numbers.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let codes: Vec<u8> = (0x00..=0x18)
        .chain(0x40..=0x56)
        .chain([0x60, 0x70, 0x71, 0x80])
        .collect();
    let compounds = select(vec![
        0x00, 0x53, 0xa0, 0xa1, 0xa3, 0xb1, 0xc0, 0xc1, 0xd0, 0xd1, 0xe0, 0xf0,
    ]);
    prop_oneof![
        vec(any::<u8>(), 0..200),
        vec(prop_oneof![select(codes), compounds], 0..100)
    ]
}

/// A recorded frame's body with a few bytes changed, and perhaps cut.
fn damaged_body() -> impl Strategy<Value = Vec<u8>> {
    let bodies: Vec<Vec<u8>> = recorded_bytes()
        .into_iter()
        .map(|frame| frame[8..].to_vec())
        .collect();
    (
        select(bodies),
        vec((any::<Index>(), any::<u8>()), 1..4),
        any::<Index>(),
    )
        .prop_map(|(mut body, changes, cut)| {
            if !body.is_empty() {
                for (index, byte) in changes {
                    let index = index.index(body.len().min(120));
                    body[index] = byte;
                }
                body.truncate(body.len() - cut.index(body.len()) / 4);
            }
            body
        })
}

fn read_everything(bytes: &[u8]) -> Result<(), TestCaseError> {
    let _ = Performative::parse(bytes);
    let _ = SaslFrame::parse(bytes);
    let _ = Terminus::parse(bytes);
    let _ = ErrorView::parse(bytes);
    let _ = Reader::new(bytes).symbols();
    let mut checked = Reader::new(bytes);
    let well_formed = checked.skip_checked();
    let mut read = Reader::new(bytes);
    match Value::read(&mut read) {
        Ok(value) => {
            prop_assert!(well_formed.is_ok(), "{value:?} is refused: {well_formed:?}");
            prop_assert_eq!(read.rest(), checked.rest());
            let mut skipped = Reader::new(bytes);
            prop_assert_eq!(skipped.skip(), well_formed);
        }
        // More elements without bytes than we would build a tree for.
        Err(DecodeError::Range) => {}
        Err(error) => prop_assert!(well_formed.is_err(), "{error}, but the check passes"),
    }
    for frame_type in [FrameType::Amqp, FrameType::Sasl] {
        let text = Trace::frame(
            Direction::Received,
            Frame {
                frame_type,
                channel: Channel(7),
                body: bytes,
            },
        )
        .to_string();
        prop_assert!(text.len() <= LIMIT);
        prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
    }
    Ok(())
}

/// A descriptor may be described itself (AMQP 1.0 part 1, §1.2).
#[test]
fn a_described_descriptor_is_one_value_to_every_reader() -> Result<(), TestCaseError> {
    let value = [0x00, 0x00, 0x70, 0, 0, 0, 0, 0x53, 0x00, 0x40];
    prop_assert!(Reader::new(&value).skip_checked().is_ok());
    read_everything(&value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn readers_survive_noise(bytes in bytes()) {
        read_everything(&bytes)?;
    }

    #[test]
    fn readers_survive_damage(bytes in damaged_body()) {
        read_everything(&bytes)?;
    }

    #[test]
    fn the_deframer_survives_noise(bytes in vec(any::<u8>(), 0..300), sizes in vec(0..40u8, 0..20), chunk in 1..64usize) {
        // Some of the noise is given plausible sizes.
        let mut stream = Vec::new();
        for size in sizes {
            stream.extend([0, 0, 0, size, 2, 0, 0, 0]);
            stream.resize(stream.len() + usize::from(size.saturating_sub(8)), 0x40);
        }
        stream.extend(bytes);
        let mut deframer = Deframer::new(512);
        'stream: for mut input in stream.chunks(chunk) {
            loop {
                let before = input.len();
                match deframer.next_frame(&mut input) {
                    Ok(Some(frame)) => prop_assert!(frame.body.len() <= 504),
                    Ok(None) => { prop_assert!(input.is_empty()); break }
                    Err(_) => break 'stream,
                }
                prop_assert!(input.len() < before);
            }
        }
    }
}
