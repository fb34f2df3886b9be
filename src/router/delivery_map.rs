//! Translation of delivery-ids between the two sessions of a pair, in one direction.
//!
//! Ids run gapless on both sides, so as long as deliveries follow each other on both, one *run* translates all of
//! them with one addition, and a disposition's range stays a range. A run goes when none of its deliveries is
//! unsettled and it is not the last: at once when it is the first, else when runs have become many. There is no object per
//! delivery, only one bit: settled or not.

use std::collections::VecDeque;

use crate::amqp::serial::DeliveryId;
use crate::endpoint::limits::{TRACKED_DELIVERIES, TRACKED_RUNS};

/// Deliveries whose ids differ by a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// How many deliveries this map knew before it.
    position: u64,
    length: u32,
    source: DeliveryId,
    target: DeliveryId,
}

/// An inclusive range of ids.
pub(super) type Range = (DeliveryId, DeliveryId);

/// Whose ids a range is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// The side that sent the deliveries to us.
    Source,
    /// The side that we sent them to.
    Target,
}

impl Ids {
    const fn other(self) -> Self {
        match self {
            Ids::Source => Ids::Target,
            Ids::Target => Ids::Source,
        }
    }
}

/// Deliveries of one run that lie in a range.
#[derive(Clone, Copy, Debug)]
struct Part {
    position: u64,
    length: u32,
    /// The first of them, on the other side.
    other: DeliveryId,
}

impl Part {
    const fn end(&self) -> u64 {
        self.position + self.length as u64
    }

    /// The last of them, on the other side.
    const fn last(&self) -> DeliveryId {
        self.other.plus(self.length - 1)
    }
}

impl Run {
    const fn first(&self, ids: Ids) -> DeliveryId {
        match ids {
            Ids::Source => self.source,
            Ids::Target => self.target,
        }
    }

    /// Which part of the run, as offsets from its start, lies in the range of `count` ids from `first`.
    fn overlap(&self, ids: Ids, first: DeliveryId, count: u32) -> Option<(u32, u32)> {
        let start = self.first(ids);
        let offset = first.since(start);
        if offset < self.length {
            return Some((offset, count.min(self.length - offset)));
        }
        let lead = start.since(first);
        (lead < count).then(|| (0, self.length.min(count - lead)))
    }

    fn part(&self, ids: Ids, first: DeliveryId, count: u32) -> Option<Part> {
        let (offset, length) = self.overlap(ids, first, count)?;
        Some(Part {
            position: self.position + u64::from(offset),
            length,
            other: self.first(ids.other()).plus(offset),
        })
    }

    /// Whether the run holds `id` or begins behind it; `origin` is the first id of all.
    const fn contains_or_follows(&self, ids: Ids, id: DeliveryId, origin: DeliveryId) -> bool {
        self.first(ids).since(origin) as u64 + self.length as u64 > id.since(origin) as u64
    }

    const fn end(&self) -> u64 {
        self.position + self.length as u64
    }
}

/// Longest run: well below the half of the id space in which serial numbers compare.
const MAX_RUN: u32 = 1 << 30;

/// Runs that are not worth a look.
const SWEEP_AT: usize = 64;

/// The map of one direction.
#[derive(Debug, Default)]
pub(super) struct DeliveryMap {
    runs: VecDeque<Run>,
    /// One bit per delivery from position `base` on: unsettled.
    unsettled: VecDeque<u64>,
    /// Position of the first bit; a multiple of 64.
    base: u64,
    next: u64,
    /// With so many runs, those are looked for that are settled behind one that is not.
    sweep_at: usize,
}

impl DeliveryMap {
    /// The next delivery, under its two ids.
    #[inline]
    pub(super) fn push(&mut self, source: DeliveryId, target: DeliveryId, is_settled: bool) {
        let next = |run: &&mut Run| {
            run.length < MAX_RUN
                && run.source.plus(run.length) == source
                && run.target.plus(run.length) == target
        };
        match self.runs.back_mut().filter(next) {
            Some(run) => run.length += 1,
            None => {
                if self.runs.len() >= self.sweep_at {
                    self.sweep();
                }
                self.runs.push_back(Run {
                    position: self.next,
                    length: 1,
                    source,
                    target,
                });
            }
        }
        let position = self.next;
        self.next += 1;
        if self.unsettled.is_empty() {
            self.base = position & !63;
        }
        while self.base + 64 * length(&self.unsettled) <= position {
            self.unsettled.push_back(0);
        }
        if !is_settled {
            self.mark_unsettled(position);
        }
        self.prune();
    }

