//! A record of the topic of the subscriptions, and what it says by itself.

use std::sync::Arc;

use super::decision::Decider;
use super::endpoint_url::EndpointUrl;
use super::filter::Filter;
use super::model::{BoxedOverrides, Source, Subscription};
use super::record::SubscriptionError;
use super::validate::parse;
use super::version::Version;
use crate::model::start_marker;
use crate::model::subscription::verification::Verification;
use crate::model::units::EpochMs;

/// A record of the topic.
#[derive(Clone, Copy, Default)]
pub struct TopicRecord<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its [`APPLIED`](super::APPLIED) header.
    pub applied: Option<&'a [u8]>,
    /// Its partition.
    pub partition: Option<i32>,
    /// Its timestamp.
    pub timestamp: Option<EpochMs>,
}

/// A record of the topic, read by itself: what costs the most, and needs no other record, so that several threads can read
/// records ahead of the one that takes them.
pub struct ReadRecord<'a> {
    pub(super) record: TopicRecord<'a>,
    pub(super) kind: Kind<'a>,
    /// Of an applied one.
    pub(super) applied: Option<Box<Applied>>,
}

/// What an applied record says by itself.
pub(super) struct Applied {
    pub(super) version: Version,
    pub(super) parsed: Result<Arc<Subscription>, SubscriptionError>,
}

impl<'a> ReadRecord<'a> {
    /// The id of the subscription that it is about.
    #[must_use]
    pub fn id(&self) -> Option<&'a str> {
        match self.kind {
            Kind::Applied(id) | Kind::Verification(id) | Kind::Decision(_, id) => Some(id),
            Kind::StartMarker(_) => None,
        }
    }

    /// The key and the value, if it is the marker of a first start ([`start_marker`]).
    #[must_use]
    pub fn start_marker(&self) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        match self.kind {
            Kind::StartMarker(key) => Some((key, self.record.value)),
            _ => None,
        }
    }
}

impl Applied {
    fn read(record: &TopicRecord<'_>, value: &[u8], what: Kept, verify: bool) -> Self {
        let version = Version::of_applied(value, record.applied);
        let parsed = parse(Some(record.key.unwrap_or_default()), value);
        let parsed = parsed.map(|mut subscription| {
            match what {
                Kept::Whole => {}
                Kept::ForLookups => subscription.filter = Filter::default(),
                Kept::ForMatching => {
                    subscription.secrets = Box::default();
                    subscription.overrides = BoxedOverrides::default();
                    if !verify && !subscription.verify {
                        subscription.url = EndpointUrl::default();
                    }
                }
            }
            subscription.source = Source::new(version.clone(), record.partition, record.timestamp);
            Arc::new(subscription)
        });
        Self { version, parsed }
    }
}

/// How much of a valid subscription is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All.
    Whole,
    /// What lookups by id need: not the filter, which only fan-out asks.
    ForLookups,
    /// What fan-out needs: not the secrets and overrides, which requests are made with, and the URL only if the
    /// endpoint must consent.
    ForMatching,
}

impl<'a> TopicRecord<'a> {
    /// Reads the record; with `verify`, every endpoint must consent, whatever its record says.
    #[must_use]
    pub fn read(self, what: Kept, verify: bool) -> ReadRecord<'a> {
        let kind = self.kind();
        let value = self.value.filter(|_| matches!(kind, Kind::Applied(_)));
        ReadRecord {
            applied: value.map(|value| Box::new(Applied::read(&self, value, what, verify))),
            record: self,
            kind,
        }
    }

    fn kind(&self) -> Kind<'a> {
        let key = self.key.unwrap_or_default();
        if start_marker::is_key(key) {
            return Kind::StartMarker(key);
        }
        let Ok(text) = std::str::from_utf8(key) else {
            return Kind::Applied("");
        };
        if let Some(id) = Verification::id_of_key(text) {
            return Kind::Verification(id);
        }
        match Decider::of_key(text) {
            Some((by, id)) => Kind::Decision(by, id),
            None => Kind::Applied(text),
        }
    }
}

/// What the key of a record says: its kind, and the id of the subscription.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    Applied(&'a str),
    Verification(&'a str),
    Decision(Decider, &'a str),
    /// It is not about a subscription: its key.
    StartMarker(&'a [u8]),
}
