//! Another configuration for a router that runs: what is the same is not touched.

use std::collections::BTreeMap;
use std::time::Instant;

use super::connection::{self, Kind};
use super::connector::{Connector, State};
use super::settings::{ConnectorId, RouteSettings, RouterSettings};
use super::table::LinkRouteTable;
use super::upstream::log_route;
use super::waiting::To;
use super::{ConnectionKey, Router};

/// What became of the connectors and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// The connectors, in the order of the settings.
    pub connectors: Vec<ConnectorId>,
    /// Connectors that go on as they were.
    pub unchanged: usize,
    /// Connectors that start anew under their old name.
    pub changed: usize,
    /// Connectors of a new name.
    pub added: usize,
    /// Connectors that are no more.
    pub removed: usize,
    /// Routes that new attaches see.
    pub routes: usize,
}

impl Router {
    /// Takes over other settings.
    ///
    /// - The container-id and the listeners' number and order must be as before; what the settings say of a listener is
    ///   for connections to come.
    /// - The policy is for those who connect from now on; who is connected keeps what he was admitted to.
    /// - Routes are for attaches to come: links stay, whatever the new table says.
    /// - A connector of the same name and with equal settings stays, with its connection and all links, if
    ///   `is_same_way` agrees: given its id and its position in the new settings, it compares what the driver keeps.
    ///   Any other is closed as when its hub is lost. Its successor has another id, and takes over what waits for it.
    pub fn reconfigure(
        &mut self,
        settings: RouterSettings,
        is_same_way: impl Fn(ConnectorId, usize) -> bool,
        now: Instant,
    ) -> Reloaded {
        self.now = now;
        let mut former: BTreeMap<String, ConnectorId> = self
            .connectors
            .iter()
            .filter(|(_, connector)| !connector.is_accepted() && connector.head.is_none())
            .map(|(&id, connector)| (connector.settings.name.clone(), id))
            .collect();
        let kept: Vec<Option<ConnectorId>> = settings
            .connectors
            .iter()
            .enumerate()
            .map(|(position, new)| {
                let id = former.get(&new.name).copied()?;
                let is_equal = self.connectors.get(&id).is_some_and(|it| it.settings == *new);
                (is_equal && is_same_way(id, position)).then_some(id)
            })
            .collect();
        // Closed while the routes are still theirs, so that the log says what goes with them.
        for &id in former.values().filter(|id| !kept.contains(&Some(**id))) {
            let is_gone = self
                .connectors
                .get(&id)
                .is_some_and(|it| settings.connectors.iter().all(|new| new.name != it.settings.name));
            let why = if is_gone {
                "it was removed from the configuration"
            } else {
                "its configuration changed"
            };
            let pool: Vec<(ConnectorId, State)> = self.pool(id).map(|(id, it)| (id, it.state)).collect();
            for (id, state) in pool {
                if let State::Opening(key) | State::Open(key) = state {
                    self.close_connector(id, key, why, now);
                }
            }
        }

        let mut reloaded = Reloaded {
            routes: settings.routes.len(),
            ..Reloaded::default()
        };
        for (new, kept) in settings.connectors.iter().zip(kept) {
            let predecessor = former.remove(&new.name);
            let id = match (kept, predecessor) {
                (Some(id), _) => {
                    reloaded.unchanged += 1;
                    id
                }
                (None, Some(predecessor)) => {
                    reloaded.changed += 1;
                    let id = self.add_connector(new.clone());
                    self.succeed(predecessor, id, now);
                    id
                }
                (None, None) => {
                    reloaded.added += 1;
                    self.add_connector(new.clone())
                }
            };
            reloaded.connectors.push(id);
        }
        reloaded.removed = former.len();

        self.rename_brokers(&settings);
        self.replace_routes(settings.routes.clone());
        self.listeners = settings
            .listeners
            .iter()
            .map(|listener| connection::listener(&settings, listener))
            .collect();
        self.replace_policy(settings.policy.clone());
        self.settings = settings;
        self.retrace();

        for id in former.into_values() {
            self.dismiss(id, now);
        }
        let all: Vec<ConnectorId> = reloaded
            .connectors
            .iter()
            .flat_map(|&id| self.pool(id).map(|(id, _)| id))
            .collect();
        for id in all {
            if self.connectors.get(&id).is_some_and(|it| it.state == State::Idle) {
                self.want_if_needed(id, now);
            }
            self.arm_connector(id);
        }
        reloaded
    }