    /// The same deliveries under the other side's ids, as ranges, appended to `out`. With `settle` they count as
    /// settled from now on.
    pub(super) fn translate(
        &mut self,
        ids: Ids,
        first: DeliveryId,
        last: DeliveryId,
        settle: bool,
        out: &mut Vec<Range>,
    ) {
        let Some(count) = last
            .since(first)
            .checked_add(1)
            .filter(|&count| count < 0x8000_0000)
        else {
            return;
        };
        let Some(origin) = self.runs.front().map(|run| run.first(ids)) else {
            return;
        };
        // Ids only grow, so the runs that lie wholly before `first` are a prefix of the list; those in the range follow.
        let before =
            |run: &Run| first.since(origin) < 0x8000_0000 && !run.contains_or_follows(ids, first, origin);
        let is_past = |run: &Run| !before(run) && run.part(ids, first, count).is_none();
        let start = self.runs.partition_point(before);
        let end = self.runs.partition_point(|run| !is_past(run)).max(start);
        let parts = self
            .runs
            .range(start..end)
            .filter_map(|run| run.part(ids, first, count));
        let Some(front) = parts.clone().next() else { return };
        let back = parts.clone().next_back().unwrap_or(front);
        // A peer may leave gaps between its ids, and speak of all of them again and again: as a rule the deliveries follow
        // each other on the other side all the same, and are one range there.
        if back.end().checked_sub(front.position) == Some(u64::from(back.last().since(front.other)) + 1) {
            out.push((front.other, back.last()));
        } else {
            for part in parts {
                match out.last_mut() {
                    Some((_, last)) if last.plus(1) == part.other => *last = part.last(),
                    Some(_) | None => out.push((part.other, part.last())),
                }
            }
        }
        if settle {
            self.clear(front.position, back.end());
            self.prune();
        }
    }

    /// Forgets all deliveries so far.
    pub(super) fn forget(&mut self) {
        *self = DeliveryMap {
            next: self.next,
            ..DeliveryMap::default()
        };
    }

    /// A delivery turned out settled while it was still being sent.
    pub(super) fn settle(&mut self, source: DeliveryId) {
        let run = self
            .runs
            .iter()
            .rev()
            .find(|run| source.since(run.source) < run.length);
        if let Some(run) = run {
            let position = run.position + u64::from(source.since(run.source));
            self.clear(position, position + 1);
            self.prune();
        }
    }

    /// Whether any delivery is unsettled.
    pub(super) fn has_unsettled(&self) -> bool {
        self.unsettled.iter().any(|&word| word != 0)
    }

    /// All unsettled deliveries as ranges of `ids`, appended to `out`.
    pub(super) fn unsettled(&self, ids: Ids, out: &mut Vec<Range>) {
        for run in &self.runs {
            let mut open: Option<Range> = None;
            let forgotten = u32::try_from(self.base.saturating_sub(run.position)).unwrap_or(u32::MAX);
            for offset in forgotten..run.length {
                let position = run.position + u64::from(offset);
                let id = run.first(ids).plus(offset);
                match (&mut open, self.is_unsettled(position)) {
                    (Some(range), true) => range.1 = id,
                    (None, true) => open = Some((id, id)),
                    (Some(range), false) => {
                        out.push(*range);
                        open = None;
                    }
                    (None, false) => {}
                }
            }
            out.extend(open);
        }
    }

    fn is_unsettled(&self, position: u64) -> bool {
        let Some(offset) = position.checked_sub(self.base) else {
            return false;
        };
        let word = usize::try_from(offset / 64)
            .ok()
            .and_then(|index| self.unsettled.get(index));
        word.is_some_and(|word| word & (1 << (offset % 64)) != 0)
    }

    fn mark_unsettled(&mut self, position: u64) {
        if let Some(word) = self.word(position) {
            *word |= 1 << (position % 64);
        }
    }

    /// Clears the bits of positions from `from` up to `to`.
    fn clear(&mut self, from: u64, to: u64) {
        for (position, ones) in masks(from.max(self.base), to) {
            let Some(word) = self.word(position) else { return };
            *word &= !ones;
        }
    }

    /// Whether none of a run's deliveries is unsettled.
    fn is_over(&self, run: &Run) -> bool {
        masks(run.position.max(self.base), run.end()).all(|(position, ones)| {
            let word = usize::try_from((position - self.base) / 64)
                .ok()
                .and_then(|index| self.unsettled.get(index));
            word.is_none_or(|word| word & ones == 0)
        })
    }

    /// Forgets the runs that are settled wherever they are, and looks again when there are twice as many as are left.
    fn sweep(&mut self) {
        let mut runs = std::mem::take(&mut self.runs);
        runs.retain(|run| !self.is_over(run));
        self.sweep_at = SWEEP_AT.max(2 * runs.len());
        self.runs = runs;
    }

