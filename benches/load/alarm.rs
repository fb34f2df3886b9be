//! Waking up at a time, to some microseconds: the runtime's own timers have steps of a millisecond.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::net::unix::pipe::Receiver;

use super::rig::Failure;

/// One timer of the kernel.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: TimerFd,
    /// The same; for the runtime it is like a pipe that somebody writes to at that time.
    rings: Receiver,
}

impl Alarm {
    pub(crate) fn new() -> Result<Self, Failure> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        let rings = Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, rings })
    }

    /// Sets the alarm for this time, or at once if that has passed.
    pub(crate) fn set(&self, at: Instant) -> Result<(), Failure> {
        // Zero would disarm it.
        let wait = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(wait));
        Ok(self.timer.set(once, TimerSetTimeFlags::empty())?)
    }

    /// Waits for the alarm that was set last.
    pub(crate) async fn rings(&self) -> Result<(), Failure> {
        loop {
            self.rings.readable().await?;
            match self.rings.try_read(&mut [0; 8]) {
                Ok(_) => return Ok(()),
                // Set anew since it rang.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
