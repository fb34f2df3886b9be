//! The floor: the least that any router does which takes plaintext from a socket and sends TLS on another.
//!
//! Up: one thread reads up to 64 KiB from a device's socket, writes a channel, a handle and a delivery-id over those in every
//! frame, at places that it knows beforehand, gives all whole frames to rustls, which makes records of 16 KiB of them, and
//! writes these to the hub's socket. It decides nothing, counts nothing, waits for no credit and hears no acceptances; its
//! reads and writes block, so that it never asks whether it may. All that it touches fits the caches.
//!
//! Round trip: the same with one frame, and then the same for the acceptance the other way.
//!
//! The cipher suite is the daemon's first choice on this machine. The thread's own CPU time counts, by messages.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::device::percentile;
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
    hub: StreamOwned<ServerConnection, TcpStream>,
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
        let mut server = ServerConnection::new(Arc::new(server))?;
        let shaking = std::thread::spawn(move || -> Result<_, Failure> {
            while server.is_handshaking() {
                server.complete_io(&mut hub)?;
            }
            Ok(StreamOwned::new(server, hub))
        });
        while tls.is_handshaking() {
            tls.complete_io(&mut to_hub)?;
        }
        Ok(Self {
            device,
            from_device,
            tls,
            to_hub,
            hub: joined(shaking)?,
        })
    }
}

fn connected() -> Result<(TcpStream, TcpStream), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn joined<T>(thread: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    thread
        .join()
        .map_err(|_| Failure::new("a thread of the floor panicked"))?
}

/// CPU time of this thread so far.
fn thread_time() -> Result<Duration, Failure> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Messages of this size from one device, as fast as it goes.
pub(crate) fn up(size: usize, duration: Duration) -> Result<Figures, Failure> {
    let Bench {
        mut device,
        mut from_device,
        mut tls,
        mut to_hub,
        mut hub,
    } = Bench::new()?;
    let template = MessageTemplate::new(0, 0, size, MAX_FRAME);
    let frames = template.frames();
    let sender = std::thread::spawn(move || -> Result<_, Failure> {
        let mut block = Vec::new();
        while block.len() < READ {
            template.append(0, &mut block);
        }
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            device.write_all(&block)?;
        }
        Ok(())
    });
    let sink = std::thread::spawn(move || -> Result<_, Failure> {
        let mut buffer = vec![0; 4 * READ];
        while hub.sock.read(&mut buffer)? > 0 {}
        Ok(())
    });
    let mut buffer = vec![0; READ];
    let (mut filled, mut id) = (0, 0);
    let (begin, cpu) = (Instant::now(), thread_time()?);
    loop {
        let read = from_device.read(&mut buffer[filled..])?;
        if read == 0 {
            break;
        }
        filled += read;
        let whole = rewrite(&mut buffer[..filled], &mut id)?;
        tls.writer().write_all(&buffer[..whole])?;
        while tls.wants_write() {
            tls.write_tls(&mut to_hub)?;
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
    let (cpu, elapsed) = (thread_time()? - cpu, begin.elapsed());
    // What the hub has sent is not read: to close would be a reset.
    to_hub.shutdown(Shutdown::Write)?;
    joined(sender)?;
    joined(sink)?;
    let messages = f64::from(id / frames);
    Ok(figures(messages, size, cpu, elapsed))
}

/// One message of this size after the other, each when the one before is accepted.
pub(crate) fn round_trip(size: usize, duration: Duration) -> Result<Figures, Failure> {
    let Bench {
        mut device,
        mut from_device,
        mut tls,
        mut to_hub,
        mut hub,
    } = Bench::new()?;
    let template = MessageTemplate::new(0, 0, size, MAX_FRAME);
    let mut message = Vec::new();
    template.append(0, &mut message);
    let length = message.len();
    let mut acceptance = Vec::new();
    wire::accept(&mut acceptance, 0, 0, 0);
    let reply = acceptance.len();

    let sender = std::thread::spawn(move || -> Result<_, Failure> {
        let deadline = Instant::now() + duration;
        let (mut latencies, mut buffer) = (Vec::new(), vec![0; reply]);
        while Instant::now() < deadline {
            let sent = Instant::now();
            device.write_all(&message)?;
            device.read_exact(&mut buffer)?;
            latencies.push(sent.elapsed());
        }
        Ok(latencies)
    });
    let answering = std::thread::spawn(move || -> Result<_, Failure> {
        let mut buffer = vec![0; length];
        while hub.read_exact(&mut buffer).is_ok() {
            hub.write_all(&acceptance)?;
        }
        Ok(())
    });
    let mut buffer = vec![0; READ];
    let mut id = 0;
    let (begin, cpu) = (Instant::now(), thread_time()?);
    loop {
        let read = from_device.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        rewrite(&mut buffer[..read], &mut id)?;
        tls.writer().write_all(&buffer[..read])?;
        tls.write_tls(&mut to_hub)?;
        tls.read_tls(&mut to_hub)?;
        let state = tls.process_new_packets()?;
        let answer = &mut buffer[..state.plaintext_bytes_to_read()];
        tls.reader().read_exact(answer)?;
        rewrite(answer, &mut 0)?;
        from_device.write_all(answer)?;
    }
    let (cpu, elapsed) = (thread_time()? - cpu, begin.elapsed());
    // What the hub has sent is not read: to close would be a reset.
    to_hub.shutdown(Shutdown::Write)?;
    let mut latencies = joined(sender)?;
    joined(answering)?;
    latencies.sort_unstable();
    let micros = |percent| percentile(&latencies, percent).map(|latency| latency.as_secs_f64() * 1e6);
    let [p50_micros, p99_micros, p999_micros] = [50.0, 99.0, 99.9].map(micros);
    Ok(Figures {
        p50_micros,
        p99_micros,
        p999_micros,
        ..figures(latencies.len() as f64, size, cpu, elapsed)
    })
}

/// Writes ids into every whole frame, and tells where those end.
fn rewrite(bytes: &mut [u8], id: &mut u32) -> Result<usize, Failure> {
    const CHANNEL: usize = 6;
    /// Behind the frame's header, the descriptor and the list's head; the constructor of a uint each.
    const HANDLE: usize = 8 + 12 + 1;
    const DELIVERY: usize = HANDLE + 4 + 1;
    let mut at = 0;
    while let Some(frame) = bytes.get_mut(at..)
        && let Some(size) = frame.first_chunk::<4>()
    {
        let size = u32::from_be_bytes(*size) as usize;
        let Some(frame) = frame.get_mut(..size) else { break };
        let no_room = || Failure::new("a frame without room for its ids");
        frame[CHANNEL..CHANNEL + 2].copy_from_slice(&7u16.to_be_bytes());
        let ids = frame.get_mut(HANDLE..DELIVERY + 4).ok_or_else(no_room)?;
        ids[..4].copy_from_slice(&3u32.to_be_bytes());
        ids[5..].copy_from_slice(&id.to_be_bytes());
        *id = id.wrapping_add(1);
        at += size;
    }
    Ok(at)
}

fn figures(messages: f64, size: usize, cpu: Duration, elapsed: Duration) -> Figures {
    let (cpu, elapsed) = (cpu.as_secs_f64(), elapsed.as_secs_f64());
    Figures {
        messages_per_second: Some(messages / elapsed),
        mebibytes_per_second: Some(messages * size as f64 / elapsed / f64::from(1 << 20)),
        cpu_micros_per_message: Some(cpu * 1e6 / messages),
        cpu_percent: Some(cpu * 100.0 / elapsed),
        ..Figures::default()
    }
}
