//! Settings, from the given text to validated values.

use std::time::Duration;

use super::table::SETTINGS;
use super::*;

pub(super) fn machine() -> Machine {
    Machine {
        host_name: "replica-0".to_owned(),
        cores: 2,
    }
}

fn layers(given: &[(&str, Source, &str)]) -> Layers {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "localhost:9092");
    for (name, source, value) in given {
        layers.give(name, *source, *value);
    }
    layers
}

fn check(given: &[(&str, Source, &str)]) -> Result<Settings, Vec<String>> {
    Settings::check(&layers(given), &machine())
}

#[test]
fn the_defaults_are_valid() {
    let settings = check(&[]).unwrap();
    assert_eq!(settings.topics.commands(), "webhook-commands");
    assert_eq!(
        settings.topics.retry(settings.tiers.delays()[2]),
        "webhook-retry-2m"
    );
    assert_eq!(settings.retry_schedule.len(), 7);
    assert_eq!(settings.egress.ports, [443..=443, 8443..=8443]);
    assert_eq!(
        (settings.instance.as_str(), settings.workers),
        ("replica-0", 2)
    );
    assert_eq!(settings.max_queued_bytes, 64 << 20);
}

#[test]
fn where_to_begin_is_explicit_unless_it_is_now_by_default() {
    let start_at = |source, text| {
        let settings = check(&[("start-at", source, text)]);
        settings.map(|settings| settings.start_at)
    };
    assert_eq!(check(&[]).unwrap().start_at, None);
    assert_eq!(start_at(Source::Flag, "now"), Ok(Some(StartAt::Now)));
    for source in [Source::File, Source::Default] {
        assert_eq!(start_at(source, "earliest"), Ok(Some(StartAt::Earliest)));
    }
    let time = start_at(Source::Environment, "2026-01-01T01:00:00.5+01:00").unwrap();
    assert_eq!(time.unwrap().to_string(), "2026-01-01T00:00:00.5Z");
    for wrong in ["latest", "2h", "2026-01-01", "", "17"] {
        let mistakes = start_at(Source::Flag, wrong).unwrap_err();
        assert!(mistakes[0].starts_with("--start-at"), "{mistakes:?}");
    }
}

#[test]
fn a_max_probe_delay_shorter_than_the_first_is_rejected() {
    let both = |probe, most| {
        let given = [("breaker-probe", probe), ("breaker-max-probe", most)];
        check(&given.map(|(name, value)| (name, Source::Flag, value)))
    };
    assert_eq!(both("1s", "1s").unwrap().breaker.max_probe.as_secs(), 1);
    let mistakes = both("2s", "1500ms").unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("--breaker-max-probe 1500ms is shorter than --breaker-probe 2s"),
        "{mistakes:?}"
    );
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let all = [
        ("timeout", Source::File, "3s"),
        ("timeout", Source::Environment, "2s"),
        ("timeout", Source::Flag, "1s"),
    ];
    for (count, expected) in [(0, 15), (1, 3), (2, 2), (3, 1)] {
        assert_eq!(
            check(&all[..count]).unwrap().timeout,
            Duration::from_secs(expected)
        );
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_name_value_source_and_range() {
    let mistakes = check(&[
        ("timeout", Source::Environment, "15"),
        ("workers", Source::Flag, "0"),
        ("tiers", Source::File, "5s,5s"),
        ("guarantee", Source::Flag, "maybe"),
        ("egress-ports", Source::Flag, "443,http"),
        ("egress-deny-cidr", Source::Flag, "10.0.0.1/33"),
        ("max-event-bytes", Source::Flag, "17MiB"),
        ("instance", Source::Flag, "a b"),
        ("http-listen", Source::Flag, "9400"),
        ("log-format", Source::Flag, "xml"),
    ])
    .unwrap_err();
    assert_eq!(mistakes.len(), 10, "{mistakes:#?}");
    assert_eq!(
        mistakes
            .iter()
            .find(|line| line.starts_with("--timeout"))
            .unwrap(),
        "--timeout: invalid value \"15\" (environment HOOKSTREAM_TIMEOUT); allowed: 100ms to 60s"
    );
}

#[test]
fn brokers_are_required() {
    let mistakes = Settings::check(&Layers::new(), &machine()).unwrap_err();
    assert_eq!(mistakes.len(), 1);
    assert!(
        mistakes[0].contains("--brokers") && mistakes[0].contains("HOOKSTREAM_BROKERS"),
        "{mistakes:?}"
    );
}

#[test]
fn a_file_may_set_lists_numbers_and_properties_but_nothing_unknown() {
    let mut layers = layers(&[]);
    layers.give_file("events = ['a', 'b']\nworkers = 3\negress-allow-http = true\n[x]\n'security.protocol' = 'SSL'\n", "f");
    let settings = Settings::check(&layers, &machine()).unwrap();
    assert_eq!(settings.topics.events, ["a", "b"]);
    assert_eq!(settings.workers, 3);
    assert!(settings.egress.allow_http);
    assert_eq!(
        *settings.properties,
        [("security.protocol".to_owned(), "SSL".to_owned())]
    );

    layers.give_file("worker = 3\n[tiers]\na = 1\n", "conf.toml");
    let mistakes = Settings::check(&layers, &machine()).unwrap_err();
    assert!(
        mistakes
            .iter()
            .any(|line| line.starts_with("unknown setting worker in conf.toml")),
        "{mistakes:?}"
    );
    assert!(
        mistakes
            .iter()
            .any(|line| line.starts_with("tiers in conf.toml")),
        "{mistakes:?}"
    );
}

#[test]
fn properties_that_hookstream_owns_are_rejected_by_name() {
    let mut layers = layers(&[]);
    layers.give_property("isolation.level=read_uncommitted", Source::Flag);
    layers.give_property("no-equals-sign", Source::Environment);
    let mistakes = Settings::check(&layers, &machine()).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes.iter().any(|line| line.contains("isolation.level")));
    assert!(
        !mistakes.iter().any(|line| line.contains("no-equals-sign")),
        "it may be a secret"
    );
}

