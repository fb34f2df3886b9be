//! Any cut of a stream gives the same frames, and the same error at the same place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linkrouterd::amqp::deframer::Deframer;
use linkrouterd::amqp::frame::FrameError;

const MAX_FRAME_SIZE: u32 = 1024;

type Found = (Vec<(u16, Vec<u8>)>, Option<FrameError>);

fn frames(stream: &[u8], chunk: usize) -> Found {
    let mut deframer = Deframer::new(MAX_FRAME_SIZE);
    let mut found = Vec::new();
    for mut input in stream.chunks(chunk) {
        loop {
            let before = input.len();
            match deframer.next_frame(&mut input) {
                Ok(Some(frame)) => found.push((frame.channel.0, frame.body.to_vec())),
                Ok(None) => break assert!(input.is_empty()),
                Err(error) => return (found, Some(error)),
            }
            assert!(input.len() < before);
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&chunk, stream)) = data.split_first() else {
        return;
    };
    if !stream.is_empty() {
        assert_eq!(
            frames(stream, usize::from(chunk).max(1)),
            frames(stream, stream.len())
        );
    }
});
