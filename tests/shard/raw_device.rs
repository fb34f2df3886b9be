//! A device that sends bytes and looks at frames by their descriptor alone.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// AMQP 1.0 part 2, §2.2.
pub(crate) const HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
pub(crate) const OPEN: u8 = 0x10;
pub(crate) const BEGIN: u8 = 0x11;
pub(crate) const CLOSE: u8 = 0x18;

/// A frame on channel 0 around a performative (AMQP 1.0 part 2, §2.3).
pub(crate) fn frame(performative: &[u8]) -> Vec<u8> {
    let size = u32::try_from(8 + performative.len()).unwrap();
    [&size.to_be_bytes(), [2, 0, 0, 0].as_slice(), performative].concat()
}

/// `open` with nothing but a container-id.
pub(crate) fn open(container: &str) -> Vec<u8> {
    let length = u8::try_from(container.len()).unwrap();
    let head = [0x00, 0x53, OPEN, 0xc0, length + 3, 1, 0xa1, length];
    frame(&[&head, container.as_bytes()].concat())
}

/// `begin` with its three mandatory fields: next-outgoing-id 0, windows 16.
pub(crate) fn begin() -> Vec<u8> {
    frame(&[0x00, 0x53, BEGIN, 0xc0, 7, 4, 0x40, 0x43, 0x52, 16, 0x52, 16])
}

/// `close` without an error.
pub(crate) fn close() -> Vec<u8> {
    frame(&[0x00, 0x53, CLOSE, 0x45])
}

/// See the module.
pub(crate) struct RawDevice {
    pub(crate) stream: TcpStream,
}

impl RawDevice {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        RawDevice { stream }
    }

    /// Connects and opens.
    pub(crate) async fn opened(address: SocketAddr) -> Self {
        let mut device = RawDevice::connect(address).await;
        device.send(&[&HEADER[..], &open("device")].concat()).await;
        device.expect_header().await;
        device.expect(OPEN).await;
        device
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn expect_header(&mut self) {
        assert_eq!(self.take(8).await.unwrap(), HEADER);
    }

    /// The next frame must carry this performative; its body.
    pub(crate) async fn expect(&mut self, descriptor: u8) -> Vec<u8> {
        let body = self.frame().await.unwrap();
        assert_eq!(&body[..2], [0x00, 0x53], "{body:02x?}");
        assert_eq!(body[2], descriptor, "{body:02x?}");
        body
    }

    /// The body of the next frame that has one.
    pub(crate) async fn frame(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let head = self.take(8).await?;
            let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let body = self.take(size - 8).await?;
            if !body.is_empty() {
                return Ok(body);
            }
        }
    }

    /// The peer must end its side now, with nothing more to say.
    pub(crate) async fn expect_end(&mut self) {
        assert_eq!(
            self.take(1).await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        timeout(PATIENCE, self.stream.read_exact(&mut bytes))
            .await
            .expect("nothing came")?;
        Ok(bytes)
    }
}
