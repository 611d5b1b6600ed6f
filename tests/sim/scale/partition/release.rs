//! Commits of a partition, its retry tiers, and release.

use hookstream::delivery::partition::effect::Outcome;
use hookstream::delivery::partition::event::Event;
use hookstream::model::tiers::Head;
use hookstream::model::units::Offset;
use hookstream::model::window::Place;

use super::table::{Record, record};
use super::{SECOND, Step, TICK, World};

impl World<'_> {
    pub(super) fn tick(&mut self) {
        self.apply(Event::Tick);
        self.commit();
        self.observe();
        self.at(self.now + TICK, Step::Tick);
    }

    pub(super) fn commit(&mut self) {
        if self.committing {
            return;
        }
        let place = Place::new("cluster", "webhook-commands", 0);
        let outcomes = std::mem::take(&mut self.outcomes);
        let offsets: Vec<Offset> = outcomes.iter().filter_map(|(offset, _)| *offset).collect();
        let snapshot = self
            .machine
            .snapshot_with(&offsets, place, self.settings.window_format);
        self.seen.window = self.seen.window.max(snapshot.metadata.len());
        let done = self
            .records
            .partition_point(|&(offset, _)| offset < snapshot.position.0);
        self.records.drain(..done);
        self.seen.span = self.seen.span.max(self.machine.span());
        if outcomes.is_empty() {
            return;
        }
        self.committing = true;
        let mut records = Vec::new();
        for (_, outcome) in outcomes {
            match outcome {
                Outcome::Tier(tier, command) => {
                    self.bytes -= command.weight();
                    self.held -= 1;
                    records.push((tier, record(&command)));
                }
                Outcome::DeadLetter(command, _) => {
                    self.bytes -= command.weight();
                    self.held -= 1;
                    self.seen.dead += 1;
                    if self.is_awaited(&record(&command)) {
                        self.outstanding -= 1;
                    }
                }
                Outcome::Invalid(_)
                | Outcome::Disable(..)
                | Outcome::Status(_)
                | Outcome::Notice(..)
                | Outcome::Verification(..) => {}
            }
        }
        let at = self.now + self.shape.transaction;
        self.at(at, Step::Committed(offsets, records));
    }

    pub(super) fn committed(&mut self, offsets: Vec<Offset>, records: Vec<(usize, Record)>) {
        self.committing = false;
        let wall = self.wall();
        for (tier, record) in records {
            self.seen.to_tier += 1;
            self.in_tiers += 1;
            self.tiers[tier].push_back((wall, record));
        }
        self.seen.in_tiers = self.seen.in_tiers.max(self.in_tiers);
        self.settle_if_done();
        self.apply(Event::Durable(offsets));
    }

    /// Takes what is due from the heads of the tiers.
    pub(super) fn release(&mut self) {
        let (rate, transaction) = self.shape.release;
        let most = (rate * TICK as f64 / SECOND as f64).ceil() as usize;
        let (wall, tiers) = (self.wall(), &self.settings.tiers);
        let mut moved = Vec::new();
        for (index, tier) in self.tiers.iter_mut().enumerate() {
            while moved.len() < most
                && let Some((appended, record)) = tier.front()
            {
                let due = record.due.unwrap_or(*appended);
                let to = match tiers.at_head(index, *appended, due, wall) {
                    Head::Wait(_) => break,
                    Head::Due => None,
                    Head::Hop(other) => Some(other),
                };
                moved.push((to, *record));
                tier.pop_front();
            }
        }
        let count = moved.len() as u64;
        if self.now >= self.moved.0 + SECOND {
            self.moved = (self.now, 0);
        }
        self.moved.1 += count;
        self.seen.moves = self.seen.moves.max(self.moved.1);
        if !moved.is_empty() {
            self.at(self.now + transaction, Step::Released(moved));
        }
        self.at(self.now + TICK, Step::Release);
    }

    pub(super) fn released(&mut self, records: Vec<(Option<usize>, Record)>) {
        let wall = self.wall();
        for (to, record) in records {
            match to {
                Some(tier) => {
                    self.seen.hops += 1;
                    self.tiers[tier].push_back((wall, record));
                }
                None => {
                    self.seen.released += 1;
                    self.in_tiers -= 1;
                    self.append(record);
                }
            }
        }
        self.end += 1;
    }
}
