//! The plan, the differences and their fixes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::compare::quoted;
use super::plan::DAY;
use super::*;
use crate::config::{EgressSettings, Guarantee, Properties, Topics};
use crate::delivery::partition::breaker::tests::RULES;
use crate::model::tiers::Tiers;

fn settings() -> Settings {
    let tiers = vec![
        Duration::from_secs(5),
        Duration::from_secs(2 * 24 * 60 * 60),
    ];
    Settings {
        brokers: "kafka:9092".to_owned(),
        properties: Properties::default(),
        http_token_file: None,
        http_tls: None,
        secret_rules: crate::model::secret_rules::SecretRules::default(),
        kek_file: None,
        client_certificate: None,
        credentials: crate::config::credentials::Credentials::default(),
        topics: Topics {
            events: vec!["order-events".to_owned()],
            prefix: "webhook-".to_owned(),
        },
        event_mappings: std::sync::Arc::default(),
        group_prefix: "hookstream-".to_owned(),
        guarantee: Guarantee::ExactlyOnce,
        instance: "test".to_owned(),
        http_listen: ([127, 0, 0, 1], 0).into(),
        tiers: Tiers::new(tiers).unwrap(),
        retry_schedule: Vec::new(),
        max_age: None,
        timeout: Duration::from_secs(15),
        drain_deadline: Duration::from_secs(10),
        attempt_log: true,
        lag_top: 200,
        start_at: None,
        window_format: crate::model::window::Format::V4,
        hang_deadline: Duration::from_secs(30),
        otlp: None,
        schema_registry: None,
        egress: EgressSettings::default(),
        ca_file: None,
        max_event_bytes: 1024 * 1024,
        workers: 1,
        max_in_flight: 1,
        max_queued_bytes: 1,
        max_queued_commands: 1,
        breaker: RULES,
        notice_after: Duration::from_secs(300),
        disable_after: None,
        operator_subscriber: None,
        require_verification: false,
        verification_origin: "hookstream".to_owned(),
    }
}

/// A cluster on which everything was created as wanted.
fn created(brokers: i32, wish: Wish) -> Cluster {
    let empty = Cluster {
        brokers,
        ..Cluster::default()
    };
    let creations = creations(&topics(&settings()), &empty, wish, true);
    let found = |creation: Creation| {
        let config = creation.config.into_iter().collect();
        let Creation {
            partitions,
            replication_factor: replication,
            ..
        } = creation;
        (
            creation.topic,
            Found {
                partitions,
                replication,
                config,
            },
        )
    };
    Cluster {
        brokers,
        topics: creations.into_iter().map(found).collect(),
        ..Cluster::default()
    }
}

fn differing(cluster: &Cluster) -> BTreeSet<(String, String)> {
    let found = differences(&settings(), &topics(&settings()), cluster, Wish::default());
    found
        .into_iter()
        .map(|difference| (difference.topic, difference.setting))
        .collect()
}

fn one(topic: &str, setting: &str) -> BTreeSet<(String, String)> {
    BTreeSet::from([(topic.to_owned(), setting.to_owned())])
}

#[test]
fn what_create_makes_check_finds_well() {
    for brokers in [1, 2, 3, 9] {
        for partitions in [None, Some(1), Some(48)] {
            let cluster = created(
                brokers,
                Wish {
                    partitions,
                    ..Wish::default()
                },
            );
            assert_eq!(
                differing(&cluster),
                BTreeSet::new(),
                "{brokers} brokers, {partitions:?} partitions"
            );
            assert!(creations(&topics(&settings()), &cluster, Wish::default(), true).is_empty());
        }
    }
}

#[test]
fn each_way_to_differ_is_named() {
    let cases: [(&str, &str, &str); 6] = [
        ("webhook-subscriptions", "cleanup.policy", "delete"),
        ("webhook-retry-5s", "message.timestamp.type", "CreateTime"),
        ("webhook-retry-48h", "retention.ms", "1209600000"),
        ("webhook-commands", "max.message.bytes", "1048588"),
        ("webhook-dead-letters", "retention.bytes", "1000000"),
        ("webhook-commands", "min.insync.replicas", "1"),
    ];
    for (topic, setting, value) in cases {
        let mut cluster = created(3, Wish::default());
        let config = &mut cluster.topics.get_mut(topic).unwrap().config;
        config.insert(setting.to_owned(), value.to_owned());
        assert_eq!(differing(&cluster), one(topic, setting));
    }
}

#[test]
fn more_than_what_is_wanted_is_well_too() {
    let mut cluster = created(1, Wish::default());
    let config = &mut cluster.topics.get_mut("webhook-commands").unwrap().config;
    config.insert("retention.ms".to_owned(), "-1".to_owned());
    config.insert("max.message.bytes".to_owned(), "9999999".to_owned());
    assert_eq!(differing(&cluster), BTreeSet::new());
}

