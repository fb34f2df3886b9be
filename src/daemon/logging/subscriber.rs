//! The `tracing` subscriber: decides what is of interest, and prints it.

use std::sync::{Arc, PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use super::level::{Level, LevelSet};
use super::line::{SEVERITY_FIELD, SeverityVisitor, write_text};
use super::module::Module;
use super::settings::{Rule, Table};
use super::sink::Sink;

/// Prints events as qdrouterd prints its log.
///
/// Copies share one table. It is replaced whole ([`LineSubscriber::replace`]), and the lock round it is never held while
/// a line is made or written.
#[derive(Clone, Debug)]
pub(super) struct LineSubscriber {
    table: Arc<RwLock<Arc<Table>>>,
}

impl LineSubscriber {
    pub(super) fn new(table: Table) -> Self {
        LineSubscriber {
            table: Arc::new(RwLock::new(Arc::new(table))),
        }
    }

    /// Puts another table in place. The caller must rebuild `tracing`'s interest cache.
    pub(super) fn replace(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    fn table(&self) -> Arc<Table> {
        // A poisoned lock holds a whole table all the same: a replacement is one assignment.
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.is_span()
            && self
                .table()
                .wanted(Module::of_target(metadata.target()))
                .intersects(possible_levels(metadata))
    }
}

impl Subscriber for LineSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let table = self.table();
        let wanted = Module::all()
            .map(|module| table.wanted(module))
            .fold(LevelSet::NONE, LevelSet::union);
        let most_verbose = Level::ALL.into_iter().find(|level| wanted.contains(*level));
        Some(most_verbose.map_or(LevelFilter::OFF, |level| LevelFilter::from_level(level.carrier())))
    }

    fn event(&self, event: &Event<'_>) {
        let table = self.table();
        let module = Module::of_target(event.metadata().target());
        let level = level_of(event);
        if !table.wanted(module).contains(level) {
            return;
        }
        let rule = table.rule(module);
        let configured = rule.levels.contains(level);
        if configured {
            rule.sink
                .write(level, &line(event, level, rule, &rule.sink, &table));
        }
        if module == Module::PROTOCOL
            && level == Level::Trace
            && let Some(stderr) = &table.frame_trace
            && !(configured && rule.sink.is_stderr())
        {
            stderr.write(level, &line(event, level, rule, stderr, &table));
        }
    }

    // Spans are never enabled: nothing of them is kept.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The levels an event of this call site may turn out to have.
fn possible_levels(metadata: &Metadata<'_>) -> LevelSet {
    let own = LevelSet::only(Level::from(*metadata.level()));
    if metadata.fields().field(SEVERITY_FIELD).is_none() {
        return own;
    }
    own.union(LevelSet::only(Level::Notice))
        .union(LevelSet::only(Level::Critical))
}

fn level_of(event: &Event<'_>) -> Level {
    let own = Level::from(*event.metadata().level());
    if event.metadata().fields().field(SEVERITY_FIELD).is_none() {
        return own;
    }
    let mut visitor = SeverityVisitor::default();
    event.record(&mut visitor);
    visitor.level.unwrap_or(own)
}

fn line(event: &Event<'_>, level: Level, rule: &Rule, sink: &Sink, table: &Table) -> String {
    let metadata = event.metadata();
    let mut line = String::with_capacity(192);
    if rule.timestamp && !sink.adds_timestamp() {
        table.clock.write_now(&mut line);
        line.push(' ');
    }
    for piece in [
        Module::of_target(metadata.target()).name(),
        " (",
        level.name(),
        ") ",
    ] {
        line.push_str(piece);
    }
    write_text(event, &mut line);
    if rule.source
        && let (Some(file), Some(number)) = (metadata.file(), metadata.line())
    {
        line.push_str(&format!(" ({file}:{number})"));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::logging::{LogSettings, ModuleSettings};

    fn hint(sections: &[(&str, LevelSet)], trace_frames: bool) -> Option<LevelFilter> {
        let modules = sections
            .iter()
            .map(|(module, levels)| ModuleSettings {
                module: Module::from_name(module).expect("a module"),
                levels: Some(*levels),
                include_timestamp: None,
                include_source: None,
                output: None,
            })
            .collect();
        let settings = LogSettings {
            modules,
            trace_frames,
            ..LogSettings::default()
        };
        LineSubscriber::new(Table::new(&settings).expect("nothing to open")).max_level_hint()
    }

    #[test]
    fn the_most_verbose_module_bounds_the_process() {
        let default = |levels| ("DEFAULT", levels);
        assert_eq!(hint(&[], false), Some(LevelFilter::INFO));
        assert_eq!(hint(&[], true), Some(LevelFilter::TRACE));
        // Modules that are not configured follow DEFAULT, so none is left.
        assert_eq!(hint(&[default(LevelSet::NONE)], false), Some(LevelFilter::OFF));
        assert_eq!(
            hint(&[default(LevelSet::only(Level::Critical))], false),
            Some(LevelFilter::ERROR)
        );
        assert_eq!(
            hint(&[default(LevelSet::from(Level::Notice))], false),
            Some(LevelFilter::INFO)
        );
        let server = ("SERVER", LevelSet::only(Level::Debug));
        assert_eq!(
            hint(&[default(LevelSet::from(Level::Error)), server], false),
            Some(LevelFilter::DEBUG)
        );
    }
}
