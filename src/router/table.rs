//! The link routes: an immutable table, asked once per attach.

use super::pattern::PatternTree;
use super::settings::{Destination, Direction, Matcher, RouteSettings};

/// Link routes by direction and address.
#[derive(Debug, Default)]
pub(super) struct LinkRouteTable {
    routes: Vec<RouteSettings>,
    /// Indices of the routes with one pattern, in file order.
    incoming: PatternTree<Vec<usize>>,
    outgoing: PatternTree<Vec<usize>>,
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
        }
        table.routes = routes;
        table
    }

    /// The routes whose pattern is the best match; several if the file has equal ones.
    pub(super) fn find(&self, direction: Direction, address: &str) -> impl Iterator<Item = &RouteSettings> {
        let tree = match direction {
            Direction::In => &self.incoming,
            Direction::Out => &self.outgoing,
        };
        tree.find(address)
            .into_iter()
            .flatten()
            .filter_map(|&index| self.routes.get(index))
    }

    /// The routes that a connection of this name, to a container of this id, serves.
    pub(super) fn served_by<'a>(
        &'a self,
        connection: &'a str,
        container_id: &'a str,
    ) -> impl Iterator<Item = &'a RouteSettings> {
        self.routes.iter().filter(move |route| match &route.destination {
            Destination::Connection(name) => name == connection,
            Destination::Container(id) => id == container_id,
        })
    }
}
