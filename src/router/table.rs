//! The link routes: a table that is asked once per attach.

use super::cbs::names_cbs;
use super::pattern::PatternTree;
use super::settings::{Destination, Direction, Matcher, RouteSettings};

/// Link routes by direction and address.
#[derive(Debug, Default)]
pub(super) struct LinkRouteTable {
    routes: Vec<RouteSettings>,
    /// Indices of the routes with one pattern, in file order.
    incoming: PatternTree<Vec<usize>>,
    outgoing: PatternTree<Vec<usize>>,
    /// Indices of the routes that are for a hub's `$cbs` by their name: few of many, and wanted at each attach.
    cbs: Vec<usize>,
    /// How many links have been given to the routes of a pattern, at the index of the first of them.
    turns: Vec<usize>,
}

impl LinkRouteTable {
    pub(super) fn new(routes: Vec<RouteSettings>) -> Self {
        let mut table = LinkRouteTable::default();
        for (index, route) in routes.iter().enumerate() {
            let tree = match route.direction {
                Direction::In => &mut table.incoming,
                Direction::Out => &mut table.outgoing,
            };
            let entry = match &route.matcher {
                Matcher::Prefix(prefix) => tree.prefix_entry(prefix),
                Matcher::Pattern(pattern) => tree.entry(pattern),
            };
            entry.push(index);
            if names_cbs(route) {
                table.cbs.push(index);
            }
        }
        table.turns = vec![0; routes.len()];
        table.routes = routes;
        table
    }

    /// The routes whose pattern is the best match, by their index; several if the file has equal ones.
    pub(super) fn find(
        &self,
        direction: Direction,
        address: &str,
    ) -> impl Iterator<Item = (usize, &RouteSettings)> {
        let tree = match direction {
            Direction::In => &self.incoming,
            Direction::Out => &self.outgoing,
        };
        tree.find(address)
            .into_iter()
            .flatten()
            .filter_map(|&index| Some((index, self.routes.get(index)?)))
    }

    pub(super) fn get(&self, index: usize) -> Option<&RouteSettings> {
        self.routes.get(index)
    }

    /// The turn of the next link of a pattern, named by its first route; each pattern counts its own.
    pub(super) fn next_turn(&mut self, first: usize) -> usize {
        let Some(turn) = self.turns.get_mut(first) else {
            return 0;
        };
        std::mem::replace(turn, turn.wrapping_add(1))
    }

    /// The routes that a connection of this name, to a container of this id, serves.
    pub(super) fn served_by<'a>(
        &'a self,
        connection: &'a str,
        container_id: &'a str,
    ) -> impl Iterator<Item = &'a RouteSettings> {
        self.routes
            .iter()
            .filter(move |route| leads_to(&route.destination, connection, container_id))
    }

    /// Whether one of those is for `$cbs` by its name.
    pub(super) fn serves_cbs(&self, connection: &str, container_id: &str) -> bool {
        let mut routes = self.cbs.iter().filter_map(|&index| self.routes.get(index));
        routes.any(|route| leads_to(&route.destination, connection, container_id))
    }
}

fn leads_to(destination: &Destination, connection: &str, container_id: &str) -> bool {
    match destination {
        Destination::Connection(name) => name == connection,
        Destination::Container(id) => id == container_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: String, name: &str) -> RouteSettings {
        RouteSettings {
            name: prefix.clone(),
            matcher: Matcher::Prefix(prefix),
            direction: Direction::In,
            destination: Destination::Connection(name.into()),
            add_external_prefix: String::new(),
            del_external_prefix: "a/".into(),
        }
    }

    #[test]
    fn routes_for_cbs_are_known_among_thousands() {
        let mut routes: Vec<RouteSettings> = (0..10_000)
            .map(|number| route(format!("r{number}"), "ONE"))
            .collect();
        routes.push(route("$cbs".into(), "TWO"));
        routes.push(route("a/$cbs".into(), "THREE"));
        let table = LinkRouteTable::new(routes);
        assert_eq!(table.cbs, [10_000, 10_001], "no other is looked at");
        let known = ["ONE", "TWO", "THREE"].map(|name| table.serves_cbs(name, ""));
        assert_eq!(known, [false, true, true]);
    }
}
