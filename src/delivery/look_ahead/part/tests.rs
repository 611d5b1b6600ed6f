//! A part is read whole, in whatever turns.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::*;
use crate::edge::port::records::RawHeader;
use crate::edge::port::task::block_on;
use crate::model::units::EpochMs;

/// Offsets of a log whose leader fails at each of `fails`, once.
struct Fake {
    offsets: Vec<i64>,
    high: Cell<i64>,
    stable: Cell<i64>,
    fails: RefCell<BTreeSet<i64>>,
}

struct View(i64);

impl RecordView for View {
    fn topic(&self) -> &str {
        "t"
    }

    fn partition(&self) -> i32 {
        0
    }

    fn offset(&self) -> i64 {
        self.0
    }

    fn key(&self) -> Option<&[u8]> {
        None
    }

    fn payload(&self) -> Option<&[u8]> {
        None
    }

    fn timestamp(&self) -> Option<EpochMs> {
        None
    }

    fn headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        std::iter::empty()
    }
}

impl Log for Fake {
    type Record<'a> = View;

    fn topic(&self) -> &str {
        "t"
    }

    async fn stable_ends(&self) -> Result<Vec<Range>, Failure> {
        Ok(Vec::new())
    }

    async fn high_watermark(
        &self,
        partition: i32,
        _patience: Duration,
        _stop: &dyn Fn() -> bool,
    ) -> Result<(Range, i64), Failure> {
        let (low, end) = (0, self.high.get());
        Ok((
            Range {
                partition,
                low,
                end,
            },
            self.stable.get(),
        ))
    }

    async fn read(
        &self,
        _isolation: Isolation,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(&View),
    ) -> Result<(), Failure> {
        for range in ranges {
            let within = |offset: &&i64| (range.low..range.end).contains(*offset);
            for &offset in self.offsets.iter().filter(within) {
                if stop() {
                    return Ok(());
                }
                if self.fails.borrow_mut().remove(&offset) {
                    return Err(Failure::Internal("the leader moves".to_owned()));
                }
                visit(&View(offset));
            }
        }
        Ok(())
    }
}

fn log(end: i64, stable: i64) -> Fake {
    Fake {
        offsets: (0..end).filter(|offset| offset % 3 != 2).collect(),
        high: Cell::new(end),
        stable: Cell::new(stable),
        fails: RefCell::default(),
    }
}

#[test]
fn turns_and_failures_skip_nothing_and_repeat_nothing() {
    let log = log(100, 100);
    log.fails.borrow_mut().extend([0, 33, 34, 97]);
    let mut part = Part::new("t".to_owned(), 0, Some(Position(7)), Some(Duration::MAX));
    let seen = RefCell::new(Vec::new());
    let (mut more, mut failed) = (0, 0);
    loop {
        let begin = seen.borrow().len();
        let stop = || seen.borrow().len() >= begin + 5;
        let each = |view: &View| seen.borrow_mut().push(view.0);
        match block_on(part.turn(&log, &stop, each)) {
            Ok(Read::All) => break,
            Ok(Read::More) => more += 1,
            Ok(Read::Hidden) => panic!("nothing is hidden"),
            Err(_) => failed += 1,
        }
    }
    let all: Vec<i64> = log.offsets.iter().copied().filter(|at| *at >= 7).collect();
    assert_eq!(*seen.borrow(), all);
    assert!(more > 5 && failed == 3, "{more} {failed}");
}

#[test]
fn what_is_written_later_is_not_waited_for_and_what_is_hidden_is() {
    let log = log(30, 12);
    let mut part = Part::new("t".to_owned(), 0, None, Some(Duration::MAX));
    let seen = RefCell::new(Vec::new());
    let turn = |part: &mut Part| {
        let each = |view: &View| seen.borrow_mut().push(view.0);
        block_on(part.turn(&log, &|| false, each)).unwrap()
    };
    assert_eq!(turn(&mut part), Read::Hidden);
    log.high.set(60);
    log.stable.set(29);
    assert_eq!(turn(&mut part), Read::Hidden, "one is still hidden");
    log.stable.set(40);
    assert_eq!(turn(&mut part), Read::All);
    assert_eq!(*seen.borrow(), log.offsets);
    // The other question takes what is there.
    log.stable.set(12);
    let mut part = Part::new("t".to_owned(), 0, None, None);
    seen.borrow_mut().clear();
    assert_eq!(turn(&mut part), Read::All);
    assert_eq!(seen.borrow().last(), Some(&10));
    // So does one whose patience is over, and goes on behind what hides it.
    let mut part = Part::new("t".to_owned(), 0, Some(Position(9)), Some(Duration::ZERO));
    log.high.set(30);
    seen.borrow_mut().clear();
    assert_eq!(turn(&mut part), Read::All);
    let rest: Vec<i64> = log.offsets.iter().copied().filter(|at| *at >= 9).collect();
    assert_eq!(*seen.borrow(), rest);
    assert!(part.is_hidden);
}
