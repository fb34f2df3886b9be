//! One device on a bare socket: it goes as far as it is told to, and then does nothing, or leaves.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::Failure;
use super::cbs;
use super::wire::{self, Input, Role, SessionFlow, Termini};

/// How long the daemon may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

const CHANNEL: u16 = 0;
/// The names of the links, by handle.
const LINKS: [&str; 3] = ["telemetry", "cbs-sender", "cbs-receiver"];
const TELEMETRY: u32 = 0;
const CBS_SENDER: u32 = 1;
const CBS_RECEIVER: u32 = 2;

/// How far a device goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// A connection that is open.
    Connection,
    /// And a session, and a link to the hub that has credit.
    Link,
    /// And, before the link, a token at the hub, with the two links to `$cbs` that it went over kept.
    Token,
}

/// How a device leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It closes its connection.
    Closing,
    /// It closes its socket.
    Ending,
    /// As after a power cut, when somebody answers for it: a reset.
    Vanishing,
}

/// A device that is connected.
pub(crate) struct Visitor {
    stream: TcpStream,
    input: Input,
    output: Vec<u8>,
    heard: Heard,
}

/// What the daemon has said.
#[derive(Debug, Default)]
struct Heard {
    header: bool,
    open: bool,
    /// The daemon's handle of each link.
    handles: [Option<u32>; LINKS.len()],
    /// Which of them have credit.
    credit: [bool; LINKS.len()],
    token: Option<bool>,
    settled: u32,
    closed: bool,
}

impl Visitor {
    /// Connects to the port from `source`, so that ports do not run out, and goes as far as `reach`.
    pub(crate) async fn connect(
        port: u16,
        source: Ipv4Addr,
        container: &str,
        id: &str,
        reach: Reach,
    ) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        stream.set_nodelay(true)?;
        let mut device = Self {
            stream,
            input: Input::default(),
            output: Vec::new(),
            heard: Heard::default(),
        };
        device.output.extend_from_slice(&wire::AMQP_HEADER);
        wire::open(&mut device.output, container);
        device.until("open", |heard| heard.open).await?;
        if reach == Reach::Connection {
            return Ok(device);
        }
        wire::begin(&mut device.output, CHANNEL, None);
        if reach == Reach::Token {
            device.put_token(id).await?;
        }
        device.attach(TELEMETRY, Role::Sender, &format!("devices/{id}/messages/events"));
        device
            .until("credit", |heard| heard.credit[TELEMETRY as usize])
            .await?;
        Ok(device)
    }

    async fn put_token(&mut self, id: &str) -> Result<(), Failure> {
        self.attach(CBS_SENDER, Role::Sender, cbs::NODE);
        self.attach(CBS_RECEIVER, Role::Receiver, cbs::NODE);
        let begin = SessionFlow {
            next_incoming: 0,
            next_outgoing: 0,
        };
        wire::flow(&mut self.output, CHANNEL, begin, Some((CBS_RECEIVER, 0, 10)));
        self.until("credit of $cbs", |heard| heard.credit[CBS_SENDER as usize])
            .await?;
        cbs::put_token(
            &mut self.output,
            CHANNEL,
            CBS_SENDER,
            &format!("localhost/devices/{id}"),
        );
        self.until("the hub's word on the token", |heard| {
            heard.token.is_some() && heard.settled == 1
        })
        .await?;
        match self.heard.token {
            Some(true) => Ok(()),
            Some(false) | None => Err(Failure::new("the token was refused")),
        }
    }

    fn attach(&mut self, handle: u32, role: Role, address: &str) {
        let name = LINKS[handle as usize];
        let (source, target) = match role {
            Role::Sender => (None, Some(address)),
            Role::Receiver => (Some(address), None),
        };
        wire::attach(
            &mut self.output,
            CHANNEL,
            name,
            handle,
            role,
            Termini { source, target },
        );
    }

    /// Sends one message, the first on its link, and waits until the hub has accepted it.
    pub(crate) async fn send(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let settled = self.heard.settled;
        let mut section = vec![0x00, 0x53, 0x75, 0xb0];
        section.extend((payload.len() as u32).to_be_bytes());
        section.extend(payload);
        // Delivery-ids count per session, and each request or message has been settled before the next.
        wire::transfer(&mut self.output, CHANNEL, TELEMETRY, settled, &section);
        self.until("the settlement", |heard| heard.settled == settled + 1)
            .await
    }

    /// Goes, and is gone when this returns.
    pub(crate) async fn leave(mut self, how: Leave) -> Result<(), Failure> {
        match how {
            Leave::Closing => {
                wire::FrameWriter::amqp(&mut self.output, 0, wire::CLOSE).finish();
                self.until("close", |heard| heard.closed).await
            }
            Leave::Ending => Ok(()),
            Leave::Vanishing => Ok(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?),
        }
    }

    async fn until(&mut self, what: &str, is_there: impl Fn(&Heard) -> bool) -> Result<(), Failure> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        while !is_there(&self.heard) {
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(self.input.buffer()))
                .await
                .map_err(|_| Failure::new(format!("no {what} within {PATIENCE:?}")))??;
            if read == 0 {
                return Err(Failure::new(format!("the connection was closed before {what}")));
            }
            self.heard.take(&mut self.input)?;
        }
        Ok(())
    }
}

impl Heard {
    fn take(&mut self, input: &mut Input) -> Result<(), Failure> {
        if !self.header {
            let Some(header) = input.rest().first_chunk::<8>() else {
                return Ok(());
            };
            if *header != wire::AMQP_HEADER {
                return Err(Failure::new(format!("greeted with {header:?}")));
            }
            self.header = true;
            input.consume(8);
        }
        while let Some((mut frame, size)) = wire::read_frame(input.rest())? {
            match frame.code {
                wire::OPEN => self.open = true,
                wire::ATTACH => {
                    let (name, handle) = (frame.fields.text(), frame.fields.uint());
                    let link = LINKS.iter().position(|link| name.as_deref() == Some(link));
                    let link =
                        link.ok_or_else(|| Failure::new(format!("an answer for the link {name:?}")))?;
                    self.handles[link] = handle;
                }
                wire::FLOW => {
                    frame.fields.skip(4);
                    let handle = frame.fields.uint();
                    if let Some(link) = self
                        .handles
                        .iter()
                        .position(|known| handle.is_some() && *known == handle)
                    {
                        self.credit[link] = true;
                    }
                }
                wire::TRANSFER => self.token = Some(cbs::is_accepted(frame.payload)),
                wire::DISPOSITION => self.settled += 1,
                wire::DETACH => {
                    frame.fields.skip(2);
                    let condition = frame.fields.first_of_described();
                    return Err(Failure::new(format!("a link was detached: {condition:?}")));
                }
                wire::END => return Err(Failure::new("the session was ended")),
                wire::CLOSE => self.closed = true,
                wire::BEGIN | wire::EMPTY => {}
                other => return Err(Failure::new(format!("a frame with the performative {other:#x}"))),
            }
            input.consume(size);
        }
        input.compact();
        Ok(())
    }
}
