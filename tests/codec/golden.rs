//! Conversations of Proton, rhea and fe2o3-amqp, recorded by `tests/golden/capture/record.py`, frame by frame.
//!
//! `NAME.hex` has one protocol header or frame per line, `NAME.txt` its trace. The traces of the Proton and fe2o3-amqp
//! recordings agree with the trace that Proton 0.37 itself printed of them, except for what we hide.

use linkrouterd::amqp::deframer::Deframer;
use linkrouterd::amqp::display::{Direction, Trace};
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::header::ProtocolHeader;
use linkrouterd::amqp::performative::Performative;
use linkrouterd::amqp::relay::{self, SessionFlow, Written};
use linkrouterd::amqp::sasl::SaslFrame;

/// Set to anything to write the traces instead of comparing them; then read the difference.
const UPDATE: &str = "UPDATE_GOLDEN";

const NAMES: [&str; 4] = ["fe2o3", "proton", "rhea", "types"];

/// One line of a recording: who sent it, and the protocol header or frame.
struct Recorded {
    direction: Direction,
    bytes: Vec<u8>,
}

impl Recorded {
    fn header(&self) -> Option<[u8; 8]> {
        if self.bytes.starts_with(b"AMQP") {
            self.bytes.as_slice().try_into().ok()
        } else {
            None
        }
    }

    fn frame(&self) -> Option<Frame<'_>> {
        match self.header() {
            Some(_) => None,
            None => Some(Frame::parse(&self.bytes).expect("a frame")),
        }
    }

    fn trace(&self) -> String {
        match (self.header(), self.frame()) {
            (Some(header), _) => Trace::header(self.direction, header).to_string(),
            (_, Some(frame)) => Trace::frame(self.direction, frame).to_string(),
            _ => unreachable!("a line is a header or a frame"),
        }
    }
}

fn path(name: &str, extension: &str) -> String {
    format!("{}/tests/golden/{name}.{extension}", env!("CARGO_MANIFEST_DIR"))
}

fn recording(name: &str) -> Vec<Recorded> {
    let text = std::fs::read_to_string(path(name, "hex")).expect("a recording");
    text.lines()
        .map(|line| {
            let (mark, digits) = line.split_once(' ').expect("a mark and the bytes");
            let direction = if mark == ">" {
                Direction::Sent
            } else {
                Direction::Received
            };
            Recorded {
                direction,
                bytes: bytes_of_hex(digits),
            }
        })
        .collect()
}

fn bytes_of_hex(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect::<Option<_>>()
        .expect("hexadecimal digits")
}

fn recorded_frames() -> Vec<(String, Recorded)> {
    let all = NAMES.into_iter().flat_map(recording);
    all.filter(|recorded| recorded.header().is_none())
        .map(|recorded| (recorded.trace(), recorded))
        .collect()
}

/// Every recorded frame.
pub(crate) fn recorded_bytes() -> Vec<Vec<u8>> {
    recorded_frames()
        .into_iter()
        .map(|(_, recorded)| recorded.bytes)
        .collect()
}

#[test]
fn traces_are_as_reviewed() {
    for name in NAMES {
        let traces: String = recording(name)
            .iter()
            .map(|recorded| recorded.trace() + "\n")
            .collect();
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(path(name, "txt"), &traces).expect("a writable tree");
        }
        let reviewed = std::fs::read_to_string(path(name, "txt")).expect("the reviewed traces");
        for (number, (now, then)) in traces.lines().zip(reviewed.lines()).enumerate() {
            assert_eq!(now, then, "line {} of {name}", number + 1);
        }
        assert_eq!(
            traces.lines().count(),
            reviewed.lines().count(),
            "lines of {name}"
        );
    }
}

#[test]
fn traces_show_no_secrets() {
    let all: String = recorded_frames().into_iter().map(|(trace, _)| trace).collect();
    // What the recorded clients sent: a PLAIN password, a token, message bodies, and annotations of a modified.
    for secret in [
        "device\\x00golden",
        "sig=zzz",
        "fire and forget",
        "message 1",
        "command",
        "x-opt-tries",
    ] {
        assert!(
            !all.replace("\"commands\"", "").contains(secret),
            "the trace shows {secret:?}"
        );
    }
    assert!(all.contains("@sasl-init(65) [mechanism=:PLAIN, initial-response=(14 bytes)"));
}