#[test]
fn secrets_are_not_printed() {
    let mut layers = layers(&[]);
    layers.give_property("sasl.password=hunter2", Source::Environment);
    layers.give_property("sasl.username=me", Source::Environment);
    let printed = serde_json::to_string(&effective(&layers, &machine())).unwrap();
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains(REDACTED) && printed.contains("\"me\""));
}

#[test]
fn a_toml_error_names_the_line_without_quoting_it() {
    let mut layers = layers(&[]);
    layers.give_file("[x]\nsasl.password = hunter2\n", "conf.toml");
    let mistakes = Settings::check(&layers, &machine()).unwrap_err();
    assert!(
        mistakes[0].starts_with("conf.toml is not valid TOML: line 2: "),
        "{mistakes:?}"
    );
    assert!(!mistakes[0].contains("hunter2"), "{mistakes:?}");
}

#[test]
fn properties_in_the_file_need_no_quotes_around_their_dots() {
    let mut layers = layers(&[]);
    layers.give_file(
        "[x]\nsecurity.protocol = 'SSL'\nssl.key.location = '/k'\n'ssl.ca.location' = '/c'\n",
        "f",
    );
    let settings = Settings::check(&layers, &machine()).unwrap();
    let keys: Vec<_> = settings
        .properties
        .iter()
        .map(|(key, _)| key.as_str())
        .collect();
    assert_eq!(
        keys,
        ["security.protocol", "ssl.ca.location", "ssl.key.location"]
    );
}

#[test]
fn the_value_of_a_rejected_property_is_not_printed() {
    let mut layers = layers(&[]);
    layers.give_property("sasl.passwrod=hunter2", Source::Environment);
    layers.judge_properties(|_, _| Some("unknown property".to_owned()));
    let mistakes = Settings::check(&layers, &machine()).unwrap_err();
    assert_eq!(
        mistakes,
        ["-X sasl.passwrod (environment): unknown property"]
    );
    let printed = serde_json::to_string(&effective(&layers, &machine())).unwrap();
    assert!(!printed.contains("hunter2"), "{printed}");
}

