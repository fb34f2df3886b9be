//! One device: a bare socket, one session and one link on it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::alarm::Alarm;
use super::rig::Failure;
use super::rig::device::{DeviceState, Tally};
use super::rig::wire::{Input, MessageTemplate, Role};

const OUTPUT_LIMIT: usize = 64 * 1024;
/// How long anything but the load itself may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What each device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceWork {
    /// Send messages of this size for a while, as fast as credit and windows let it.
    Send {
        size: usize,
        duration: Duration,
        /// Whether to note how long each takes.
        timed: bool,
    },
    /// One message in each interval, the devices spread over it, whether the earlier ones are settled or not.
    Paced {
        size: usize,
        every: Duration,
        duration: Duration,
        /// Of all devices that share the pace.
        count: usize,
    },
    /// Receive and accept until the hub detaches the link.
    Receive,
    /// Send one message of this size and wait until it is accepted, again and again for a while.
    PingPong { size: usize, duration: Duration },
    /// Attach a link and do nothing.
    Idle,
    /// Connect, attach, send one message, close, as one device after the other for a while.
    Churn { size: usize, duration: Duration },
}

/// A device that is attached and has credit.
pub(crate) struct Device {
    number: u32,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    input: Input,
    state: DeviceState,
}

impl Device {
    /// Connects from an address of the loopback, so that ports do not run out, and attaches a link.
    pub(crate) async fn connect(
        port: u16,
        source: Ipv4Addr,
        number: usize,
        work: DeviceWork,
    ) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let role = match work {
            DeviceWork::Receive => Role::Receiver,
            _ => Role::Sender,
        };
        let mut device = Self {
            number: number as u32,
            reader,
            writer,
            input: Input::default(),
            state: DeviceState::new(number, role),
        };
        while !device.state.is_ready(role) {
            device.write_all().await?;
            device.read_some().await?;
        }
        device.write_all().await?;
        Ok(device)
    }

    /// Does its work once all are to start, and closes the connection.
    pub(crate) async fn work(
        &mut self,
        work: DeviceWork,
        mut started: watch::Receiver<bool>,
    ) -> Result<Tally, Failure> {
        if work == DeviceWork::Idle {
            started.wait_for(|started| *started).await?;
        } else {
            // The hub's flows may come while the others still connect.
            loop {
                tokio::select! {
                    start = started.wait_for(|started| *started) => { start?; break; }
                    read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                }
            }
        }
        match work {
            DeviceWork::Send {
                size,
                duration,
                timed,
            } => self.send_for(size, duration, timed).await?,
            DeviceWork::Paced {
                size,
                every,
                duration,
                count,
            } => {
                let offset = every * self.number / count as u32;
                self.send_at_pace(size, every, offset, duration).await?;
            }
            DeviceWork::PingPong { size, duration } => self.ping_pong_for(size, duration).await?,
            DeviceWork::Receive => self.receive_until_detached().await?,
            DeviceWork::Idle | DeviceWork::Churn { .. } => {}
        }
        self.close().await?;
        Ok(std::mem::take(&mut self.state.tally))
    }

    /// Sends one message, waits until it is accepted, and closes.
    pub(crate) async fn send_and_close(&mut self, size: usize) -> Result<Tally, Failure> {
        let template = self.state.template(size);
        self.send_one(&template).await?;
        self.close().await?;
        // A port of a connection that was closed is taken for a minute; one that was reset is not.
        socket2::SockRef::from(self.writer.as_ref()).set_linger(Some(Duration::ZERO))?;
        Ok(std::mem::take(&mut self.state.tally))
    }

    async fn send_for(&mut self, size: usize, duration: Duration, timed: bool) -> Result<(), Failure> {
        let template = self.state.template(size);
        let deadline = Instant::now() + duration;
        let mut written = 0;
        loop {
            let sending = Instant::now() < deadline;
            while sending && self.state.output.len() < OUTPUT_LIMIT && self.state.may_send(template.frames())
            {
                self.state.send(&template, timed.then(Instant::now));
            }
            if self.is_done(sending) {
                return Ok(());
            }
            let wake = if sending { deadline } else { deadline + PATIENCE };
            tokio::select! {
                read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                wrote = self.writer.write(&self.state.output[written..]), if !self.state.output.is_empty() => {
                    written += wrote?;
                    if written == self.state.output.len() {
                        self.state.output.clear();
                        written = 0;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => self.check_patience(sending)?,
            }
        }
    }

    /// A message at each of its times. One that is late, for want of credit or for whatever reason, counts from when it was due.
    async fn send_at_pace(
        &mut self,
        size: usize,
        every: Duration,
        offset: Duration,
        duration: Duration,
    ) -> Result<(), Failure> {
        let template = self.state.template(size);
        let alarm = Alarm::new()?;
        let begin = Instant::now();
        let deadline = begin + duration;
        let mut due = begin + offset;
        alarm.set(due)?;
        loop {
            let sending = due < deadline;
            if sending && due <= Instant::now() && self.state.may_send(template.frames()) {
                self.state.send(&template, Some(due));
                due += every;
                alarm.set(due)?;
            }
            // One small message: the socket has room for it.
            self.write_all().await?;
            if self.is_done(sending) {
                return Ok(());
            }
            let patience = tokio::time::sleep_until((deadline + PATIENCE).into());
            tokio::select! {
                biased;
                read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                rings = alarm.rings(), if sending && due > Instant::now() => rings?,
                () = std::future::ready(()), if sending && due <= Instant::now() && self.state.may_send(template.frames()) => {}
                () = patience => self.check_patience(sending)?,
            }
        }
    }

    fn is_done(&self, sending: bool) -> bool {
        !sending && self.state.tally.settled == self.state.tally.sent
    }

    fn check_patience(&self, sending: bool) -> Result<(), Failure> {
        let Tally { sent, settled, .. } = self.state.tally;
        if sending {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{settled} of {sent} messages settled, then nothing more"
        )))
    }

    async fn ping_pong_for(&mut self, size: usize, duration: Duration) -> Result<(), Failure> {
        let template = self.state.template(size);
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            self.send_one(&template).await?;
        }
        Ok(())
    }

    async fn send_one(&mut self, template: &MessageTemplate) -> Result<(), Failure> {
        while !self.state.may_send(template.frames()) {
            self.read_some().await?;
        }
        self.state.send(template, Some(Instant::now()));
        self.write_all().await?;
        while self.state.tally.settled < self.state.tally.sent {
            self.read_some().await?;
        }
        Ok(())
    }

    async fn receive_until_detached(&mut self) -> Result<(), Failure> {
        self.state.give_credit();
        self.write_all().await?;
        while !self.state.detached {
            self.read_some().await?;
            self.write_all().await?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Failure> {
        self.state.close();
        self.write_all().await?;
        while !self.state.closed {
            self.read_some().await?;
        }
        Ok(())
    }

    async fn write_all(&mut self) -> Result<(), Failure> {
        self.writer.write_all(&self.state.output).await?;
        self.state.output.clear();
        Ok(())
    }

    async fn read_some(&mut self) -> Result<(), Failure> {
        let read = tokio::time::timeout(PATIENCE, self.reader.read_buf(self.input.buffer()))
            .await
            .map_err(|_| Failure::new(format!("nothing came for {PATIENCE:?}")))??;
        self.took(read)
    }

    fn took(&mut self, read: usize) -> Result<(), Failure> {
        if read == 0 {
            return Err(Failure::new("the connection was closed"));
        }
        self.state.take(&mut self.input)
    }
}
