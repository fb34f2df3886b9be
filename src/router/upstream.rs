//! Connectors' connections: wanted, dialed, opened, closed, lost.

use std::time::Instant;

use super::attach::excerpt;
use super::connector::{Connector, State};
use super::failover;
use super::loss::Farewell;
use super::settings::{ConnectorId, Destination, RouteSettings};
use super::timer::Owner;
use super::{Action, ConnectionKey, Router};
use crate::amqp::performative::Open;

impl Router {
    /// Dials a connector, if it is not on its way already.
    pub(super) fn want(&mut self, id: ConnectorId, now: Instant) {
        if self.is_stopping() {
            return;
        }
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        if connector.want(now) {
            self.connection_number += 1;
            connector.number = self.connection_number;
            self.actions.push_back(Action::Dial(id));
        }
        self.arm_connector(id);
    }

    /// Dials a connector if anybody needs it.
    pub(super) fn want_if_needed(&mut self, id: ConnectorId, now: Instant) {
        if self.connectors.get(&id).is_some_and(Connector::is_needed) {
            self.want(id, now);
        }
    }

    /// Brings a connector's deadline into the timers.
    pub(super) fn arm_connector(&mut self, id: ConnectorId) {
        let is_usable = self.usable_connection(id).is_some();
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        let oldest = connector.waiting.first_key_value().map(|(&(due, _), _)| due);
        let turn = connector.next_turn().filter(|_| is_usable);
        let waiting = oldest.into_iter().chain(turn).min();
        let deadline = connector.next_deadline(waiting, self.settings.linger);
        self.timers
            .arm(Owner::Connector(id), &mut connector.scheduled, deadline);
    }

    pub(super) fn on_connector_timeout(&mut self, id: ConnectorId, now: Instant) {
        self.take_turns(id, now);
        self.refuse_overdue(id, now);
        let linger = self.settings.linger;
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        match connector.state {
            State::Backoff { until } if until <= now => {
                connector.state = State::Idle;
                self.want_if_needed(id, now);
                self.shrink(id);
            }
            State::Open(key)
                if connector.is_idle()
                    && connector.unused_since.is_some_and(|since| since + linger <= now) =>
            {
                let why = format!("no device has used it for {} s", linger.as_secs());
                // Devices that have gone may have left what the hub did not take in all this time.
                self.close_connector(id, key, &why, now);
            }
            State::Idle
            | State::Dialing
            | State::Opening(_)
            | State::Open(_)
            | State::Closing(_)
            | State::Backoff { .. } => {}
        }
    }

    /// Closes a connector's connection, which is nobody's from here on: whoever attaches now waits for the next.
    pub(super) fn close_connector(&mut self, id: ConnectorId, key: ConnectionKey, why: &str, now: Instant) {
        self.release_sessions(key, Farewell::Lost(Some(why.to_owned())));
        self.hurry_waiting(id, now);
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        let served = connector
            .open_connection()
            .and_then(|_| connector.container_id.clone());
        connector.closing(key);
        connector.message = format!("Connection closed: {why}");
        let name = connector.settings.name.clone();
        if let Some(entry) = self.entry_mut(key) {
            let number = entry.connection.number;
            tracing::info!(target: "SERVER", "[C{number}] Closing the connection of connector {name}: {why}");
            entry.connection.close(None, now);
        }
        if let Some(container_id) = served
            && !self.has_substitute(id)
        {
            self.log_routes("Deactivated", &name, &container_id);
        }
        self.wake(key);
        self.arm(key);
    }

    pub(super) fn on_connector_open(
        &mut self,
        id: ConnectorId,
        key: ConnectionKey,
        open: &Open<'_>,
        now: Instant,
    ) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        let recovery = connector.opened(key, open.container_id, now);
        connector.channel_max = open.channel_max;
        let host = connector.hosts.current();
        connector.message = excerpt(&format!(
            "Connection to {host} opened, container_id={}",
            open.container_id
        ));
        if let Some((attempts, time)) = recovery {
            let plural = if attempts == 1 { "" } else { "s" };
            tracing::info!(
                target: "SERVER",
                "[C{}] Connection to {host} is back after {attempts} failed attempt{plural} in {} s",
                connector.number,
                time.as_secs()
            );
        }
        if !connector.is_accepted()
            && let Some(properties) = open.properties
        {
            failover::adopt(connector, properties, now);
        }
        let name = connector.settings.name.clone();
        if !self.has_substitute(id) {
            self.log_routes("Activated", &name, open.container_id);
        }
        self.start_waiting(id, now);
        self.move_waiting_to(id, now);
        self.arm_connector(id);
    }

    pub(super) fn on_connector_lost(&mut self, id: ConnectorId, key: ConnectionKey, now: Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        match connector.state {
            State::Opening(own) | State::Open(own) if own == key => {
                if connector.open_connection().is_some() {
                    let name = connector.settings.name.clone();
                    let container_id = connector.container_id.clone().unwrap_or_default();
                    if !self.has_substitute(id) {
                        self.log_routes("Deactivated", &name, &container_id);
                    }
                }
                self.hurry_waiting(id, now);
                self.move_waiting_from(id, now);
                if let Some(connector) = self.connectors.get_mut(&id) {
                    connector.lost(now);
                }
            }
            State::Closing(own) if own == key => {
                connector.state = State::Idle;
                self.want_if_needed(id, now);
                self.shrink(id);
            }
            State::Idle
            | State::Dialing
            | State::Opening(_)
            | State::Open(_)
            | State::Closing(_)
            | State::Backoff { .. } => return,
        }
        self.arm_connector(id);
    }

    pub(super) fn log_routes(&self, what: &str, connection: &str, container_id: &str) {
        for route in self.routes.served_by(connection, container_id) {
            log_route(what, route);
        }
    }

    /// A device has gone: connectors that nobody uses any more may be closed after a while.
    pub(super) fn device_left(&mut self, key: ConnectionKey, now: Instant) {
        let mut unused = Vec::new();
        for (&id, connector) in &mut self.connectors {
            if connector.forget_device(key, now) {
                unused.push(id);
            }
        }
        for id in unused {
            self.arm_connector(id);
        }
    }
}

/// qdrouterd's line for a route that a connection serves from now on, or no longer.
pub(super) fn log_route(what: &str, route: &RouteSettings) {
    let (how, name) = match &route.destination {
        Destination::Connection(name) => ("connection", name),
        Destination::Container(id) => ("container", id),
    };
    tracing::info!(target: "ROUTER_CORE", "Link Route {what} '{}' on {how} {name}", route.name);
}
