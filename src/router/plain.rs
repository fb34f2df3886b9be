//! The data path at its shortest: runs of plain transfers from one link to its pair.
//!
//! Nearly all frames are alike: whole deliveries, one behind the other on the same link, whose way is free. What
//! [`transfer`](super::transfer) asks for each frame is asked here once for a run of them. Whatever is not so plain, at
//! its first frame or in the middle, is left where it is, and goes the other way.

use super::connection::index;
use super::pair::Way;
use super::{ConnectionKey, Router};

impl Router {
    /// Relays the transfers at the start of `input` that need no decision, and takes them from it.
    #[inline]
    pub(super) fn relay_plain(&mut self, key: ConnectionKey, input: &mut &[u8]) {
        while self.relay_run(key, input).is_some() {}
    }

    /// The next run, as long as it is one link's. `None`: the next frame is not plain.
    fn relay_run(&mut self, key: ConnectionKey, input: &mut &[u8]) -> Option<()> {
        let entry = self.entry(key)?;
        let first = entry.connection.peek_plain(input)?;
        let source = entry.connection.plain_source(&first)?;
        if self.is_draining() {
            return None;
        }
        let link = self.link_pairs.get_mut(index(source.owner))?;
        let pair = self.session_pairs.get_mut(index(link.session_pair))?;
        let way = link.way();
        let (target, device) = (pair.session(way.target())?, pair.device?.connection);
        let handle = link.handle(way.target())?;
        let lane = pair.lane_mut(way);
        if !link.is_answered || !link.is_granted || link.delivering.is_some() || !lane.is_empty() {
            return None;
        }
        if target.connection == key {
            return None;
        }
        let (from, to) = self
            .connections
            .get2_mut(key.index(), target.connection.index())?;
        let mut sink = to.connection.plain_target(target.channel, handle)?;
        let mut transfer = first;
        let mut relayed = 0u64;
        loop {
            if let Some(size) = &link.message_size
                && !size.admits(&transfer)
            {
                break;
            }
            let Some(id) = sink.send(&transfer) else { break };
            lane.map.push(transfer.delivery_id, id, transfer.is_settled);
            *input = input.get(transfer.length..).unwrap_or_default();
            relayed += 1;
            if let Some(window) = from.connection.incoming_window(source.channel) {
                window.receive(transfer.rest.len());
                if window.is_due() {
                    break;
                }
            }
            match from.connection.peek_plain(input) {
                Some(next) if (next.channel, next.handle) == (first.channel, first.handle) => {
                    transfer = next;
                }
                _ => break,
            }
        }
        if relayed == 0 {
            return None;
        }
        link.deliveries += relayed;
        from.connection.refresh_window(source.channel, 0);
        self.wake(target.connection);
        if way == Way::Up {
            self.feeds(device, target.connection);
        }
        Some(())
    }
}