#[test]
fn the_command_that_makes_a_missing_topic_makes_it_with_the_settings_in_force() {
    let mends = |settings: &Settings, wish| -> BTreeMap<String, String> {
        let cluster = Cluster::default();
        let found = differences(settings, &topics(settings), &cluster, wish);
        found.into_iter().map(|one| (one.topic, one.mend)).collect()
    };
    let tiers = ["5s", "30s", "2m", "10m", "1h", "6h"]
        .map(|text| crate::model::units::parse_duration(text).unwrap());
    let mut settings = Settings {
        tiers: Tiers::new(tiers.to_vec()).unwrap(),
        ..settings()
    };
    let told = mends(&settings, Wish::default());
    let plain = "hookstream topics create --brokers kafka:9092";
    assert_eq!(told["webhook-commands"], plain);
    assert_eq!(told["webhook-attempts"], format!("{plain} --attempt-log"));
    assert_eq!(
        told["order-events"],
        "hookstream topics create --with-events --brokers kafka:9092"
    );

    settings.brokers = "[::1]:9092,b:1".to_owned();
    settings.topics.prefix = "nope-".to_owned();
    settings.topics.events = vec!["a".to_owned(), "b".to_owned()];
    settings.tiers = Tiers::new(vec![Duration::from_millis(1500)]).unwrap();
    settings.max_event_bytes = 2048;
    let wish = Wish {
        replication: Some(2),
        ..Wish::default()
    };
    let told = mends(&settings, wish);
    let rest = "--topic-prefix nope- --tiers 1500ms --max-event-bytes 2KiB --replication-factor 2";
    assert_eq!(
        told["nope-commands"],
        format!("hookstream topics create --brokers '[::1]:9092,b:1' {rest}")
    );
    assert_eq!(
        told["b"],
        format!(
            "hookstream topics create --with-events --brokers '[::1]:9092,b:1' --events a,b {rest}"
        )
    );
    assert!(told["nope-attempts"].ends_with(" --attempt-log"));
}

#[test]
fn a_word_is_quoted_for_a_shell_only_where_it_must_be() {
    assert_eq!(
        quoted("kafka-1.example:9092,b:1"),
        "kafka-1.example:9092,b:1"
    );
    assert_eq!(quoted(""), "''");
    assert_eq!(quoted("it's"), r"'it'\''s'");
}

#[test]
fn commands_tiers_and_dead_letters_have_as_many_partitions() {
    let mut cluster = created(1, Wish::default());
    cluster
        .topics
        .get_mut("webhook-retry-5s")
        .unwrap()
        .partitions = 6;
    let found = differences(&settings(), &topics(&settings()), &cluster, Wish::default());
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].mend,
        "hookstream topics add-partitions 12 --brokers kafka:9092"
    );
}

#[test]
fn partitions_are_added_where_they_are_too_few_to_the_commands_last() {
    let specs = topics(&settings());
    let mut cluster = created(1, Wish::default());
    let grown =
        |cluster: &Cluster, partitions| growths(&specs, cluster, "webhook-commands", partitions);
    assert_eq!(grown(&cluster, 12), Ok(Vec::new()));
    let all = grown(&cluster, 13).unwrap();
    let names: Vec<_> = all.iter().map(|growth| &*growth.topic).collect();
    assert_eq!(
        names,
        [
            "webhook-retry-5s",
            "webhook-retry-48h",
            "webhook-dead-letters",
            "webhook-commands"
        ]
    );
    assert!(
        all.iter()
            .all(|growth| (growth.before, growth.partitions) == (12, 13))
    );
    // An interrupted growth goes on where it ended.
    for growth in &all[..2] {
        cluster.topics.get_mut(&growth.topic).unwrap().partitions = 13;
    }
    assert_eq!(grown(&cluster, 13).unwrap(), all[2..]);
    assert_eq!(
        grown(&cluster, 12).unwrap_err(),
        "webhook-retry-5s has 13 partitions, and partitions are never removed: N must be at least 13"
    );
    cluster.topics.remove("webhook-dead-letters");
    let missing = grown(&cluster, 13).unwrap_err();
    assert!(
        missing.contains("webhook-dead-letters is missing"),
        "{missing}"
    );
}

#[test]
fn brokers_that_cannot_keep_windows_positions_or_transactions_are_named() {
    let mut cluster = created(3, Wish::default());
    let good = [
        ("offset.metadata.max.bytes", "4096"),
        ("offsets.retention.minutes", "10080"),
        ("transaction.max.timeout.ms", "900000"),
        ("log.retention.hours", "1"),
    ];
    let config = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    cluster.broker_configs.insert(1, config(&good));
    assert_eq!(differing(&cluster), BTreeSet::new());
    let bad = [
        ("offset.metadata.max.bytes", "4095"),
        ("offsets.retention.minutes", "1440"),
        ("transaction.max.timeout.ms", "10000"),
    ];
    cluster.broker_configs.insert(2, config(&bad));
    let named = bad.map(|(key, _)| ("broker 2".to_owned(), key.to_owned()));
    assert_eq!(differing(&cluster), BTreeSet::from(named));
}

