//! Every reader of values survives every body, and what one accepts the others accept.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linkrouterd::amqp::DecodeError;
use linkrouterd::amqp::condition::ErrorView;
use linkrouterd::amqp::display::{Direction, LIMIT, Trace};
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::performative::Performative;
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::serial::Channel;
use linkrouterd::amqp::terminus::Terminus;
use linkrouterd::amqp::value::Value;

fuzz_target!(|body: &[u8]| {
    let frame = Frame {
        frame_type: FrameType::Amqp,
        channel: Channel(0),
        body,
    };
    let text = Trace::frame(Direction::Received, frame).to_string();
    assert!(text.len() <= LIMIT && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    match Performative::parse(body) {
        Ok(performative) => {
            assert!(!is_malformed(&text), "{text}");
            follow(&performative);
        }
        Err(_) => {
            let _ = Terminus::parse(body);
            let _ = ErrorView::parse(body);
        }
    }
    let mut checked = Reader::new(body);
    let well_formed = checked.skip_checked();
    let mut read = Reader::new(body);
    match Value::read(&mut read) {
        Ok(value) => {
            assert!(well_formed.is_ok());
            assert_eq!(read.rest(), checked.rest());
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            let again = Value::decode(&bytes).expect("what was read can be written and read");
            // Not the trees: a NaN differs from itself.
            let mut bytes_again = Vec::new();
            again.encode(&mut bytes_again);
            assert_eq!(bytes, bytes_again);
        }
        Err(DecodeError::Range) => {}
        Err(error) => assert!(well_formed.is_err(), "{error}"),
    }
});

fn follow(performative: &Performative<'_>) {
    match performative {
        Performative::Attach(attach) => {
            for terminus in [attach.source, attach.target].into_iter().flatten() {
                let _ = Terminus::parse(terminus).map(|terminus| terminus.survives_disconnect());
            }
        }
        Performative::Detach(detach) => {
            let _ = detach.error.map(ErrorView::parse);
        }
        Performative::End(error) | Performative::Close(error) => {
            let _ = error.map(ErrorView::parse);
        }
        _ => {}
    }
}

/// Whether the trace ends with its complaint; a peer's own text is never the last of it.
fn is_malformed(text: &str) -> bool {
    let complaint = text.rsplit_once("(malformed at byte ");
    complaint
        .and_then(|(_, end)| end.strip_suffix(')'))
        .is_some_and(|at| at.parse::<usize>().is_ok())
}
