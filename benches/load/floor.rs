//! The floor: the least that any router does which takes plaintext from a socket and sends TLS on another.
//!
//! Up: read up to 64 KiB from a device's socket; write a channel, a handle and a delivery-id over those in every frame, at
//! places that are known beforehand; give all whole frames to rustls, which makes records of 16 KiB of them; write these to
//! the hub's socket with one call. Round trip: the same with one frame; and when the acceptance comes, read it, decrypt it,
//! write an id into it, and write it to the device.
//!
//! It decides nothing, counts nothing and waits for nothing. Device and hub are on the same thread: they write before the
//! router's part begins and read when it has ended, so there is no waking up, no switching, and all that it touches is in
//! the caches of one core. Only the CPU time of the router's part counts, by messages; reading that clock is part of it.
//!
//! The cipher suite is the first choice of rustls, and so the daemon's on a processor with instructions for AES.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
    SideData, Stream,
};

use super::report::Figures;
use super::rig::Failure;
use super::rig::wire::{self, MessageTemplate};

const READ: usize = 64 * 1024;
/// The frames that devices send: no larger than our daemon announces.
const MAX_FRAME: usize = 16384;

/// Sockets and TLS of a router, a device on one side and the hub on the other.
struct Bench {
    device: TcpStream,
    from_device: TcpStream,
    tls: ClientConnection,
    to_hub: TcpStream,
    hub: TcpStream,
    hub_tls: ServerConnection,
}

impl Bench {
    fn new() -> Result<Self, Failure> {
        let (device, from_device) = connected()?;
        let (mut hub, mut to_hub) = connected()?;
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tls = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost")?)?;
        tls.set_buffer_limit(None);
        let mut hub_tls = ServerConnection::new(Arc::new(server))?;
        while tls.is_handshaking() || hub_tls.is_handshaking() || hub_tls.wants_write() {
            send(&mut tls, &mut to_hub)?;
            receive(&mut hub_tls, &mut hub)?;
            send(&mut hub_tls, &mut hub)?;
            receive(&mut tls, &mut to_hub)?;
        }
        Ok(Self {
            device,
            from_device,
            tls,
            to_hub,
            hub,
            hub_tls,
        })
    }
}

/// Writes what TLS has to write.
fn send<S>(tls: &mut ConnectionCommon<S>, socket: &mut TcpStream) -> Result<(), Failure>
where
    S: SideData,
{
    while tls.wants_write() {
        tls.write_tls(socket)?;
    }
    Ok(())
}

/// Takes all that is there.
fn receive<S>(tls: &mut ConnectionCommon<S>, socket: &mut TcpStream) -> Result<(), Failure>
where
    S: SideData,
{
    socket.set_nonblocking(true)?;
    while tls.read_tls(socket).is_ok_and(|read| read > 0) {
        tls.process_new_packets()?;
    }
    Ok(socket.set_nonblocking(false)?)
}

fn connected() -> Result<(TcpStream, TcpStream), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// CPU time of this thread so far.
fn thread_time() -> Result<Duration, Failure> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Messages of this size from one device: with each read what fits 64 KiB, or one message.
pub(crate) fn up(size: usize, duration: Duration) -> Result<Figures, Failure> {
    let mut bench = Bench::new()?;
    let template = MessageTemplate::new(0, 0, size, MAX_FRAME);
    let mut block = Vec::new();
    template.append(0, &mut block);
    let count = (READ / block.len()).max(1);
    for _ in 1..count {
        template.append(0, &mut block);
    }
    let mut buffer = vec![0; block.len()];
    let mut discarded = vec![0; 2 * block.len()];
    let (mut blocks, mut cpu) = (0, Duration::ZERO);
    let begin = Instant::now();
    while begin.elapsed() < duration {
        bench.device.write_all(&block)?;
        let before = thread_time()?;
        bench.from_device.read_exact(&mut buffer)?;
        rewrite(&mut buffer, blocks)?;
        bench.tls.writer().write_all(&buffer)?;
        let mut written = 0;
        while bench.tls.wants_write() {
            written += bench.tls.write_tls(&mut bench.to_hub)?;
        }
        cpu += thread_time()? - before;
        bench.hub.read_exact(&mut discarded[..written])?;
        blocks += 1;
    }
    Ok(figures(blocks as usize * count, size, cpu, begin.elapsed()))
}