#[test]
fn frames_are_read() {
    for (trace, recorded) in recorded_frames() {
        let frame = recorded.frame().expect("a frame");
        match frame.frame_type {
            FrameType::Amqp if frame.body.is_empty() => {}
            FrameType::Amqp => {
                Performative::parse(frame.body).unwrap_or_else(|error| panic!("{error}: {trace}"));
            }
            FrameType::Sasl => {
                SaslFrame::parse(frame.body).unwrap_or_else(|error| panic!("{error}: {trace}"));
            }
        }
    }
}

#[test]
fn any_cut_of_the_stream_gives_the_same_frames() {
    for name in NAMES {
        for direction in [Direction::Received, Direction::Sent] {
            let units: Vec<Vec<u8>> = recording(name)
                .into_iter()
                .filter(|recorded| recorded.direction == direction)
                .map(|recorded| recorded.bytes)
                .collect();
            let stream = units.concat();
            for chunk in [1, 2, 7, 8, 9, 64, 1000, stream.len().max(1)] {
                assert_eq!(units_of(&stream, chunk), units, "{name} in pieces of {chunk}");
            }
        }
    }
}

/// Cuts the stream as a connection does: a header, SASL frames up to the outcome, a header, AMQP frames.
fn units_of(stream: &[u8], chunk: usize) -> Vec<Vec<u8>> {
    let mut deframer = Deframer::new(65_536);
    let mut units = Vec::new();
    let mut is_header_next = stream.starts_with(b"AMQP");
    let mut is_sasl = false;
    for mut input in stream.chunks(chunk) {
        loop {
            if is_header_next {
                let Some(header) = deframer.next_header(&mut input) else {
                    break;
                };
                is_sasl = ProtocolHeader::parse(header) == Some(ProtocolHeader::Sasl);
                is_header_next = false;
                units.push(header.to_vec());
            } else {
                let Some(frame) = deframer.next_frame(&mut input).expect("frames") else {
                    break;
                };
                // The dialer's only SASL frame here is its init; the listener's last one is the outcome.
                is_header_next = is_sasl
                    && matches!(
                        SaslFrame::parse(frame.body),
                        Ok(SaslFrame::Init { .. } | SaslFrame::Outcome(_))
                    );
                units.push(encoded(&frame));
            }
        }
    }
    assert!(!deframer.is_partial());
    units
}

/// The frame as it was: none of the recorded ones has an extended header.
fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    linkrouterd::amqp::frame::write_frame(&mut bytes, frame.frame_type, frame.channel, |out| {
        out.extend_from_slice(frame.body);
    });
    bytes
}

#[test]
fn what_is_carried_stays_the_same() {
    for (trace, recorded) in recorded_frames() {
        let frame = recorded.frame().expect("a frame");
        if frame.frame_type == FrameType::Sasl || frame.body.is_empty() {
            continue;
        }
        let mut out = Vec::new();
        match Performative::parse(frame.body).expect("a performative") {
            Performative::Attach(attach) => {
                let (handle, role) = (attach.handle, attach.role);
                relay::write_attach(&mut out, frame.channel, attach.name, handle, role, attach.tail);
            }
            Performative::Flow(flow) => {
                let session = SessionFlow {
                    next_incoming_id: flow.next_incoming_id,
                    incoming_window: flow.incoming_window,
                    next_outgoing_id: flow.next_outgoing_id,
                    outgoing_window: flow.outgoing_window,
                };
                let link = flow.link.map(|link| (link.handle, link.tail));
                relay::write_flow(&mut out, frame.channel, session, link);
            }
            Performative::Transfer(transfer) => {
                let written = relay::write_transfer(
                    &mut out,
                    frame.channel,
                    transfer.handle,
                    transfer.delivery_id,
                    &transfer,
                    0,
                    65_536,
                );
                assert_eq!(written, Written::All);
            }
            Performative::Disposition(state) => {
                let (first, last) = (state.first, state.last);
                relay::write_disposition(&mut out, frame.channel, state.role, first, last, state.tail);
            }
            Performative::Detach(detach) => {
                relay::write_detach(&mut out, frame.channel, detach.handle, detach.tail);
            }
            Performative::Open(_)
            | Performative::Begin(_)
            | Performative::End(_)
            | Performative::Close(_) => {
                continue;
            }
        }
        let carried = Frame::parse(&out).expect("a frame");
        // A `last` equal to `first` is left out.
        let trace = trace
            .replace("first=0x0, last=0x0", "first=0x0")
            .replace("first=0x1, last=0x1", "first=0x1");
        assert_eq!(Trace::frame(recorded.direction, carried).to_string(), trace);
    }
}
