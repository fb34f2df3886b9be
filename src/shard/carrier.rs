//! How a driver reads: bytes are lent to the router for as long as it looks at them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What carries a connection.
pub(super) trait Carrier: AsyncWrite + Unpin {
    /// The bytes that have come in: in `buffer`, or where the transport has them already. None at all is the end.
    fn poll_lend<'b>(
        &'b mut self,
        context: &mut Context<'_>,
        buffer: &'b mut [u8],
    ) -> Poll<io::Result<&'b [u8]>>;

    /// The first `count` bytes that were lent have been seen.
    fn consume(&mut self, count: usize);
}

/// A socket has no buffer of its own.
impl Carrier for TcpStream {
    fn poll_lend<'b>(
        &'b mut self,
        context: &mut Context<'_>,
        buffer: &'b mut [u8],
    ) -> Poll<io::Result<&'b [u8]>> {
        let mut filled = ReadBuf::new(&mut *buffer);
        ready!(Pin::new(self).poll_read(context, &mut filled))?;
        let count = filled.filled().len();
        Poll::Ready(Ok(buffer.get(..count).unwrap_or_default()))
    }

    fn consume(&mut self, _: usize) {}
}

/// TLS has decrypted a record where it stands. Boxed, because its state is large.
impl<S: AsyncBufRead + AsyncWrite + Unpin> Carrier for Box<S> {
    fn poll_lend<'b>(&'b mut self, context: &mut Context<'_>, _: &'b mut [u8]) -> Poll<io::Result<&'b [u8]>> {
        Pin::new(&mut **self).poll_fill_buf(context)
    }

    fn consume(&mut self, count: usize) {
        Pin::new(&mut **self).consume(count);
    }
}