#[test]
fn event_topics_and_own_topics_do_not_overlap() {
    for (events, part) in [
        ("a,webhook-commands", "webhook-commands"),
        ("webhook-retry-5s", "webhook-retry-5s"),
        ("a,b,a", "contains a twice"),
    ] {
        let mistakes = check(&[("events", Source::Flag, events)]).unwrap_err();
        assert!(
            mistakes.len() == 1 && mistakes[0].contains(part),
            "{events}: {mistakes:?}"
        );
    }
}

#[test]
fn brokers_are_hosts_with_ports() {
    for good in [
        "b",
        "b:9092,c:9093",
        "SASL_SSL://b.example:9092",
        "[::1]:9092",
    ] {
        assert!(
            check(&[("brokers", Source::Flag, good)]).is_ok(),
            "{good} must be allowed"
        );
    }
    for bad in [
        "http://b:9092",
        "b:99999",
        "b:0",
        ":9092",
        "b/c",
        "b c",
        "::1:9092",
        "u:p@b:1",
    ] {
        assert!(
            check(&[("brokers", Source::Flag, bad)]).is_err(),
            "{bad} must be rejected"
        );
    }
}

#[test]
fn a_mistyped_log_level_is_rejected_rather_than_read_as_a_module() {
    for good in [
        "info",
        "OFF",
        "hookstream=debug,info",
        "warn,hookstream::delivery::notices=error",
    ] {
        assert!(check(&[("log", Source::Flag, good)]).is_ok(), "{good}");
    }
    for bad in ["inof", "hookstream", "info,wran", ""] {
        assert!(check(&[("log", Source::Flag, bad)]).is_err(), "{bad:?}");
    }
}

#[test]
fn durations_finer_than_a_millisecond_are_rejected() {
    assert!(check(&[("tiers", Source::Flag, "10ms,10500us")]).is_err());
}

#[test]
fn a_host_name_that_is_no_instance_name_is_reported() {
    let machine = Machine {
        host_name: "my laptop".to_owned(),
        cores: 2,
    };
    let mistakes = Settings::check(&layers(&[]), &machine).unwrap_err();
    assert!(
        mistakes[0].starts_with("--instance") && mistakes[0].contains("my laptop"),
        "{mistakes:?}"
    );
}

#[test]
fn only_mistyped_variables_are_reported_as_unknown() {
    let names = [
        "HOOKSTREAM_TIMEOUT",
        "HOOKSTREAM_TIMEUOT",
        "HOOKSTREAM_X",
        "HOOKSTREAM_CONFIG",
        "HOOKSTREAM_SERVICE_HOST",
        "HOOKSTREAM_PORT_9400_TCP_ADDR",
        "HOOKSTREAM_EGRESS_PORTS",
        "PATH",
    ];
    assert_eq!(
        unknown_variables(names.map(str::to_owned)),
        ["HOOKSTREAM_TIMEUOT"]
    );
}

#[test]
fn spans_are_not_exported_without_an_endpoint() {
    assert_eq!(check(&[]).unwrap().otlp, None);
    assert_eq!(
        check(&[("trace-sample", Source::Flag, "1")]).unwrap().otlp,
        None
    );
    assert!(check(&[("trace-sample", Source::Flag, "1.1")]).is_err());
}

