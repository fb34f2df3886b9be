//! The arithmetic of session windows alone (AMQP 1.0 part 2, §2.5.6).

use super::limits;
use crate::amqp::serial::TransferId;

/// How many frames a peer may have under way to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowSize {
    /// As many as were asked for.
    Frames(u32),
    /// As many as usually fit into so many bytes: `least` while nothing is known of their size, and never more than
    /// [`limits::UPSTREAM_WINDOW_FRAMES_MAX`], as the next ones may be larger.
    Bytes {
        /// The budget.
        budget: u32,
        /// Frames of the largest size that fit into it.
        least: u32,
    },
}

/// What the peer may still send us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingWindow {
    next_id: Option<TransferId>,
    remaining: u32,
    size: WindowSize,
    /// Smoothed size of a frame in bytes; 0 before the first.
    average: u32,
}

impl IncomingWindow {
    /// A window, all of it open; at least one frame.
    pub fn new(size: WindowSize) -> Self {
        let remaining = match size {
            WindowSize::Frames(frames) | WindowSize::Bytes { least: frames, .. } => frames.max(1),
        };
        IncomingWindow {
            next_id: None,
            remaining,
            size,
            average: 0,
        }
    }

    /// The peer's begin told where it starts to count.
    pub const fn begin(&mut self, next_outgoing_id: TransferId) {
        self.next_id = Some(next_outgoing_id);
    }

    /// A transfer frame of so many bytes came in. `false`: the window was used up.
    #[inline]
    pub fn receive(&mut self, bytes: usize) -> bool {
        let Some(remaining) = self.remaining.checked_sub(1) else {
            return false;
        };
        self.remaining = remaining;
        self.next_id = self.next_id.map(|id| id.plus(1));
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // Larger frames count at once, smaller ones little by little.
        self.average = bytes.max(self.average - self.average / 8 + bytes / 8);
        true
    }

    fn full(&self) -> u32 {
        match self.size {
            WindowSize::Frames(frames) => frames.max(1),
            WindowSize::Bytes { budget, least } => {
                let usual = budget.checked_div(self.average).unwrap_or(least);
                usual
                    .clamp(least, limits::UPSTREAM_WINDOW_FRAMES_MAX.max(least))
                    .max(1)
            }
        }
    }

    /// Half of it is used: the peer is to be told of a wider one.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.remaining <= self.full() / 2
    }

    /// Opens the window again when half of it is used, `held` frames of ours being still on their way onwards.
    /// `true`: tell the peer.
    pub fn refresh(&mut self, held: u32) -> bool {
        let wanted = self.full().saturating_sub(held);
        if !self.is_due() || wanted <= self.remaining {
            return false;
        }
        self.remaining = wanted;
        true
    }

    /// `next-incoming-id`, once the peer has begun.
    pub const fn next_id(&self) -> Option<TransferId> {
        self.next_id
    }

    /// `incoming-window`
    pub const fn remaining(&self) -> u32 {
        self.remaining
    }
}

/// What we may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingWindow {
    next_id: TransferId,
    remaining: u32,
}

/// The first transfer-id of every session that we begin or accept.
const INITIAL_OUTGOING_ID: TransferId = TransferId(0);

impl OutgoingWindow {
    /// Closed until the peer's begin is known.
    pub const fn new() -> Self {
        OutgoingWindow {
            next_id: INITIAL_OUTGOING_ID,
            remaining: 0,
        }
    }

    /// The peer announced a window; `next_incoming_id` is absent while it has not seen our begin. An announcement that
    /// lies about what we sent can only shrink the window.
    pub const fn announced(&mut self, next_incoming_id: Option<TransferId>, incoming_window: u32) {
        let from = match next_incoming_id {
            Some(id) => id,
            None => INITIAL_OUTGOING_ID,
        };
        self.remaining = incoming_window.saturating_sub(self.next_id.since(from));
    }

    /// A transfer frame goes out.
    pub const fn send(&mut self) {
        self.next_id = self.next_id.plus(1);
        self.remaining = self.remaining.saturating_sub(1);
    }

    /// Whether a transfer frame may go out.
    pub const fn is_open(&self) -> bool {
        self.remaining > 0
    }

    /// `next-outgoing-id`
    pub const fn next_id(&self) -> TransferId {
        self.next_id
    }
}

impl Default for OutgoingWindow {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_of_one_is_refreshed_after_each_frame() {
        let mut window = IncomingWindow::new(WindowSize::Frames(1));
        window.begin(TransferId(u32::MAX));
        assert!(window.receive(100));
        assert!(!window.receive(100));
        assert!(window.refresh(0));
        assert_eq!((window.next_id(), window.remaining()), (Some(TransferId(0)), 1));
    }

    #[test]
    fn frames_still_held_keep_the_window_small() {
        let mut window = IncomingWindow::new(WindowSize::Frames(4));
        for _ in 0..4 {
            assert!(window.receive(100));
        }
        assert!(!window.refresh(4));
        assert!(window.refresh(1));
        assert_eq!(window.remaining(), 3);
    }

    #[test]
    fn a_budget_in_bytes_lets_more_small_frames_come() {
        let mut window = IncomingWindow::new(WindowSize::Bytes {
            budget: 64 * 1024,
            least: 4,
        });
        assert_eq!(window.remaining(), 4, "nothing is known yet");
        let mut refill = |bytes: usize| {
            while window.receive(bytes) {}
            assert!(window.refresh(0));
            window.remaining()
        };
        assert_eq!(refill(1024), 64);
        assert_eq!(refill(16 * 1024), 4, "larger frames count at once");
        for _ in 0..20 {
            refill(100);
        }
        assert_eq!(refill(100), limits::UPSTREAM_WINDOW_FRAMES_MAX);
    }

    proptest! {
        /// Two ends that exchange announcements late and in any order never overrun each other.
        #[test]
        fn the_sender_never_overruns_the_receiver(full in 1u32..20, lag in 0usize..5, steps in 1usize..400) {
            let mut receiver = IncomingWindow::new(WindowSize::Frames(full));
            receiver.begin(TransferId(0));
            let mut sender = OutgoingWindow::new();
            let mut announcements = vec![(None, full)];
            let mut sent = 0u32;
            for step in 0..steps {
                if !announcements.is_empty() && (announcements.len() > lag || step % 7 == 0) {
                    let (id, window) = announcements.remove(0);
                    sender.announced(id, window);
                }
                if sender.is_open() {
                    sender.send();
                    sent += 1;
                    prop_assert!(receiver.receive(100), "overrun at {sent}");
                    if receiver.refresh(0) {
                        announcements.push((receiver.next_id(), receiver.remaining()));
                    }
                }
            }
        }
    }
}
