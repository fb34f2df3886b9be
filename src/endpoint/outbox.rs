//! Bytes in a queue: appended at the end, taken from the front, without an allocation in steady state.
//!
//! One holds what waits for a transport; others hold transfers parked between two sessions.

/// Above this capacity an empty queue gives its memory back when asked.
const KEEP_CAPACITY: usize = 1024;

/// A first-in, first-out byte buffer.
#[derive(Debug, Default)]
pub struct ByteQueue {
    bytes: Vec<u8>,
    start: usize,
}

impl ByteQueue {
    /// How many bytes wait.
    pub const fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that waits.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The vector to append to. Only append: what is in it already waits.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    /// Takes `count` bytes, or all if there are fewer, from the front.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Gives the memory of an empty queue back.
    pub fn release_memory(&mut self) {
        if self.is_empty() && self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let mut queue = ByteQueue::default();
        let mut taken = Vec::new();
        for round in 0u8..100 {
            queue.tail().extend_from_slice(&[round; 7]);
            let some = queue.as_slice().len().min(5);
            taken.extend_from_slice(&queue.as_slice()[..some]);
            queue.consume(some);
        }
        taken.extend_from_slice(queue.as_slice());
        queue.consume(usize::MAX);
        assert!(queue.is_empty());
        let expected: Vec<u8> = (0u8..100).flat_map(|round| [round; 7]).collect();
        assert_eq!(taken, expected);
    }
}