#[test]
#[cfg(feature = "otlp")]
fn the_traces_path_is_appended_to_the_collectors_url() {
    for (given, whole) in [
        ("http://c:4318", "http://c:4318/v1/traces"),
        (
            "https://c.example/otlp/",
            "https://c.example/otlp/v1/traces",
        ),
        ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
    ] {
        let otlp = check(&[("otlp-endpoint", Source::Flag, given)])
            .unwrap()
            .otlp
            .unwrap();
        assert_eq!((otlp.endpoint.as_str(), otlp.sample), (whole, 0.0));
    }
    for bad in ["c:4318", "grpc://c:4317", "http://", "/v1/traces"] {
        assert!(
            check(&[("otlp-endpoint", Source::Flag, bad)]).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn a_collectors_url_with_credentials_is_rejected_and_not_printed() {
    for url in ["http://me:hunter2@c:4318", "https://c/?key=hunter2"] {
        let given = [("otlp-endpoint", Source::Flag, url)];
        let mistakes = check(&given).unwrap_err();
        assert!(
            mistakes.len() == 1 && mistakes[0].contains("OTEL_EXPORTER_OTLP_HEADERS"),
            "{mistakes:?}"
        );
        assert!(!mistakes[0].contains("hunter2"), "{mistakes:?}");
        let printed = serde_json::to_string(&effective(&layers(&given), &machine())).unwrap();
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}

#[test]
#[cfg(not(feature = "otlp"))]
fn a_build_without_otlp_names_the_missing_feature() {
    let given = [("otlp-endpoint", Source::Flag, "http://c:4318")];
    let mistakes = check(&given).unwrap_err();
    assert!(mistakes[0].contains("--features otlp"), "{mistakes:?}");
}

#[test]
fn the_reference_lists_every_setting() {
    for setting in SETTINGS {
        assert!(
            reference().contains(&setting.variable()),
            "{} is missing",
            setting.name
        );
    }
}

#[test]
fn a_schema_registry_has_a_url_and_at_most_one_kind_of_credentials() {
    let flag = |name, value| (name, Source::Flag, value);
    let url = flag(
        "schema-registry",
        "https://registry.example/apis/ccompat/v7/",
    );
    let registry = |given: &[_]| check(given).unwrap().schema_registry;
    assert_eq!(registry(&[]), None);
    let plain = registry(&[url]).unwrap();
    assert_eq!(plain.url, "https://registry.example/apis/ccompat/v7");
    assert_eq!((plain.auth, plain.ca_file), (None, None));
    let user = flag("schema-registry-user", "me");
    let password = flag("schema-registry-password", "env:PASSWORD");
    let token = flag("schema-registry-token", "file:/run/token");
    assert_eq!(
        registry(&[url, user, password]).unwrap().auth,
        Some(RegistryAuth::Basic {
            user: "me".to_owned(),
            password: SecretRef::Env("PASSWORD".to_owned()),
        })
    );
    assert_eq!(
        registry(&[url, token]).unwrap().auth,
        Some(RegistryAuth::Bearer(SecretRef::File("/run/token".into())))
    );
    let mistakes = |given: &[_]| check(given).unwrap_err();
    assert_eq!(
        mistakes(&[url, user]),
        [
            "--schema-registry-user and --schema-registry-password need each other; use --schema-registry-token for a bearer token"
        ]
    );
    assert_eq!(
        mistakes(&[url, user, password, token]),
        ["--schema-registry-token excludes --schema-registry-user and --schema-registry-password"]
    );
    assert_eq!(
        mistakes(&[token]),
        ["--schema-registry-token has no effect without --schema-registry"]
    );
    assert_eq!(
        mistakes(&[flag("schema-registry", "registry.example")]),
        [
            "--schema-registry: invalid value \"registry.example\" (flag); allowed: http://HOST:PORT or https://HOST:PORT, with the registry's path if it has one"
        ]
    );
}

#[test]
fn credentials_of_the_schema_registry_are_named_and_never_printed() {
    let given = [
        ("schema-registry", Source::Flag, "https://registry.example"),
        ("schema-registry-user", Source::Flag, "me"),
        ("schema-registry-password", Source::Environment, "hunter2"),
    ];
    let mistakes = check(&given).unwrap_err();
    assert_eq!(
        mistakes,
        [
            "--schema-registry-password (environment): must say where the secret is, and not hold it; allowed: env:NAME or file:PATH"
        ]
    );
    let printed = serde_json::to_string(&effective(&layers(&given), &machine())).unwrap();
    assert!(!printed.contains("hunter2"), "{printed}");
    let url = [(
        "schema-registry",
        Source::Flag,
        "https://me:hunter2@registry.example",
    )];
    let mistakes = check(&url).unwrap_err();
    assert!(!format!("{mistakes:?}").contains("hunter2"), "{mistakes:?}");
    let printed = serde_json::to_string(&effective(&layers(&url), &machine())).unwrap();
    assert!(!printed.contains("hunter2"), "{printed}");
    let named = [("schema-registry-token", Source::Flag, "env:TOKEN")];
    let printed = serde_json::to_string(&effective(&layers(&named), &machine())).unwrap();
    assert!(printed.contains("env:TOKEN"), "{printed}");
}