    /// Hands over what waits for a connector, and the connection that is still to close; and the same for each further
    /// connection of its pool that anything waits for.
    fn succeed(&mut self, predecessor: ConnectorId, id: ConnectorId, now: Instant) {
        let Some(mut old) = self.forget_connector(predecessor) else {
            return;
        };
        if let Some(key) = old.connection() {
            self.hand_over(key, id);
        }
        for further in std::mem::take(&mut old.further) {
            let is_needed = self.connectors.get(&further).is_some_and(Connector::is_needed);
            match is_needed.then(|| self.grow(id)).flatten() {
                Some(successor) => self.succeed(further, successor, now),
                None => {
                    self.forget_connector(further);
                }
            }
        }
        for (_, pair) in &mut self.session_pairs {
            if pair.connector == predecessor && pair.upstream.is_none() {
                pair.connector = id;
            }
        }
        self.move_requests(predecessor, id, now);
        old.forget_order_of_tokens();
        if let Some(new) = self.connectors.get_mut(&id) {
            new.waiting = old.waiting;
            new.unbegun = old.unbegun;
        }
    }

    fn hand_over(&mut self, key: ConnectionKey, id: ConnectorId) {
        if let Some(entry) = self.entry_mut(key) {
            entry.kind = Kind::Upstream(id);
            if let Some(new) = self.connectors.get_mut(&id) {
                new.state = State::Closing(key);
            }
        }
    }

    /// A connector that is no more: what waits for its connections goes elsewhere, if the routes say so, or is refused.
    fn dismiss(&mut self, id: ConnectorId, now: Instant) {
        let pool: Vec<ConnectorId> = self.pool(id).map(|(id, _)| id).collect();
        let gone: Vec<(ConnectorId, Connector)> = pool
            .into_iter()
            .filter_map(|id| Some((id, self.forget_connector(id)?)))
            .collect();
        for (id, mut connector) in gone {
            let what = format!(
                "Connector {} was removed from the configuration",
                connector.settings.name
            );
            connector.forget_order_of_tokens();
            for number in connector.waiting.into_values() {
                if !self.move_waiting(number, To::Any, now) {
                    let error = self.unreachable_error(&what);
                    self.refuse_waiting(number, Some(&error));
                }
            }
            let error = self.unreachable_error(&what);
            self.end_relay(id, &error, now);
        }
    }

    /// Brokers that connected to us go by the name of their listener.
    fn rename_brokers(&mut self, settings: &RouterSettings) {
        for (_, entry) in &self.connections {
            if let Kind::Broker(listener, id) = entry.kind
                && let Some(listener) = settings.listeners.get(listener.0)
                && let Some(broker) = self.connectors.get_mut(&id)
            {
                broker.settings.name.clone_from(&listener.name);
            }
        }
    }

    fn replace_routes(&mut self, routes: Vec<RouteSettings>) {
        let table = LinkRouteTable::new(routes);
        let is_open = |connector: &&Connector| connector.open_connection().is_some();
        let is_first = |&(&id, _): &(&ConnectorId, &Connector)| {
            let is_older = |other: &(ConnectorId, &Connector)| other.0 < id && is_open(&other.1);
            !self.pool(self.configured(id)).any(|other| is_older(&other))
        };
        let open = self.connectors.iter().filter(|(_, connector)| is_open(connector));
        for (_, connector) in open.filter(is_first) {
            let name = connector.settings.name.as_str();
            let container_id = connector.container_id.as_deref().unwrap_or_default();
            let [old, new] =
                [&self.routes, &table].map(|table| table.served_by(name, container_id).collect::<Vec<_>>());
            for (what, list, other) in [("Deactivated", &old, &new), ("Activated", &new, &old)] {
                for route in list.iter().filter(|route| !other.contains(route)) {
                    log_route(what, route);
                }
            }
        }
        self.routes = table;
    }
}
