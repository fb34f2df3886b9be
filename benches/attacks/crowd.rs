//! The attackers, on bare sockets. Each goes on until it is aborted.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::rig::Failure;
use super::rig::hub_connection::STARVED;
use super::rig::wire::{self, MessageTemplate, Role, SessionFlow, Termini};

const CHANNEL: u16 = 0;
const HANDLE: u32 = 0;
/// Between two bytes of one who dribbles.
const DRIBBLE: Duration = Duration::from_millis(200);

/// What the attackers came to.
#[derive(Debug, Default)]
pub(crate) struct Toll {
    /// Connections that were made.
    pub(crate) connections: AtomicU64,
    /// Of them, those that the daemon ended.
    pub(crate) dropped: AtomicU64,
    /// Bytes that were taken from them.
    pub(crate) bytes: AtomicU64,
}

impl Toll {
    pub(crate) fn of(counter: &AtomicU64) -> f64 {
        counter.load(Ordering::Relaxed) as f64
    }
}

/// From many source addresses, so that ports do not run out.
async fn connect(port: u16, number: usize) -> Result<TcpStream, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 2, 1 + (number % 250) as u8), 0).into())?;
    Ok(socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?)
}

/// Says nothing, a header, or byte after byte of an open that has no end; comes again when it is dropped.
pub(crate) async fn waste_time(
    port: u16,
    number: usize,
    begin: Duration,
    toll: Arc<Toll>,
) -> Result<(), Failure> {
    const ENDLESS: &[u8] = b"\x00\x00\x40\x00\x02\x00\x00\x00\x00\x53\x10\xd0";
    tokio::time::sleep(begin).await;
    loop {
        let mut stream = connect(port, number).await?;
        toll.connections.fetch_add(1, Ordering::Relaxed);
        let (mut reader, mut writer) = stream.split();
        let says = async {
            if !number.is_multiple_of(3) {
                writer.write_all(&wire::AMQP_HEADER).await?;
            }
            if number % 3 == 2 {
                for byte in ENDLESS.iter().chain(std::iter::repeat(&0)) {
                    writer.write_all(&[*byte]).await?;
                    tokio::time::sleep(DRIBBLE).await;
                }
            }
            std::future::pending::<std::io::Result<()>>().await
        };
        let hears = async {
            let mut heard = Vec::new();
            reader.read_to_end(&mut heard).await
        };
        // An end or a reset, whoever notices.
        tokio::select! {
            _ = says => {}
            _ = hears => {}
        }
        toll.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Connects so many times a minute, opens, and goes without a word.
pub(crate) async fn connect_and_go(
    port: u16,
    number: usize,
    (begin, every): (Duration, Duration),
    toll: Arc<Toll>,
) -> Result<(), Failure> {
    let mut due = Instant::now() + begin;
    let mut hello = wire::AMQP_HEADER.to_vec();
    wire::open(&mut hello, &format!("passer-by-{number}"));
    for visit in number.. {
        tokio::time::sleep_until(due.into()).await;
        due += every;
        let mut stream = connect(port, visit).await?;
        toll.connections.fetch_add(1, Ordering::Relaxed);
        stream.write_all(&hello).await?;
        // Up to its open.
        let mut answer = [0; 64];
        stream.read_exact(&mut answer).await?;
    }
    Ok(())
}

/// What leads to a link.
fn attached(name: &str, role: Role, address: &str) -> Vec<u8> {
    let mut bytes = wire::AMQP_HEADER.to_vec();
    wire::open(&mut bytes, name);
    wire::begin(&mut bytes, CHANNEL, None);
    let termini = match role {
        Role::Sender => Termini {
            source: None,
            target: Some(address),
        },
        Role::Receiver => Termini {
            source: Some(address),
            target: None,
        },
    };
    wire::attach(&mut bytes, CHANNEL, "link", HANDLE, role, termini);
    bytes
}

/// Gives credit for all that there is, and reads nothing.
pub(crate) async fn never_read(port: u16, number: usize, toll: Arc<Toll>) -> Result<(), Failure> {
    const CREDIT: u32 = 1_000_000;
    let mut stream = connect(port, number).await?;
    toll.connections.fetch_add(1, Ordering::Relaxed);
    let name = format!("deaf-{number}");
    let address = format!("devices/{name}/messages/deviceBound");
    let mut hello = attached(&name, Role::Receiver, &address);
    let session = SessionFlow {
        next_incoming: 0,
        next_outgoing: 0,
    };
    wire::flow(&mut hello, CHANNEL, session, Some((HANDLE, 0, CREDIT)));
    stream.write_all(&hello).await?;
    std::future::pending().await
}

/// Sends without credit, as much as is taken of a share of all.
pub(crate) async fn push(port: u16, number: usize, share: u64, toll: Arc<Toll>) -> Result<(), Failure> {
    const SIZE: usize = 4096;
    let mut stream = connect(port, number).await?;
    toll.connections.fetch_add(1, Ordering::Relaxed);
    let name = format!("{STARVED}-{number}");
    let address = format!("devices/{name}/messages/events");
    stream.write_all(&attached(&name, Role::Sender, &address)).await?;
    let template = MessageTemplate::new(CHANNEL, HANDLE, SIZE, 16384);
    let mut bytes = Vec::new();
    let (mut id, mut left) = (0, share);
    while left > 0 {
        bytes.clear();
        template.append(id, &mut bytes);
        id += 1;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let taken = stream.write(rest).await?;
            toll.bytes.fetch_add(taken as u64, Ordering::Relaxed);
            rest = &rest[taken..];
        }
        left = left.saturating_sub(bytes.len() as u64);
    }
    std::future::pending().await
}
