//! An operator's replay of dead letters, in the steps of `hookstream replay`: its decisions and its records are the
//! product's, its loop is here, since the product's own knows librdkafka only.

use std::sync::Arc;

use hookstream::config::Settings;
use hookstream::edge::clock;
use hookstream::edge::kafka::subscription_cache::topic_record;
use hookstream::edge::port::records::{Headers as _, Isolation, Range, Record, RecordView as _};
use hookstream::edge::port::task::KeepWaiting;
use hookstream::edge::port::{Log as _, Producer as _, ProducerKind};
use hookstream::model::dead_letter::{
    Coordinates, DeadLetter, Fact, OpenLetters, Settled, Settlement, replay_headers,
};
use hookstream::model::subscription::Fold;
use hookstream::model::units::Offset;
use hookstream::replay::Why;

use super::endpoints::Endpoints;
use super::history::What;
use super::port::CLUSTER;
use crate::kafka::net::Net;
use crate::kafka::planted;
use crate::kafka::port::log::SimLog;
use crate::kafka::port::producer::SimProducer;
use crate::kafka::port::{SimHeaders, View};

/// Dead letters in one transaction.
const BATCH: usize = 8;

const PURPOSE: &str = "replay";

/// Replays all dead letters that are open, and returns how many. Like the program, it ends after a failure.
///
/// # Errors
/// What failed.
pub async fn replay(
    net: &Net,
    endpoints: &Endpoints,
    settings: &Settings,
) -> Result<usize, String> {
    let settings = &Settings {
        instance: "operator".to_owned(),
        ..settings.clone()
    };
    let open = |topic| SimLog::open(net, settings, topic, PURPOSE);
    let text = |failure: hookstream::edge::port::failure::Failure| failure.to_string();
    let letters = open(settings.topics.dead_letters()).await.map_err(text)?;
    let subscriptions = open(settings.topics.subscriptions()).await.map_err(text)?;
    // This fences a running replay. As that of the program, its id is the same in each run.
    let (keep_waiting, kind): (KeepWaiting, _) = (Arc::new(|| true), ProducerKind::Probe(0));
    let producer = SimProducer::open(net, settings, &keep_waiting, PURPOSE, kind);
    let mut producer = producer.await.map_err(text)?;
    let ends = ends(&letters).await?;
    let mut settled = OpenLetters::default();
    let committed = Isolation::Committed;
    let never = || false;
    let first = letters.read(committed, &ends, &never, |view| {
        if let Some(Fact::Settled(fact)) = decode(view) {
            settled.settle(&fact, place(view));
        }
    });
    first.await.map_err(text)?;
    let mut fold = Fold::default();
    let of_subscriptions = self::ends(&subscriptions).await?;
    let read = subscriptions.read(committed, &of_subscriptions, &never, |view| {
        drop(fold.take(&topic_record(view)));
    });
    read.await.map_err(text)?;
    let mut wanted = Vec::new();
    let second = letters.read(committed, &ends, &never, |view| {
        if let Some(Fact::DeadLettered(letter)) = decode(view)
            && settled.is_open(&letter)
            && Why::of(&letter, &fold).is_none()
        {
            wanted.push((letter, view.clone()));
        }
    });
    second.await.map_err(text)?;
    for batch in wanted.chunks(BATCH) {
        write(&mut producer, endpoints, settings, batch).await?;
    }
    Ok(wanted.len())
}

/// All that was written before the call.
async fn ends(log: &SimLog) -> Result<Vec<Range>, String> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
    let all = log
        .stable_ends()
        .await
        .map_err(|failure| failure.to_string())?;
    let mut ends = Vec::new();
    for range in all {
        let found = log.high_watermark(range.partition, PATIENCE, &|| false);
        let (range, stable) = found.await.map_err(|failure| failure.to_string())?;
        if stable < range.end {
            return Err("an open transaction hides dead letters".to_owned());
        }
        ends.push(range);
    }
    Ok(ends)
}

fn place(view: &View) -> Coordinates {
    Coordinates {
        partition: view.partition(),
        offset: Offset(view.offset()),
    }
}

fn headers_of(view: &View) -> Vec<(&str, &[u8])> {
    let each = view.headers();
    let each = each.filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value?)));
    each.collect()
}

fn decode(view: &View) -> Option<Fact> {
    Fact::decode(place(view), view.key(), &headers_of(view)).ok()
}

fn to_write<'a, V: AsRef<[u8]>>(headers: impl IntoIterator<Item = (&'a str, V)>) -> SimHeaders {
    let all = SimHeaders::with_capacity(16);
    headers.into_iter().fold(all, |all, (name, value)| {
        all.and(name, Some(value.as_ref()))
    })
}

/// The commands and the settling records of these dead letters, in one transaction.
async fn write(
    producer: &mut SimProducer,
    endpoints: &Endpoints,
    settings: &Settings,
    batch: &[(Box<DeadLetter>, View)],
) -> Result<(), String> {
    let now = clock::now();
    let (commands, dead_letters) = (settings.topics.commands(), settings.topics.dead_letters());
    let text = |error: hookstream::edge::port::failure::BatchError| error.to_string();
    for (letter, view) in batch {
        // Before it is visible: its requests may come before the response to the commit.
        endpoints.note(What::Replayed {
            id: Arc::from(letter.webhook_id.as_str()),
        });
        if planted::sometimes("replay-lost", 3) {
            continue;
        }
        let command = Record {
            topic: &commands,
            partition: None,
            key: view.key(),
            value: view.payload(),
            headers: to_write(replay_headers(&headers_of(view), now)),
            tag: 0,
        };
        producer.send(command).await.map_err(text)?;
    }
    for (letter, view) in batch {
        if planted::is("replay-again") {
            continue;
        }
        let fact = Settled::new(letter, Settlement::Replayed, now, CLUSTER);
        let fact = Record {
            topic: &dead_letters,
            partition: Some(letter.at.partition),
            key: view.key(),
            value: Some(&[]),
            headers: to_write(fact.headers()),
            tag: 0,
        };
        producer.send(fact).await.map_err(text)?;
    }
    producer.finish(&[], None).await.map_err(text)
}