    /// The word of a position; `base` is a multiple of 64, so bit numbers are those of the position.
    fn word(&mut self, position: u64) -> Option<&mut u64> {
        let offset = position.checked_sub(self.base)?;
        self.unsettled.get_mut(usize::try_from(offset / 64).ok()?)
    }

    /// Forgets what is settled at the front, and the oldest when there is too much.
    #[inline]
    fn prune(&mut self) {
        while self.unsettled.len() > 1
            && (self.unsettled.front() == Some(&0) || self.next - self.base > TRACKED_DELIVERIES)
        {
            self.unsettled.pop_front();
            self.base += 64;
        }
        while self.runs.len() > 1
            && (self.runs.len() > TRACKED_RUNS || self.runs.front().is_some_and(|run| run.end() <= self.base))
        {
            self.runs.pop_front();
        }
    }
}

/// The words that hold the bits of positions from `from` up to `to`: a position in each, and those bits.
fn masks(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut position = from;
    std::iter::from_fn(move || {
        let start = position;
        position = ((start | 63) + 1).min(to);
        let width = position.checked_sub(start).filter(|&width| width > 0)?;
        Some((start, u64::MAX >> (64 - width) << (start % 64)))
    })
}

fn length(words: &VecDeque<u64>) -> u64 {
    u64::try_from(words.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn translate(map: &mut DeliveryMap, ids: Ids, first: u32, last: u32, settle: bool) -> Vec<(u32, u32)> {
        let mut out = Vec::new();
        map.translate(ids, DeliveryId(first), DeliveryId(last), settle, &mut out);
        out.into_iter().map(|(a, b)| (a.0, b.0)).collect()
    }

    #[test]
    fn a_range_stays_a_range_across_the_wrap() {
        let mut map = DeliveryMap::default();
        for step in 0..8u32 {
            map.push(
                DeliveryId(0xffff_fffd_u32.wrapping_add(step)),
                DeliveryId(step),
                false,
            );
        }
        assert_eq!(map.runs.len(), 1);
        assert_eq!(translate(&mut map, Ids::Target, 0, 7, false), [(0xffff_fffd, 4)]);
        assert_eq!(translate(&mut map, Ids::Source, 0xffff_ffff, 1, true), [(2, 4)]);
        let mut left = Vec::new();
        map.unsettled(Ids::Target, &mut left);
        assert_eq!(
            left,
            [(DeliveryId(0), DeliveryId(1)), (DeliveryId(5), DeliveryId(7))]
        );
    }

    #[test]
    fn what_one_side_keeps_apart_is_a_range_on_the_other() {
        let mut map = DeliveryMap::default();
        for step in 0..10u32 {
            let gap = u32::from(step >= 6);
            map.push(DeliveryId(3 * step), DeliveryId(7 + step + gap), false);
        }
        assert_eq!(map.runs.len(), 10);
        assert_eq!(translate(&mut map, Ids::Source, 1, 15, false), [(8, 12)]);
        assert_eq!(
            translate(&mut map, Ids::Target, 12, 14, false),
            [(15, 15), (18, 18)]
        );
        assert_eq!(
            translate(&mut map, Ids::Source, 0, 100, true),
            [(7, 12), (14, 17)]
        );
        assert!(!map.has_unsettled());
    }

    #[test]
    fn ids_that_were_never_sent_are_unknown() {
        let mut map = DeliveryMap::default();
        map.push(DeliveryId(5), DeliveryId(0), false);
        assert!(translate(&mut map, Ids::Source, 6, 9, false).is_empty());
        assert!(translate(&mut map, Ids::Source, 0, 4, false).is_empty());
        assert!(translate(&mut map, Ids::Source, 9, 6, false).is_empty());
        assert_eq!(translate(&mut map, Ids::Source, 0, 100, false), [(0, 0)]);
    }

    /// They are forgotten by words of 64.
    #[test]
    fn the_oldest_delivery_is_known_until_there_are_too_many() {
        let mut map = DeliveryMap::default();
        let tracked = u32::try_from(TRACKED_DELIVERIES).unwrap();
        for id in 0..tracked {
            map.push(DeliveryId(id), DeliveryId(id), false);
        }
        let unsettled = |map: &DeliveryMap| {
            let mut ranges = Vec::new();
            map.unsettled(Ids::Source, &mut ranges);
            ranges
        };
        assert_eq!(unsettled(&map), [(DeliveryId(0), DeliveryId(tracked - 1))]);
        map.push(DeliveryId(tracked), DeliveryId(tracked), false);
        assert_eq!(unsettled(&map), [(DeliveryId(64), DeliveryId(tracked))]);
    }

    #[test]
    fn the_oldest_run_is_known_until_there_are_too_many() {
        let mut map = DeliveryMap::default();
        let push = |map: &mut DeliveryMap, run: u32| {
            map.push(DeliveryId(2 * run), DeliveryId(run), false);
        };
        let tracked = u32::try_from(TRACKED_RUNS).unwrap();
        for run in 0..tracked {
            push(&mut map, run);
        }
        assert_eq!(translate(&mut map, Ids::Source, 0, 0, false), [(0, 0)]);
        push(&mut map, tracked);
        assert_eq!(translate(&mut map, Ids::Source, 0, 0, false), []);
        assert_eq!(translate(&mut map, Ids::Source, 2, 2, false), [(1, 1)]);
    }

    /// Behind a delivery that never ends, a peer that leaves gaps between its ids makes a run of each.
    #[test]
    fn runs_that_are_settled_go_wherever_they_are() {
        let mut map = DeliveryMap::default();
        map.push(DeliveryId(0), DeliveryId(0), false);
        for step in 1..1000u32 {
            map.push(DeliveryId(2 * step), DeliveryId(step), true);
            assert!(map.runs.len() <= SWEEP_AT, "{step}");
        }
        for step in 1000..1200u32 {
            map.push(DeliveryId(2 * step), DeliveryId(step), false);
        }
        assert!(map.runs.len() > 200);
        assert_eq!(translate(&mut map, Ids::Source, 2000, 3000, true), [(1000, 1199)]);
        for step in 1200..2000u32 {
            map.push(DeliveryId(2 * step), DeliveryId(step), true);
        }
        assert!(map.runs.len() <= SWEEP_AT, "{}", map.runs.len());
        assert_eq!(translate(&mut map, Ids::Source, 0, 0, true), [(0, 0)]);
        assert!(!map.has_unsettled());
    }

    #[test]
    fn memory_is_bounded_by_what_is_tracked() {
        let mut map = DeliveryMap::default();
        for id in 0..u32::try_from(TRACKED_DELIVERIES).unwrap() + 1000 {
            map.push(DeliveryId(id), DeliveryId(id), false);
        }
        assert!(map.next - map.base <= TRACKED_DELIVERIES + 64);
    }

    proptest! {
        /// Against a list of pairs: every unsettled delivery translates, both ways; runs never mix deliveries up.
        #[test]
        fn agrees_with_a_list(gaps in prop::collection::vec((0u32..3, any::<bool>()), 1..200),
                              settled in prop::collection::vec(0usize..200, 0..200),
                              start in 0u32..600, count in 1u32..600) {
            let mut map = DeliveryMap::default();
            let mut list: Vec<(u32, u32, bool)> = Vec::new();
            let mut source = 0xffff_fff0u32;
            for (target, (gap, is_settled)) in (0u32..).zip(gaps) {
                source = source.wrapping_add(1 + gap);
                map.push(DeliveryId(source), DeliveryId(target), is_settled);
                list.push((source, target, is_settled));
            }
            for index in settled {
                if let Some(entry) = list.get_mut(index) {
                    let known = translate(&mut map, Ids::Source, entry.0, entry.0, true);
                    if !entry.2 {
                        prop_assert_eq!(known, vec![(entry.1, entry.1)]);
                    }
                    entry.2 = true;
                }
            }
            for &(source, target, is_settled) in &list {
                if !is_settled {
                    prop_assert_eq!(translate(&mut map, Ids::Source, source, source, false), vec![(target, target)]);
                    prop_assert_eq!(translate(&mut map, Ids::Target, target, target, false), vec![(source, source)]);
                }
            }
            let first = 0xffff_ffe0u32.wrapping_add(start);
            let known = translate(&mut map, Ids::Source, first, first.wrapping_add(count - 1), false);
            let known: Vec<u32> = known.into_iter().flat_map(|(a, b)| a..=b).collect();
            let mut meant = Vec::new();
            for &(source, target, is_settled) in &list {
                let is_meant = source.wrapping_sub(first) < count;
                prop_assert!(is_meant && is_settled || known.contains(&target) == is_meant);
                meant.extend(is_meant.then_some(target));
            }
            prop_assert!(known.iter().all(|target| meant.contains(target)));
            let mut ranges = Vec::new();
            map.unsettled(Ids::Target, &mut ranges);
            let open: Vec<u32> = ranges.iter().flat_map(|(a, b)| a.0..=b.0).collect();
            let expected: Vec<u32> = list.iter().filter(|entry| !entry.2).map(|entry| entry.1).collect();
            prop_assert_eq!(open, expected);
        }
    }
}
