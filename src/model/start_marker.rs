//! The marker of a first start: a record in the topic of the subscriptions, which says that a group once had positions in
//! a topic. It tells positions that expired or were deleted from those that never existed.
//!
//! It names the cluster, since a mirror copies records but not positions, and is not in the group's own commit metadata,
//! since that ends with the positions. It never changes a subscription.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// The prefix of the keys. An id of a subscription has no slash.
const PREFIX: &str = "start/";

/// Whether a key is that of a marker, of any version.
#[must_use]
pub fn is_key(key: &[u8]) -> bool {
    key.starts_with(PREFIX.as_bytes())
}

/// The key of the marker for a group and topic on a cluster.
#[must_use]
pub fn key(group: &str, topic: &str, cluster: &str) -> String {
    format!("{PREFIX}{group}/{topic}/{cluster}")
}

/// What a marker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The group.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// The id of the cluster.
    pub cluster: &'a str,
}

impl<'a> Subject<'a> {
    /// The subject of a key; `None` when it is not that of a marker.
    #[must_use]
    pub fn of_key(key: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
        // Names of groups and topics have no slash.
        let mut parts = text.splitn(3, '/');
        let (group, topic, cluster) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            group,
            topic,
            cluster,
        })
    }
}

/// The value of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    partitions: i32,
}

/// The value of the marker of a topic whose first `partitions` partitions have had positions.
#[must_use]
pub fn value(partitions: i32) -> String {
    format!(r#"{{"partitions":{partitions}}}"#)
}

/// How many partitions, counted from 0, have had positions. All of them, if the value is unreadable: then nothing is
/// taken for a first start.
#[must_use]
pub fn partitions(value: &[u8]) -> i32 {
    serde_json::from_slice(value).map_or(i32::MAX, |value: Value| value.partitions)
}

/// The markers of one group, from the records of the topic in their order.
#[derive(Debug, Default)]
pub struct GroupMarkers {
    /// Of this cluster, by topic: how many partitions have had positions.
    pub here: HashMap<String, i32>,
    /// Topics that have one of another cluster.
    pub elsewhere: Vec<String>,
}

impl GroupMarkers {
    /// Takes the next record; ignores all but markers of `group`. `cluster` is this one.
    pub fn take(&mut self, group: &str, cluster: &str, key: &[u8], value: Option<&[u8]>) {
        let subject = Subject::of_key(key);
        let Some(subject) = subject.filter(|subject| subject.group == group) else {
            return;
        };
        let topic = subject.topic.to_owned();
        match value {
            Some(value) if subject.cluster == cluster => {
                self.here.insert(topic, partitions(value));
            }
            None if subject.cluster == cluster => {
                self.here.remove(&topic);
            }
            Some(_) => self.elsewhere.push(topic),
            None => self.elsewhere.retain(|known| *known != topic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_markers_of_a_group_are_those_of_its_latest_records() {
        let mut markers = GroupMarkers::default();
        let mut take = |group: &str, topic: &str, cluster: &str, value: Option<&str>| {
            let key = key(group, topic, cluster);
            markers.take("g", "here", key.as_bytes(), value.map(str::as_bytes));
        };
        take("g", "a", "here", Some(&value(2)));
        take("g", "a", "here", Some(&value(3)));
        take("g", "b", "here", Some("unreadable"));
        take("g", "c", "here", Some(&value(1)));
        take("g", "c", "here", None);
        take("other", "d", "here", Some(&value(1)));
        take("g", "e", "there", Some(&value(1)));
        take("g", "f", "there", Some(&value(1)));
        take("g", "f", "there", None);
        markers.take("g", "here", b"sub-1", Some(b"{}"));
        let here = HashMap::from([("a".to_owned(), 3), ("b".to_owned(), i32::MAX)]);
        assert_eq!(
            (markers.here, markers.elsewhere),
            (here, vec!["e".to_owned()])
        );
    }

    #[test]
    fn a_marker_names_group_topic_and_cluster() {
        let key = key("hookstream-fanout", "order-events", "a/b");
        assert!(is_key(key.as_bytes()));
        let subject = Subject::of_key(key.as_bytes()).unwrap();
        assert_eq!(subject.group, "hookstream-fanout");
        assert_eq!(subject.topic, "order-events");
        assert_eq!(subject.cluster, "a/b");
        assert_eq!(Subject::of_key(b"start/group/topic"), None);
        assert_eq!(Subject::of_key(b"state/acme"), None);
        let without_id = self::key("g", "t", "");
        assert_eq!(Subject::of_key(without_id.as_bytes()).unwrap().cluster, "");
    }

    #[test]
    fn an_unreadable_value_says_that_all_partitions_have_had_positions() {
        assert_eq!(partitions(value(12).as_bytes()), 12);
        assert_eq!(partitions(br#"{"partitions":3,"later":true}"#), 3);
        for unreadable in [&b"{}"[..], b"", b"\xff", br#"{"partitions":"3"}"#] {
            assert_eq!(partitions(unreadable), i32::MAX);
        }
    }
}