/// One message of this size after the other, each when the one before is accepted.
pub(crate) fn round_trip(size: usize, duration: Duration) -> Result<Figures, Failure> {
    let mut bench = Bench::new()?;
    let template = MessageTemplate::new(0, 0, size, MAX_FRAME);
    let (mut message, mut acceptance) = (Vec::new(), Vec::new());
    template.append(0, &mut message);
    wire::accept(&mut acceptance, 0, 0, 0);
    let mut buffer = vec![0; READ];
    let (mut messages, mut cpu) = (0, Duration::ZERO);
    let begin = Instant::now();
    while begin.elapsed() < duration {
        bench.device.write_all(&message)?;
        let before = thread_time()?;
        let read = bench.from_device.read(&mut buffer)?;
        rewrite(&mut buffer[..read], messages)?;
        bench.tls.writer().write_all(&buffer[..read])?;
        bench.tls.write_tls(&mut bench.to_hub)?;
        cpu += thread_time()? - before;

        let mut hub = Stream::new(&mut bench.hub_tls, &mut bench.hub);
        hub.read_exact(&mut message)?;
        hub.write_all(&acceptance)?;

        let before = thread_time()?;
        let mut decrypted = 0;
        while decrypted < acceptance.len() {
            bench.tls.read_tls(&mut bench.to_hub)?;
            decrypted = bench.tls.process_new_packets()?.plaintext_bytes_to_read();
        }
        let answer = &mut buffer[..decrypted];
        bench.tls.reader().read_exact(answer)?;
        rewrite(answer, messages)?;
        bench.from_device.write_all(answer)?;
        cpu += thread_time()? - before;
        bench.device.read_exact(&mut acceptance)?;
        messages += 1;
    }
    Ok(figures(messages as usize, size, cpu, begin.elapsed()))
}

/// Writes a channel and ids into every frame.
fn rewrite(bytes: &mut [u8], id: u32) -> Result<(), Failure> {
    const CHANNEL: usize = 6;
    /// Behind the frame's header, the descriptor and the list's head; the constructor of a uint each.
    const HANDLE: usize = 8 + 12 + 1;
    const DELIVERY: usize = HANDLE + 4 + 1;
    let mut rest = bytes;
    while let Some(size) = rest.first_chunk::<4>() {
        let size = u32::from_be_bytes(*size) as usize;
        let too_short = || Failure::new("not a whole frame with room for its ids");
        let (frame, behind) = rest.split_at_mut_checked(size).ok_or_else(too_short)?;
        let ids = frame.get_mut(..DELIVERY + 4).ok_or_else(too_short)?;
        ids[CHANNEL..CHANNEL + 2].copy_from_slice(&7u16.to_be_bytes());
        ids[HANDLE..HANDLE + 4].copy_from_slice(&3u32.to_be_bytes());
        ids[DELIVERY..].copy_from_slice(&id.to_be_bytes());
        rest = behind;
    }
    Ok(())
}

fn figures(messages: usize, size: usize, cpu: Duration, elapsed: Duration) -> Figures {
    let (messages, cpu) = (messages as f64, cpu.as_secs_f64());
    Figures {
        messages_per_second: Some(messages / elapsed.as_secs_f64()),
        mebibytes_per_second: Some(messages * size as f64 / elapsed.as_secs_f64() / f64::from(1 << 20)),
        cpu_micros_per_message: Some(cpu * 1e6 / messages),
        ..Figures::default()
    }
}
