//! SASL frames: any body is read or refused, and what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linkrouterd::amqp::display::{Direction, LIMIT, Trace};
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::header::ProtocolHeader;
use linkrouterd::amqp::sasl::SaslFrame;
use linkrouterd::amqp::serial::Channel;

fuzz_target!(|body: &[u8]| {
    if let Some(header) = body.first_chunk::<8>() {
        let known = ProtocolHeader::parse(*header).map(ProtocolHeader::bytes);
        assert!(known.is_none_or(|bytes| bytes == *header));
    }
    let frame = Frame {
        frame_type: FrameType::Sasl,
        channel: Channel(0),
        body,
    };
    assert!(Trace::frame(Direction::Sent, frame).to_string().len() <= LIMIT);
    let Ok(read) = SaslFrame::parse(body) else { return };
    let mut out = Vec::new();
    read.write(&mut out);
    let frame = Frame::parse(&out).expect("a frame");
    assert_eq!(frame.frame_type, FrameType::Sasl);
    // An empty list of mechanisms is written as an array, which reads the same.
    assert_eq!(
        SaslFrame::parse(frame.body).expect("what is written can be read"),
        read
    );
});
