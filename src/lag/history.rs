//! The last hour of the whole backlog, a point a minute, for the page: it survives a reload, and ends with the lag role.
//! Pure.

use std::collections::VecDeque;

use serde::Serialize;

use super::figures::{Figures, Subscriber};

/// Minutes that are kept.
const MINUTES: usize = 60;

/// One minute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Point {
    /// The beginning of the minute, seconds since the epoch.
    pub at: u64,
    /// Commands in the commands topic, at the end of the minute.
    pub ready: u64,
    /// Commands in the retry tiers, at its end.
    pub waiting: u64,
    /// Commands that reached an end in it: delivered, dead-lettered or discarded.
    pub finished: u64,
    /// Attempts without a 2xx, in the five minutes before its end.
    pub failed_attempts: u64,
}

/// The points, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    /// The sum of what was finished, when figures came last.
    finished: Option<u64>,
}

impl History {
    /// Takes new figures. Those of a reading that is not complete yet are left out.
    pub(super) fn note(&mut self, figures: &Figures) {
        if figures.as_of.is_none() || figures.as_of_seconds < 1.0 {
            return;
        }
        let at = figures.as_of_seconds as u64 / 60 * 60;
        let finished = sum(figures, |one| one.finished);
        // It begins anew when a subscriber is forgotten.
        let more = self
            .finished
            .map_or(0, |before| finished.saturating_sub(before));
        self.finished = Some(finished);
        if self.points.back().is_none_or(|last| last.at < at) {
            self.points.push_back(Point {
                at,
                ..Point::default()
            });
            if self.points.len() > MINUTES {
                self.points.pop_front();
            }
        }
        if let Some(last) = self.points.back_mut() {
            last.ready = sum(figures, |one| one.ready);
            last.waiting = sum(figures, |one| one.waiting);
            last.finished += more;
            last.failed_attempts = sum(figures, failed_attempts);
        }
    }

    /// The points, oldest first.
    pub(super) fn points(&self) -> impl Iterator<Item = &Point> {
        self.points.iter()
    }
}

fn sum(figures: &Figures, figure: impl Fn(&Subscriber) -> u64) -> u64 {
    figures.subscribers.iter().map(figure).sum()
}

fn failed_attempts(one: &Subscriber) -> u64 {
    let attempts = one.standing.attempts.iter();
    let failed = attempts.filter(|(class, _)| &***class != "2xx");
    failed.map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(at: u64, ready: u64, finished: u64, failed: u64) -> Figures {
        let mut one = Subscriber {
            name: "acme".to_owned(),
            ready,
            waiting: 1,
            finished,
            ..Subscriber::default()
        };
        one.standing.attempts = [("2xx".into(), 50), ("5xx".into(), failed)].into();
        Figures {
            as_of: Some("then".to_owned()),
            as_of_seconds: at as f64 + 0.5,
            subscribers: vec![one],
            ..Figures::default()
        }
    }

    #[test]
    fn a_minute_has_its_last_backlog_and_all_that_was_finished_in_it() {
        let mut history = History::default();
        history.note(&Figures::default());
        assert_eq!(
            history.points().count(),
            0,
            "nothing was read completely yet"
        );
        for (at, ready, finished, failed) in [
            (600, 9, 100, 0),
            (630, 5, 104, 2),
            (659, 3, 106, 3),
            (660, 0, 109, 4),
            // A subscriber was forgotten.
            (661, 0, 20, 4),
            (662, 0, 21, 4),
        ] {
            history.note(&figures(at, ready, finished, failed));
        }
        let points: Vec<_> = history.points().cloned().collect();
        let point = |at, ready, finished, failed_attempts| Point {
            at,
            ready,
            waiting: 1,
            finished,
            failed_attempts,
        };
        assert_eq!(points, [point(600, 3, 6, 3), point(660, 0, 4, 4)]);
    }

    #[test]
    fn an_hour_is_kept() {
        let mut history = History::default();
        for minute in 0..200 {
            history.note(&figures(600 + 60 * minute, minute, minute, 0));
        }
        let points: Vec<_> = history.points().collect();
        assert_eq!(points.len(), MINUTES);
        assert_eq!(points[0].ready, 140);
        assert!(points.iter().all(|point| point.finished == 1));
    }
}
