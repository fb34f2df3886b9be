//! Who reads the partitions of event hubs: as many as want to, or the one with the highest epoch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fe2o3_amqp::types::definitions::{AmqpError, Error, LinkError};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::node::Partition;
use super::observed::ConnectionId;

/// Numbers readers in the order they came.
pub(crate) type ReaderId = u64;

struct Entry {
    id: ReaderId,
    connection: ConnectionId,
    partition: Partition,
    epoch: Option<i64>,
}

#[derive(Default)]
struct Entries {
    last_id: ReaderId,
    present: Vec<Entry>,
}

/// All readers of a namespace.
#[derive(Clone, Default)]
pub(super) struct Readers(Arc<Mutex<Entries>>);

/// One that may read, until this is dropped.
pub(super) struct Reader {
    pub(super) id: ReaderId,
    all: Readers,
}

impl Readers {
    /// Lets a receiver in, and says which others have to go for it.
    pub(super) fn enter(
        &self,
        partition: &Partition,
        epoch: Option<i64>,
        connection: ConnectionId,
    ) -> Result<(Reader, Vec<(ConnectionId, ReaderId)>), Error> {
        let mut entries = self.lock();
        let others = || {
            entries
                .present
                .iter()
                .filter(|entry| entry.partition == *partition)
        };
        let highest = others().filter_map(|entry| entry.epoch).max();
        if let Some(highest) = highest.filter(|&highest| epoch < Some(highest)) {
            let text = format!("A receiver with a higher epoch of '{highest}' already exists.");
            return Err(Error::new(LinkError::Stolen, text, None));
        }
        let gone = others()
            .filter(|_| epoch.is_some())
            .map(|entry| (entry.connection, entry.id))
            .collect();
        entries.last_id += 1;
        let id = entries.last_id;
        entries.present.push(Entry {
            id,
            connection,
            partition: partition.clone(),
            epoch,
        });
        let all = self.clone();
        Ok((Reader { id, all }, gone))
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.all.lock().present.retain(|entry| entry.id != self.id);
    }
}

/// The epoch that a receiver claims. Event Hubs takes a long and nothing else for one.
pub(super) fn epoch_of(attach: &Attach) -> Result<Option<i64>, Error> {
    let properties = attach.properties.as_ref();
    match properties.and_then(|map| map.get(&Symbol::from("com.microsoft:epoch"))) {
        None => Ok(None),
        Some(Value::Long(epoch)) => Ok(Some(*epoch)),
        Some(other) => {
            let text = format!("The property com.microsoft:epoch is no long: {other:?}.");
            Err(Error::new(AmqpError::InvalidField, text, None))
        }
    }
}
