//! The reader without a broker: partitions that are read again, ages, and log lines.

use super::*;
use crate::config::{Layers, Machine, Settings, Source as From};
use crate::lag::clients::Clients;
use crate::model::coverage::Coverage;

const COMMANDS: &str = "webhook-commands";

/// A reader of one partition of the commands topic, without a broker.
fn reader() -> Reader<Clients> {
    let mut layers = Layers::new();
    layers.give("brokers", From::Flag, "127.0.0.1:1");
    let machine = Machine {
        host_name: "test".to_owned(),
        cores: 1,
    };
    let kafka = Clients::new(&Settings::check(&layers, &machine).unwrap()).unwrap();
    let mut source = Source {
        topic: Arc::from(COMMANDS),
        kind: Kind::Commands,
        feed: kafka.feed(COMMANDS).unwrap(),
        partitions: BTreeMap::new(),
        times: BTreeMap::new(),
        coverages: BTreeMap::new(),
        unreadable: Unreadable::new(),
    };
    let mut index = Index::default();
    let coverage = Coverage::new(Position(5));
    source
        .read_from(&mut index, 0, Some(5), (9, coverage))
        .unwrap();
    let entry = index.entry("acme", "orders");
    for offset in 5..9 {
        let enqueued = EpochMs(60_000);
        index.add(
            Place::Commands(0),
            Offset(offset),
            entry,
            enqueued,
            None,
            true,
        );
        source.partitions.get_mut(&0).unwrap().record(offset);
    }
    source.partitions.get_mut(&0).unwrap().ask(9);
    Reader {
        kafka,
        sources: vec![source],
        cluster: ClusterId::new("cluster-a"),
        tiers: Vec::new(),
        index,
        windows: BTreeMap::new(),
        seen: BTreeMap::new(),
        metadata_errors: MetadataErrors::default(),
        grown: clock::instant(),
        asked: None,
        as_of: None,
    }
}

#[test]
fn a_partition_read_again_is_behind_and_its_earlier_window_is_dropped() {
    let mut reader = reader();
    let window = Window::new(Position(7));
    reader.observe(0, &window, clock::instant());
    reader.windows.insert(0, window);
    let (_, before) = reader.figures();
    assert_eq!((before.total.ready, before.behind), (2, 0));
    assert!(reader.is_reached());

    let committed = (3, String::new());
    reader.read_again((0, 0), Some(&committed)).unwrap();
    assert!(!reader.is_reached());
    let (_, figures) = reader.figures();
    assert_eq!((figures.total.ready, figures.behind), (0, 6));
    assert_eq!(figures.partitions[0].position, None);
    let entry = reader.index.entry("acme", "orders");
    let place = Place::Commands(0);
    reader
        .index
        .add(place, Offset(3), entry, EpochMs(0), None, true);
    let (_, figures) = reader.figures();
    assert_eq!(figures.total.ready, 1, "the earlier window is dropped");
    assert!(reader.seen.is_empty());
}

#[test]
fn ages_are_as_of_the_time_of_the_figures() {
    let mut reader = reader();
    reader.as_of = Some(EpochMs(100_500));
    let (_, figures) = reader.figures();
    assert_eq!(figures.subscribers[0].age_seconds, Some(40));
}

#[test]
fn unreadable_metadata_is_logged_once_per_offset_and_reason() {
    let mut metadata_errors = MetadataErrors::default();
    let (foreign, stale) = (Some(&ReadError::Foreign), Some(&ReadError::Stale));
    assert!(metadata_errors.is_news(0, 5, foreign));
    assert!(!metadata_errors.is_news(0, 5, foreign));
    assert!(metadata_errors.is_news(1, 5, foreign), "another partition");
    assert!(metadata_errors.is_news(0, 5, stale));
    assert!(metadata_errors.is_news(0, 6, stale));
    assert!(!metadata_errors.is_news(0, 7, None));
    assert!(
        metadata_errors.is_news(0, 6, stale),
        "it was readable in between"
    );
}
