//! AMQP over one transport, driven by hand: the endpoint's own state machine, and what it has to tell, in order.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::amqp::display::Encoded;
use crate::amqp::performative::Open;
use crate::amqp::serial::Channel;
use crate::endpoint::ConnectionError;
use crate::endpoint::connection::Connection;
use crate::endpoint::event::{Event, Fault};
use crate::endpoint::limits::CLOSE_TIMEOUT;
use crate::router::reason_of_close;

const READ_BUFFER: usize = 16 * 1024;
/// Longest text of a peer's that is shown.
const TEXT_SHOWN: usize = 256;
/// How long the transport may take to be shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// What the peer has done.
#[derive(Debug)]
pub(super) enum News {
    /// It offers these mechanisms, and one was chosen.
    Offered(Vec<String>),
    /// It has taken what we authenticate with.
    Admitted,
    /// It has opened the connection.
    Opened(PeerOpen),
    /// It has begun our session, too.
    Begun,
    /// It has closed the connection; why, if it says so.
    Closed(Option<String>),
}

/// The peer's open, in words.
#[derive(Debug)]
pub(super) struct PeerOpen {
    pub(super) container_id: String,
    pub(super) hostname: Option<String>,
    pub(super) max_frame_size: u32,
    pub(super) channel_max: u16,
    pub(super) idle_time_out: Option<Duration>,
    /// The fields of free form that it has, by name.
    pub(super) others: Vec<(&'static str, String)>,
}

impl PeerOpen {
    fn new(open: &Open<'_>) -> Self {
        let others = [
            ("offered-capabilities", open.offered_capabilities),
            ("desired-capabilities", open.desired_capabilities),
            ("properties", open.properties),
        ];
        PeerOpen {
            container_id: excerpt(open.container_id),
            hostname: open.hostname.map(excerpt),
            max_frame_size: open.max_frame_size,
            channel_max: open.channel_max,
            idle_time_out: open
                .idle_time_out
                .map(|millis| Duration::from_millis(millis.into())),
            others: others
                .into_iter()
                .filter_map(|(name, encoded)| Some((name, Encoded(encoded?).to_string())))
                .collect(),
        }
    }
}

/// How a conversation fails.
#[derive(Debug)]
pub(super) enum Failure {
    /// What the peer says makes no sense, or is a refusal.
    Fault(ConnectionError),
    /// The transport broke.
    Lost(io::Error),
    /// The peer has hung up.
    Ended,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    Answered,
    Unanswered,
}

/// See the module.
pub(super) struct Exchange<S> {
    transport: S,
    connection: Connection,
    /// Our session, once it is asked for.
    session: Option<Channel>,
    input: Box<[u8]>,
    news: VecDeque<News>,
    failure: Option<Failure>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<S> {
    pub(super) fn new(transport: S, connection: Connection) -> Self {
        Exchange {
            transport,
            connection,
            session: None,
            input: vec![0; READ_BUFFER].into_boxed_slice(),
            news: VecDeque::new(),
            failure: None,
        }
    }

    /// The mechanism chosen.
    pub(super) fn sasl_mechanism(&self) -> &'static str {
        self.connection.sasl_mechanism().unwrap_or("none")
    }

    /// Asks for a session, which a peer that is about to close will not begin.
    pub(super) fn begin(&mut self) {
        match self.connection.begin_session(true) {
            Ok(channel) => self.session = Some(channel),
            Err(error) => self.failure = Some(Failure::Fault(error)),
        }
    }

