//! The table of settings: the single source of flags, environment variables, file keys, the reference and the checks.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The flag without its dashes, and the key in the file.
    pub name: &'static str,
    /// Placeholder of the value in the help; empty for a switch.
    pub value: &'static str,
    /// The default; empty if it is computed or the setting is required.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
    /// The allowed values, as printed after "allowed:".
    pub range: &'static str,
}

impl Setting {
    /// Whether it is a boolean that needs no value on the command line.
    #[must_use]
    pub fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("HOOKSTREAM_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

macro_rules! settings {
    ($($name:literal $value:literal $default:literal $help:literal $range:literal;)+) => {
        /// All settings, in the order of the reference.
        pub const SETTINGS: &[Setting] =
            &[$(Setting { name: $name, value: $value, default: $default, help: $help, range: $range }),+];
    };
}

settings! {
    "brokers" "HOST:PORT,…" "" "Kafka bootstrap servers (required unless --kafka-binding provides them)" "host:port, comma-separated";
    "kafka-binding" "DIR" "" "Directory of a mounted service binding (servicebinding.io) of type kafka; provides the brokers and the TLS and SASL properties that are not set elsewhere" "a directory with one file per key";
    "events" "TOPIC,…" "order-events" "Event topics to read" "topic names, comma-separated";
    "event-mapping" "TOPIC=PRESET,…" "" "Where the attributes and data of a topic's events are, for publishers of neither CloudEvents nor plain events: a preset, and single fields as TOPIC:FIELD=PLACE (a table per topic in the file, see Event mapping)" "a topic of --events and debezium-outbox, debezium-cloudevents or spring-cloud-stream; a field and places separated by ;";
    "start-at" "POSITION" "now" "Where to begin to read an event topic at the first start, which is committed then, or by topics create; later starts continue at the committed positions" "now, earliest, or a time such as 2026-01-01T00:00:00Z";
    "topic-prefix" "PREFIX" "webhook-" "Prefix of hookstream's own topics" "letters, digits, '.', '_' and '-', at most 100";
    "group-prefix" "PREFIX" "hookstream-" "Prefix of consumer groups and transactional ids" "letters, digits, '.', '_' and '-', at most 100";
    "guarantee" "GUARANTEE" "exactly-once" "Delivery guarantee from attempt to retry or dead letter, and in release and replay" "exactly-once or at-least-once";
    "instance" "NAME" "" "Name of this replica, unique and stable; used in transactional ids (default: the host name)" "letters, digits, '.', '_' and '-', at most 100";
    "http-listen" "ADDRESS" "0.0.0.0:9400" "Listen address of /metrics, /livez and /readyz" "ADDRESS:PORT; port 0 picks a free port";
    "http-token-file" "FILE" "" "Tokens for /metrics, /lag and the page, one per line; a request needs one of them as a bearer token, or as the password of any user. /livez and /readyz stay open. The file is read for each request" "a readable file with tokens of at least 16 characters";
    "http-certificate" "FILE" "" "Certificate of the HTTP server, with those of its issuers, PEM; everything is then served over TLS, probes too. Read again within a minute of a change" "a readable file, with --http-key";
    "http-key" "FILE" "" "Private key of --http-certificate, PEM without a password" "a readable file, with --http-certificate";
    "tiers" "TIME,…" "5s,30s,2m,10m,1h,6h" "Delays of the retry tiers, one topic per tier" "1 to 16 distinct durations from 10ms to 7d";
    "retry-schedule" "TIME,…" "5s,5m,30m,2h,5h,10h,10h" "Delays after the first, second, … failed attempt, before ±20 % jitter" "0 to 20 durations up to 24h";
    "max-age" "TIME" "" "Age at which a command that is not delivered becomes a dead letter (default: as long as the retry schedule can last, at least 24h)" "1s to 30d";
    "timeout" "TIME" "15s" "Timeout of a whole attempt: connect, headers and body" "100ms to 60s";
    "drain-deadline" "TIME" "10s" "How long to wait for attempts in flight at shutdown and when partitions are revoked" "0s to 5m";
    "hang-deadline" "TIME" "30s" "Exit if a call into the Kafka client takes longer while brokers are reachable" "5s to 1h";
    "max-event-bytes" "SIZE" "1MiB" "Maximum size of an event; larger events are invalid" "1KiB to 16MiB";
    "max-in-flight" "N" "1024" "Maximum requests in flight per replica" "1 to 65536";
    "max-queued-bytes" "SIZE" "64MiB" "Maximum bytes of commands in memory per replica" "1MiB to 16GiB";
    "max-queued-commands" "N" "100000" "Maximum number of commands in memory per replica" "512 to 100000000";
    "attempt-log" "" "false" "Record each attempt in the attempts topic" "true or false";
    "window-format" "N" "4" "Format version of the commit metadata; use 1 only while replicas of hookstream 0.1.0 run beside this version, or before a rollback to 0.1.0. 3 is as 2 until fan-out writes commands with the header hs-source; before 3, their copies may be delivered again after a restart. 4 is as 3 until many offsets are unfinished; before 4, commands that a fast lane has no room for hold their partition or are parked, instead of being deferred" "1 to 4";
    "lag-top" "N" "200" "Number of subscribers with their own metric series: by lag, by age and by dead letters, and per delivery replica by attempts; all others are summed as _other" "1 to 10000";
    "breaker-failures" "N" "5" "Consecutive failures that open a subscription's circuit breaker" "0 (never) to 100000";
    "breaker-rate" "RATIO" "0.5" "Failure ratio within --breaker-window that opens the breaker" "0 (never) to 1";
    "breaker-window" "TIME" "30s" "Sliding window of --breaker-rate" "1s to 1h";
    "breaker-volume" "N" "20" "Minimum attempts in the window before --breaker-rate applies" "1 to 100000";
    "breaker-probe" "TIME" "5s" "Delay from opening to the first probe; doubles after each failed probe, ±20 % jitter" "10ms to 10m";
    "breaker-max-probe" "TIME" "10m" "Maximum delay between probes" "10ms to 10m, at least --breaker-probe";
    "notice-after" "TIME" "5m" "How long a breaker must be open before a notice says that the endpoint fails" "1s to 7d";
    "disable-after" "TIME" "" "Disable a subscription whose endpoint has failed for so long (default: never)" "1m to 90d";
    "operator-subscriber" "NAME" "" "The subscriber whose subscriptions get the notices about all subscribers; others get only their own" "1 to 200 of A-Z a-z 0-9 . _ : -";
    "require-verification" "" "false" "Every endpoint must consent before it gets events, as with subscriptions apply --verify; set it for fanout, deliver, lag and the commands alike. Subscriptions without consent are pending" "true or false";
    "verification-origin" "NAME" "hookstream" "Who asks an endpoint for consent: the WebHook-Request-Origin of the handshake, a DNS name" "1 to 200 of A-Z a-z 0-9 . _ : -";
    "workers" "N" "" "Delivery threads; each partition is assigned to one (default: the number of cores)" "1 to 64";
    "egress-allow-http" "" "false" "Allow plain http endpoints" "true or false";
    "egress-allow-cidr" "CIDR,…" "" "Non-public networks that endpoints may be in" "CIDR blocks such as 10.0.0.0/8, comma-separated";
    "egress-deny-cidr" "CIDR,…" "" "Networks that endpoints must not be in; takes precedence over all that allows" "CIDR blocks such as 10.0.0.0/8, comma-separated";
    "egress-allow-host" "HOST,…" "" "Host names of endpoints that are allowed, also internal names and at non-public addresses" "names and patterns such as *.corp.example, comma-separated";
    "egress-deny-host" "HOST,…" "" "Host names that endpoints must not have; takes precedence over all that allows" "names and patterns such as *.corp.example, comma-separated";
    "egress-ports" "PORT,…" "443,8443" "Ports that endpoints may use" "ports and ranges such as 8000-8999, comma-separated, or any";
    "egress-proxy" "URL" "" "HTTP proxy for all connections to endpoints and their token servers (CONNECT to the address that the egress rules have checked)" "http://HOST:PORT";
    "egress-proxy-user" "NAME" "" "User for basic authentication at the proxy" "a name without a colon, with --egress-proxy-password";
    "egress-proxy-password" "REF" "" "Where the password of --egress-proxy-user is; a file is read again for each connection" "env:NAME or file:PATH";
    "egress-proxy-lookups" "" "false" "Let the proxy look up host names: rules about addresses then hold only for addresses in URLs" "true or false";
    "secret-dirs" "DIR,…" "" "Directories that the file: references of subscriptions may name files in, links resolved; {subscriber} as a part of the path stands for the subscriber (default: any file)" "absolute paths, comma-separated, or none";
    "secret-env-prefix" "PREFIX,…" "" "How the env: references of subscriptions must begin; {subscriber}__ stands for the subscriber, whose letters other than A-Z a-z 0-9 are _ and two hex digits (default: any name that does not begin with HOOKSTREAM_)" "A-Z a-z 0-9 _, comma-separated, or none; {subscriber} only before __ and not at the start";
    "kek-file" "FILE" "" "Key-encryption keys, one in a line, the base64 of 32 random bytes: subscriptions apply encrypts literal secrets with the first, deliver decrypts with all of them and reads the file again when it changes" "a readable file";
    "otlp-endpoint" "URL" "" "URL of an OpenTelemetry collector (OTLP over HTTP); no spans are exported if unset" "http://HOST:PORT or https://HOST:PORT, /v1/traces is appended; set credentials in OTEL_EXPORTER_OTLP_HEADERS";
    "trace-sample" "RATIO" "0" "Sampling ratio for events without a trace context; events with one follow the sampled flag of their publisher" "0 to 1";
    "schema-registry" "URL" "" "URL of a Schema Registry with Confluent's API: values that begin with a schema id, or have one in the header __value_schema_id, are decoded (Avro, Protobuf, JSON Schema); they are invalid events if unset" "http://HOST:PORT or https://HOST:PORT, with the registry's path if it has one";
    "schema-registry-user" "NAME" "" "User for basic authentication at the Schema Registry" "a name without a colon, with --schema-registry-password";
    "schema-registry-password" "REF" "" "Where the password of --schema-registry-user is; a file is read again for each request" "env:NAME or file:PATH";
    "schema-registry-token" "REF" "" "Where a bearer token for the Schema Registry is; a file is read again for each request" "env:NAME or file:PATH";
    "schema-registry-ca-file" "FILE" "" "Additional certificate authorities to trust for the Schema Registry, PEM (default: --ca-file)" "a readable file";
    "ca-file" "FILE" "" "Additional certificate authorities, or certificates of endpoints, to trust, PEM" "a readable file";
    "client-certificate" "FILE" "" "Client certificate for endpoints that demand one, with those of its issuers, PEM; for subscriptions without client_certificate. Read again within a minute of a change" "a readable file, with --client-key";
    "client-key" "FILE" "" "Private key of --client-certificate, PEM without a password" "a readable file, with --client-certificate";
    "log" "FILTER" "info" "Log level, or a filter by module such as hookstream=debug,info" "error, warn, info, debug, trace, or a filter";
    "log-format" "FORMAT" "text" "Format of the log on standard error" "text or json";
}

/// The setting of event mappings, and their table in the file.
pub const EVENT_MAPPING: &str = "event-mapping";

/// librdkafka properties that hookstream sets itself, each with the reason or the setting to use instead.
pub const OWNED_PROPERTIES: &[(&str, &str)] = &[
    ("bootstrap.servers", "use --brokers"),
    ("metadata.broker.list", "use --brokers"),
    ("group.id", "use --group-prefix"),
    ("client.id", "use --instance"),
    ("transactional.id", "use --instance and --group-prefix"),
    ("enable.idempotence", "every producer is idempotent"),
    (
        "acks",
        "every record is acknowledged by all in-sync replicas",
    ),
    (
        "request.required.acks",
        "every record is acknowledged by all in-sync replicas",
    ),
    (
        "enable.auto.commit",
        "offsets are committed together with the outcome of their records",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed together with the outcome of their records",
    ),
    ("isolation.level", "only committed records are read"),
    (
        "statistics.interval.ms",
        "the statistics detect a stuck consumer",
    ),
    (
        "auto.offset.reset",
        "use --start-at for event topics; the others are read from their beginning",
    ),
    (
        "partition.assignment.strategy",
        "only partitions that move pause during a rebalance",
    ),
    ("group.protocol", "only the classic protocol is tested"),
    (
        "group.instance.id",
        "static membership leaves partitions idle after a clean stop",
    ),
    (
        "partitioner",
        "every writer must map a subscriber to the same partition",
    ),
    ("allow.auto.create.topics", "use hookstream topics create"),
    ("message.max.bytes", "use --max-event-bytes"),
    (
        "enable.partition.eof",
        "hookstream depends on its own value",
    ),
    (
        "fetch.queue.backoff.ms",
        "hookstream depends on its own value",
    ),
    (
        "log.connection.close",
        "hookstream logs each lost connection once, with the role",
    ),
];
