//! Peers that mean harm, on real sockets: what must hold however fast the machine is. How much of it they take from others is
//! measured by `benches/attacks`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::gateway::Gateway;
use crate::support::{Failure, bounded, device, ensure, message};

const PEERS: usize = 300;
/// A header, and an open of 16 KiB that takes very long to come to its end.
const ENDLESS: &[u8] = b"AMQP\x00\x01\x00\x00\x00\x00\x40\x00\x02\x00\x00\x00\x00\x53\x10\xd0";

/// Says some of what a device says, all at once or byte by byte, and nothing else, until the daemon has had enough.
async fn waste_time(address: SocketAddr, number: usize) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let (mut reader, mut writer) = stream.split();
    let says = async {
        match number % 3 {
            0 => {}
            1 => writer.write_all(&ENDLESS[..8]).await?,
            _ => {
                for byte in ENDLESS.iter().chain(std::iter::repeat(&0)) {
                    writer.write_all(&[*byte]).await?;
                    // Nothing is waited for: slowness is the attack.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let hears = async {
        let mut heard = Vec::new();
        // A reset is an end, too: of a peer that went on talking.
        let _ = reader.read_to_end(&mut heard).await;
    };
    tokio::select! {
        // Nothing can be said any more.
        _ = says => Ok(()),
        () = hears => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_says_nothing_or_very_little_is_dropped_and_a_device_is_served_meanwhile()
-> Result<(), Failure> {
    let gateway = Gateway::to_broker_with(|config| {
        config
            .replace(
                "authenticatePeer: no\n",
                "authenticatePeer: no\n    initialHandshakeTimeoutSeconds: 2\n",
            )
            .replace("enable: trace+", "enable: notice+")
    })
    .await?;
    let address = gateway.daemon()?.address();
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", "sink/accept").await?;
    let mut crowd = JoinSet::new();
    for number in 0..PEERS {
        crowd.spawn(waste_time(address, number));
    }
    let (mut dropped, mut served) = (0, 0);
    while dropped < PEERS {
        let sent = sender.send(message::data(vec![7; 256]));
        let outcome = bounded("the outcome of a message", sent).await??;
        ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
        served += 1;
        while let Some(ended) = crowd.try_join_next() {
            ended??;
            dropped += 1;
        }
    }
    ensure(served > 1, || "nothing was served meanwhile".to_owned())?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}
