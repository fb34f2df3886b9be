//! Frames over a byte stream, one by one, in the third-party codec's types.
//!
//! For both ends of a test that must see or say exactly what is on the wire: the IoT Hub stand-in, and devices that
//! die in the middle of a delivery. Reading is cancel-safe, writing is done by a task of its own, so a peer that does
//! not read never stops us from reading.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fe2o3_amqp::types::performatives::Performative;
use serde_amqp::de::Deserializer;
use serde_amqp::read::IoReader;
use serde_amqp::serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// AMQP 1.0 part 2, §2.2: `AMQP` 0 1.0.0.
pub(crate) const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
/// AMQP 1.0 part 5, §5.3.1: `AMQP` 3 1.0.0.
pub(crate) const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

const FRAME_HEADER: usize = 8;
const AMQP_FRAME: u8 = 0;
const SASL_FRAME: u8 = 1;
/// What the writer hands to the transport at once.
const BATCH: usize = 64 * 1024;

/// Any transport.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// One frame as received.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A heartbeat.
    Empty,
    Amqp {
        channel: u16,
        performative: Performative,
        payload: Bytes,
    },
    /// A SASL frame's body, still encoded.
    Sasl(Bytes),
}

/// Splits a transport into a reader and a writer of frames.
pub(crate) fn split(stream: Box<dyn Stream>, max_frame_size: usize) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(stream);
    (
        FrameReader {
            read,
            input: BytesMut::new(),
            max_frame_size,
        },
        FrameWriter::start(write),
    )
}

/// The receiving side.
pub(crate) struct FrameReader {
    read: ReadHalf<Box<dyn Stream>>,
    input: BytesMut,
    max_frame_size: usize,
}

impl FrameReader {
    /// The next protocol header.
    pub(crate) async fn header(&mut self) -> io::Result<[u8; 8]> {
        while self.input.len() < FRAME_HEADER {
            self.fill().await?;
        }
        let mut header = [0; FRAME_HEADER];
        self.input.copy_to_slice(&mut header);
        Ok(header)
    }

    /// The next frame.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the peer is gone, in the middle of a frame or not; `InvalidData` for a frame larger than
    /// allowed, or one that the codec does not accept.
    pub(crate) async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.read.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn cut(&mut self) -> io::Result<Option<Frame>> {
        let Some(size) = self
            .input
            .first_chunk::<4>()
            .map(|bytes| u32::from_be_bytes(*bytes) as usize)
        else {
            return Ok(None);
        };
        if size < FRAME_HEADER || size > self.max_frame_size {
            let limit = self.max_frame_size;
            return Err(invalid(format!(
                "a frame of {size} bytes where {limit} are allowed"
            )));
        }
        if self.input.len() < size {
            return Ok(None);
        }
        let mut frame = self.input.split_to(size);
        let (doff, kind) = (usize::from(frame[4]) * 4, frame[5]);
        let channel = u16::from_be_bytes([frame[6], frame[7]]);
        if doff < FRAME_HEADER || doff > size {
            return Err(invalid(format!("a frame with data offset {doff}")));
        }
        frame.advance(doff);
        match kind {
            AMQP_FRAME if frame.is_empty() => Ok(Some(Frame::Empty)),
            AMQP_FRAME => {
                let mut deserializer = Deserializer::new(IoReader::new((&mut frame).reader()));
                let performative = Performative::deserialize(&mut deserializer).map_err(undecodable)?;
                drop(deserializer);
                Ok(Some(Frame::Amqp {
                    channel,
                    performative,
                    payload: frame.freeze(),
                }))
            }
            SASL_FRAME => Ok(Some(Frame::Sasl(frame.freeze()))),
            other => Err(invalid(format!("a frame of type {other}"))),
        }
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn undecodable(error: serde_amqp::Error) -> io::Error {
    invalid(error.to_string())
}

/// The sending side: encodes at once, writes in the background, in order.
pub(crate) struct FrameWriter {
    queue: mpsc::UnboundedSender<Bytes>,
    task: JoinHandle<()>,
    held: Arc<AtomicBool>,
}

impl FrameWriter {
    fn start(write: WriteHalf<Box<dyn Stream>>) -> Self {
        let (queue, outgoing) = mpsc::unbounded_channel();
        Self {
            queue,
            task: tokio::spawn(write_all(write, outgoing)),
            held: Arc::new(AtomicBool::new(false)),
        }
    }

    /// From now on nothing is sent any more, though the transport stays: a peer behind a dead network.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Queues raw bytes. A transport that has failed is noticed by the reader, not here.
    pub(crate) fn raw(&self, bytes: impl Into<Bytes>) {
        if !self.held.load(Ordering::Relaxed) {
            let _ = self.queue.send(bytes.into());
        }
    }

    /// Queues an empty frame.
    pub(crate) fn heartbeat(&self) {
        self.raw(Bytes::from_static(&[0, 0, 0, 8, 2, AMQP_FRAME, 0, 0]));
    }

    /// Queues a performative, with what follows it in a transfer.
    pub(crate) fn send(&self, channel: u16, performative: &Performative, payload: &[u8]) -> io::Result<()> {
        let body = encode(performative)?;
        self.raw(frame(AMQP_FRAME, channel, &body, payload));
        Ok(())
    }

    /// Queues a SASL frame.
    pub(crate) fn send_sasl(&self, body: &impl Serialize) -> io::Result<()> {
        self.raw(frame(SASL_FRAME, 0, &encode(body)?, &[]));
        Ok(())
    }

    /// Drops the transport at once, whatever is still to be written.
    pub(crate) fn abort(self) {
        self.task.abort();
    }

    /// Writes what is queued, then shuts the transport's sending side.
    pub(crate) async fn finish(self) {
        drop(self.queue);
        let _ = self.task.await;
    }
}

async fn write_all(mut write: WriteHalf<Box<dyn Stream>>, mut outgoing: mpsc::UnboundedReceiver<Bytes>) {
    let mut batch = BytesMut::with_capacity(BATCH);
    while let Some(bytes) = outgoing.recv().await {
        batch.put(bytes);
        while batch.len() < BATCH
            && let Ok(bytes) = outgoing.try_recv()
        {
            batch.put(bytes);
        }
        if write.write_all(&batch).await.is_err() || write.flush().await.is_err() {
            return;
        }
        batch.clear();
    }
    let _ = write.shutdown().await;
}

fn frame(kind: u8, channel: u16, body: &[u8], payload: &[u8]) -> Bytes {
    let size = FRAME_HEADER + body.len() + payload.len();
    let mut frame = BytesMut::with_capacity(size);
    frame.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
    frame.put_slice(&[2, kind]);
    frame.put_u16(channel);
    frame.put_slice(body);
    frame.put_slice(payload);
    frame.freeze()
}

/// The encoded form of any AMQP value.
pub(crate) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_amqp::to_vec(value).map_err(undecodable)
}

/// The frame of a performative without payload.
pub(crate) fn frame_of(channel: u16, performative: &Performative) -> io::Result<Vec<u8>> {
    Ok(frame(AMQP_FRAME, channel, &encode(performative)?, &[]).to_vec())
}

/// How many bytes of payload fit behind `performative` in a frame of `max_frame_size`.
pub(crate) fn room_behind(performative: &Performative, max_frame_size: usize) -> io::Result<usize> {
    Ok(max_frame_size.saturating_sub(FRAME_HEADER + encode(performative)?.len()))
}
