//! Whose frames the trace shows: a device's on its own connection, and on those of hubs the frames of its sessions and its
//! requests to `$cbs`.

use super::connection::Kind;
use super::{ConnectionKey, Router};
use crate::endpoint::trace::Tracing;

impl Router {
    /// What is shown of a connection.
    pub(super) fn tracing_of(&self, kind: Kind, peer: &str, container_id: Option<&str>) -> Tracing {
        match kind {
            Kind::Device(_) => self.settings.trace.of_device(peer, container_id),
            Kind::Upstream(_) | Kind::Broker(..) => self.settings.trace.of_hub(),
        }
    }

    /// Whether a device's frames are shown, if any are.
    pub(super) fn is_traced(&self, device: ConnectionKey) -> bool {
        self.entry(device)
            .is_some_and(|entry| entry.connection.is_traced())
    }

    /// Other devices are traced from now on.
    pub(super) fn retrace(&mut self) {
        for position in 0..self.connections.capacity() {
            let Some(entry) = self.connections.get(position) else {
                continue;
            };
            let container_id = entry.was_open.then_some(&*entry.container_id);
            let tracing = self.tracing_of(entry.kind, &entry.transport.peer, container_id);
            if let Some(entry) = self.connections.get_mut(position) {
                entry.connection.trace(tracing);
            }
        }
        for position in 0..self.session_pairs.capacity() {
            let Some(pair) = self.session_pairs.get(position) else {
                continue;
            };
            let is_traced = pair
                .device
                .is_some_and(|device| self.is_traced(device.connection));
            if let Some(upstream) = pair.upstream
                && let Some(entry) = self.entry_mut(upstream.connection)
                && let Some(session) = entry.connection.session_mut(upstream.channel)
            {
                session.is_traced = is_traced;
            }
        }
    }
}
