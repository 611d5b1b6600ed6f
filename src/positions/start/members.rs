//! Which topics the members of a group read.

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::groups::GroupInfo;

use super::decision::Members;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{ANSWER, settled};
use crate::positions::Client;

/// The members of a group at one moment.
pub(super) struct Group {
    is_empty: bool,
    /// The topics of all members; `None` while they are not known.
    topics: Option<Vec<String>>,
}

impl Group {
    /// Asks for the members of `group`.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not respond or denies it.
    pub(super) fn ask(client: &Client, group: &str) -> Result<Self, Failure> {
        let found = match settled(|| client.fetch_group_list(Some(group), ANSWER)) {
            // The embedded broker of the demo, which only this process knows.
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnsupportedFeature) =>
            {
                return Ok(Self {
                    is_empty: true,
                    topics: None,
                });
            }
            found => found.map_err(|error| {
                Failure::from_client(format!("listing the members of {group}"), error)
            })?,
        };
        let members = found.groups().iter().flat_map(GroupInfo::members);
        let topics: Vec<_> = members
            .map(|member| subscribed(member.metadata().unwrap_or_default()))
            .collect();
        Ok(Self {
            is_empty: topics.is_empty(),
            topics: topics
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .map(|all| all.concat()),
        })
    }

    /// Which of them read `topic`.
    pub(super) fn of(&self, topic: &str) -> Members {
        match &self.topics {
            _ if self.is_empty => Members::None,
            None => Members::Unknown,
            Some(topics) if topics.iter().any(|known| known == topic) => Members::Reading,
            Some(_) => Members::Elsewhere,
        }
    }
}

/// The topics of a member's subscription in the form of Kafka's consumer protocol; `None` when it is empty, as while the
/// group rebalances, or has another form.
fn subscribed(metadata: &[u8]) -> Option<Vec<String>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut topics = Vec::new();
    for _ in 0..i32::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        let (name, after) = after.split_at_checked(length)?;
        topics.push(std::str::from_utf8(name).ok()?.to_owned());
        rest = after;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_a_member_are_read_from_its_subscription() {
        let subscription = [
            &[0, 3, 0, 0, 0, 2, 0, 1][..],
            b"a",
            &[0, 6],
            b"events",
            &[0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(
            subscribed(&subscription),
            Some(vec!["a".to_owned(), "events".to_owned()])
        );
        for end in 0..17 {
            assert_eq!(subscribed(&subscription[..end]), None, "{end}");
        }
        assert_eq!(subscribed(&[0, 1, 0x7f, 0xff, 0xff, 0xff]), None);
        assert_eq!(subscribed(&[0, 1, 0, 0, 0, 0]), Some(Vec::new()));
    }

    #[test]
    fn a_topic_is_read_by_the_members_that_subscribe_to_it() {
        let group = |is_empty, topics: Option<&[&str]>| Group {
            is_empty,
            topics: topics.map(|all| all.iter().map(|&one| one.to_owned()).collect()),
        };
        assert_eq!(group(true, Some(&[])).of("a"), Members::None);
        assert_eq!(group(false, Some(&["a"])).of("a"), Members::Reading);
        assert_eq!(group(false, Some(&["b"])).of("a"), Members::Elsewhere);
        assert_eq!(group(false, None).of("a"), Members::Unknown);
    }
}