#[test]
fn an_event_topic_that_takes_larger_events_than_fan_out_is_named() {
    let mut cluster = created(1, Wish::default());
    let config = &mut cluster.topics.get_mut("order-events").unwrap().config;
    // Kafka's own default.
    config.insert("max.message.bytes".to_owned(), "1048588".to_owned());
    assert_eq!(differing(&cluster), BTreeSet::new());
    let config = &mut cluster.topics.get_mut("order-events").unwrap().config;
    config.insert("max.message.bytes".to_owned(), "5242880".to_owned());
    assert_eq!(
        differing(&cluster),
        one("order-events", "max.message.bytes")
    );
    let found = differences(&settings(), &topics(&settings()), &cluster, Wish::default());
    assert!(
        found[0].mend.contains("--max-event-bytes 5MiB"),
        "{}",
        found[0].mend
    );
}

#[test]
fn a_missing_topic_is_made_with_the_partitions_of_the_others() {
    let mut cluster = created(
        1,
        Wish {
            partitions: Some(4),
            ..Wish::default()
        },
    );
    cluster.topics.remove("webhook-dead-letters");
    cluster.topics.remove("order-events");
    assert_eq!(differing(&cluster).len(), 2);
    let made = creations(&topics(&settings()), &cluster, Wish::default(), false);
    assert_eq!(made.len(), 1, "event topics are made only when asked for");
    assert_eq!(
        (made[0].topic.as_str(), made[0].partitions),
        ("webhook-dead-letters", 4)
    );
}

#[test]
fn the_log_of_attempts_has_a_topic_only_while_it_is_on_and_is_kept_as_its_operator_likes() {
    let mut cluster = created(1, Wish::default());
    let log = cluster.topics.get_mut("webhook-attempts").unwrap();
    assert_eq!(
        (log.partitions, &*log.config["retention.ms"]),
        (12, "259200000")
    );
    for (setting, value) in [("retention.ms", "3600000"), ("retention.bytes", "1000000")] {
        log.config.insert(setting.to_owned(), value.to_owned());
    }
    log.partitions = 3;
    assert_eq!(differing(&cluster), BTreeSet::new());
    let off = Settings {
        attempt_log: false,
        ..settings()
    };
    let named = |settings: &Settings| {
        topics(settings)
            .into_iter()
            .any(|spec| spec.name == "webhook-attempts")
    };
    assert!(named(&settings()), "on");
    assert!(!named(&off), "off");
}

#[test]
fn a_shorter_retention_is_that_of_commands_and_retries_if_it_is_asked_for() {
    let kept = |retention: Duration| -> BTreeMap<String, Rule> {
        let specs = topics_kept(&settings(), retention).into_iter();
        let of = |spec: TopicSpec| {
            let mut rules = spec.rules.into_iter();
            let rule = rules.find(|(key, _)| *key == "retention.ms")?.1;
            Some((spec.name, rule))
        };
        specs.filter_map(of).collect()
    };
    let ms = |days: u32| Rule::AtLeast(super::plan::in_ms(DAY * days));
    let short = kept(DAY * 3);
    assert_eq!(short["webhook-commands"], ms(3));
    assert_eq!(short["webhook-retry-5s"], ms(3));
    assert_eq!(short["webhook-retry-48h"], ms(28), "14 times its delay");
    assert_eq!(short["webhook-dead-letters"], ms(90));
    let usual = kept(WORK_RETENTION);
    assert_eq!(usual["webhook-commands"], ms(14));
}

/// Replicas that need more partitions than the rate does are not known here.
#[test]
fn partitions_follow_the_expected_rate() {
    for (rate, partitions) in [
        (0, 12),
        (300, 12),
        (20_000, 12),
        (60_000, 24),
        (1_000_000, 276),
        (u32::MAX, 1_145_328),
    ] {
        assert_eq!(partitions_for(rate), partitions, "{rate} commands/s");
    }
}

#[test]
fn a_tier_keeps_its_records_for_many_times_its_delay() {
    let specs = topics(&settings());
    let long = specs
        .iter()
        .find(|spec| spec.name == "webhook-retry-48h")
        .unwrap();
    let days = i64::try_from(DAY.as_millis()).unwrap() * 28;
    assert!(long.rules.contains(&("retention.ms", Rule::AtLeast(days))));
}

#[test]
fn only_a_topic_whose_records_are_deleted_by_age_has_a_retention() {
    let kept = |policy: &str, ms: &str| {
        let config = [("cleanup.policy", policy), ("retention.ms", ms)];
        super::kept(
            config
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into_iter(),
        )
    };
    let day = Some(Duration::from_secs(86_400));
    assert_eq!(kept("delete", "86400000"), day);
    assert_eq!(kept("compact,delete", "86400000"), day);
    assert_eq!(kept("compact", "86400000"), None);
    assert_eq!(kept("delete", "-1"), None);
}