    /// The next that the peer does. Safe to give up waiting for.
    pub(super) async fn next(&mut self) -> Result<News, Failure> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if let Err(failure) = self.turn().await {
                self.failure = Some(failure);
            }
        }
    }

    /// Closes the connection, waits a while for the peer to do so, too, and hangs up.
    pub(super) async fn close(mut self) -> Farewell {
        self.connection.close(None, Instant::now().into_std());
        let answer = timeout(CLOSE_TIMEOUT, async {
            while !self.connection.is_over() {
                self.turn().await?;
                // Nobody asks for it any more, and the peer may go on for a while.
                self.news.clear();
            }
            Ok::<_, Failure>(())
        });
        let farewell = match answer.await {
            Ok(Ok(())) => Farewell::Answered,
            Ok(Err(_)) | Err(_) => Farewell::Unanswered,
        };
        self.hang_up().await;
        farewell
    }

    /// Hangs up on a peer with which something is wrong; it is told, as far as it can be.
    pub(super) async fn give_up(mut self) {
        self.connection.close(None, Instant::now().into_std());
        self.hang_up().await;
    }

    async fn hang_up(&mut self) {
        // Courtesy; whoever has hung up already needs none.
        let _ = timeout(SHUTDOWN_LIMIT, async {
            self.flush().await?;
            self.transport.shutdown().await
        })
        .await;
    }

    /// Writes what there is to write, then reads once.
    async fn turn(&mut self) -> Result<(), Failure> {
        let written = self.flush().await;
        let count = match self.transport.read(&mut self.input).await {
            Ok(0) => return Err(Failure::Ended),
            Ok(count) => count,
            // Many hang up so.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Failure::Ended),
            Err(error) => return Err(Failure::Lost(error)),
        };
        self.take_in(count)?;
        // A peer that could not be written to any more has had its last word.
        match written {
            Err(error) if self.news.is_empty() => Err(Failure::Lost(error)),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        while !self.connection.outbox().is_empty() {
            let count = self.transport.write(self.connection.outbox().as_slice()).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.connection.transmitted(count, Instant::now().into_std());
        }
        self.transport.flush().await
    }

    fn take_in(&mut self, count: usize) -> Result<(), Failure> {
        let mut input = &self.input[..count];
        let mut deframer = self.connection.take_deframer(Instant::now().into_std());
        let fault = loop {
            match self.connection.next_event(&mut deframer, &mut input) {
                Ok(None) => break None,
                Ok(Some(event)) => self.news.extend(news_of(&event, self.session)),
                Err(Fault::Connection(error)) => break Some(error),
                // Nothing of ours is on a session.
                Err(Fault::Session(..)) => {}
            }
        };
        self.connection.put_back(deframer);
        match fault {
            Some(error) => {
                self.connection.fail(&error, Instant::now().into_std());
                Err(Failure::Fault(error))
            }
            None => Ok(()),
        }
    }
}

fn news_of(event: &Event<'_>, ours: Option<Channel>) -> Option<News> {
    match event {
        Event::Offered(mechanisms) => Some(News::Offered(
            mechanisms.iter().map(|name| excerpt(name)).collect(),
        )),
        Event::Admitted => Some(News::Admitted),
        Event::Opened(open) => Some(News::Opened(PeerOpen::new(open))),
        // A peer may begin sessions of its own.
        Event::Begun { channel } => (Some(*channel) == ours).then_some(News::Begun),
        Event::Closed { error } => Some(News::Closed(error.and_then(reason_of_close))),
        Event::Consumed
        | Event::Login { .. }
        | Event::Attach { .. }
        | Event::Flow { .. }
        | Event::Transfer { .. }
        | Event::Disposition { .. }
        | Event::Detach { .. }
        | Event::Ended { .. } => None,
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(TEXT_SHOWN).collect()
}

impl fmt::Display for PeerOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container-id {:?}", self.container_id)?;
        if let Some(hostname) = &self.hostname {
            write!(f, ", hostname {hostname:?}")?;
        }
        match self.max_frame_size {
            u32::MAX => f.write_str(", max-frame-size unlimited")?,
            size => write!(f, ", max-frame-size {size}")?,
        }
        let sessions = u32::from(self.channel_max) + 1;
        write!(
            f,
            ", channel-max {} ({sessions} session{})",
            self.channel_max,
            if sessions == 1 { "" } else { "s" }
        )?;
        match self.idle_time_out {
            Some(limit) if !limit.is_zero() => write!(f, ", idle-time-out {} s", limit.as_secs_f32()),
            _ => f.write_str(", no idle-time-out"),
        }
    }
}
