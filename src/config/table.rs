//! The table of settings: the one place from which flags, environment variables, keys of the file, the reference
//! in docs/reference.md and the checks come.

/// One setting, as it can be typed.
#[derive(Debug)]
pub struct Setting {
    /// The flag without its dashes, and the key in the file.
    pub name: &'static str,
    /// What stands for the value in help; empty for a switch.
    pub value: &'static str,
    /// What holds if nothing is given; empty when it is computed or required.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
    /// What it may be, in a message after "allowed:".
    pub range: &'static str,
}

impl Setting {
    /// Whether it is on or off, and needs no value on the command line.
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
    "brokers" "HOST:PORT,…" "" "Kafka's bootstrap servers (required, unless --kafka-binding gives them)" "host:port, comma separated";
    "kafka-binding" "DIR" "" "A mounted service binding (servicebinding.io) of type kafka: the brokers and the properties for TLS and SASL that nothing else gives" "a directory with one file per key";
    "events" "TOPIC,…" "order-events" "Event topics" "topic names, comma separated";
    "topic-prefix" "PREFIX" "webhook-" "Prefix of all own topics" "letters, digits, '.', '_' and '-', at most 100";
    "group-prefix" "PREFIX" "hookstream-" "Prefix of consumer groups and transactional ids" "letters, digits, '.', '_' and '-', at most 100";
    "guarantee" "GUARANTEE" "exactly-once" "From event to command, and from attempt to retry or dead letter" "exactly-once or at-least-once";
    "instance" "NAME" "" "Unique and stable per replica; names the transactional ids (default: the host name)" "letters, digits, '.', '_' and '-', at most 100";
    "http-listen" "ADDRESS" "0.0.0.0:9400" "Where /metrics, /livez and /readyz are served" "ADDRESS:PORT; port 0 lets the system choose";
    "tiers" "TIME,…" "5s,30s,2m,10m,1h,6h" "Retry tiers, each a topic with this delay" "1 to 16 different times from 10ms to 7d";
    "retry-schedule" "TIME,…" "5s,5m,30m,2h,5h,10h,10h" "Delays after the first, second, … failed attempt, before ±20 % jitter" "0 to 20 times up to 24h";
    "timeout" "TIME" "15s" "One deadline for a whole attempt: connect, headers and body" "100ms to 60s";
    "drain-deadline" "TIME" "10s" "For attempts in flight at shutdown and when partitions move" "0s to 5m";
    "hang-deadline" "TIME" "30s" "A call into the Kafka client that takes longer though brokers answer ends the process" "5s to 1h";
    "max-event-bytes" "SIZE" "1MiB" "Larger events are invalid" "1KiB to 16MiB";
    "max-in-flight" "N" "1024" "Requests in flight per replica" "1 to 65536";
    "max-queued-bytes" "SIZE" "64MiB" "Commands held in memory per replica" "1MiB to 16GiB";
    "max-queued-commands" "N" "100000" "Commands held in memory per replica" "512 to 100000000";
    "attempt-log" "" "false" "Each attempt is recorded in the topic attempts, for people" "true or false";
    "window-format" "N" "2" "Format of the commit metadata that delivery writes; 1 only while replicas of hookstream 0.1.0 run beside this version or are about to" "1 or 2";
    "lag-top" "N" "200" "Subscribers with series of their own, by lag, by age and by dead letters, and in each replica of delivery by attempts; the rest is _other" "1 to 10000";
    "breaker-failures" "N" "5" "A subscription's breaker opens after so many failures in a row" "0 (never) to 100000";
    "breaker-rate" "SHARE" "0.5" "It opens too when this share of the attempts in its window failed" "0 (never) to 1";
    "breaker-window" "TIME" "30s" "The sliding window for --breaker-rate" "1s to 1h";
    "breaker-volume" "N" "20" "Attempts that the window must hold before --breaker-rate counts" "1 to 100000";
    "breaker-probe" "TIME" "5s" "From opening to the first probe; doubles with each that fails, ±20 %" "10ms to 10m";
    "breaker-max-probe" "TIME" "10m" "The longest time between probes" "10ms to 10m, --breaker-probe at least";
    "workers" "N" "" "Threads that send; a partition belongs to one (default: the number of cores)" "1 to 64";
    "egress-allow-http" "" "false" "Endpoints may be plain http" "true or false";
    "egress-allow-cidr" "CIDR,…" "" "Networks that endpoints may be in although they are not public" "networks as 10.0.0.0/8, comma separated";
    "egress-deny-cidr" "CIDR,…" "" "Networks that endpoints may not be in; wins over --egress-allow-cidr" "networks as 10.0.0.0/8, comma separated";
    "egress-ports" "PORT,…" "443,8443" "Ports that endpoints may have" "ports, comma separated, or any";
    "otlp-endpoint" "URL" "" "Where spans go: an OpenTelemetry collector, by OTLP over HTTP; nowhere if not given" "http://HOST:PORT or https, /v1/traces is added; credentials go into OTEL_EXPORTER_OTLP_HEADERS";
    "trace-sample" "SHARE" "0" "Of the events that come without a trace, the share that begins one; a trace that comes with an event is told if its publisher records it" "0 to 1";
    "ca-file" "FILE" "" "Further certificate authorities to trust, PEM" "a readable file";
    "log" "FILTER" "info" "Level, or filter by module as in hookstream=debug,info" "error, warn, info, debug, trace, or a filter";
    "log-format" "FORMAT" "text" "Form of the log on standard error" "text or json";
}

/// librdkafka properties that hookstream sets itself, each with the way to what is wanted.
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
        "positions are committed with what became of their records",
    ),
    (
        "enable.auto.offset.store",
        "positions are committed with what became of their records",
    ),
    ("isolation.level", "only committed records are read"),
    (
        "statistics.interval.ms",
        "the client's statistics tell when it is silent for good",
    ),
    (
        "auto.offset.reset",
        "a group without a position begins at the earliest record",
    ),
    (
        "partition.assignment.strategy",
        "only partitions that move stop during a rebalance",
    ),
    (
        "group.protocol",
        "the classic protocol is the one that is tested",
    ),
    (
        "group.instance.id",
        "static membership leaves partitions idle after a clean stop",
    ),
    (
        "partitioner",
        "a subscriber's partition must be the same for every writer",
    ),
    ("allow.auto.create.topics", "use hookstream topics create"),
    ("message.max.bytes", "use --max-event-bytes"),
    ("enable.partition.eof", "hookstream needs its own value"),
    ("fetch.queue.backoff.ms", "hookstream needs its own value"),
    (
        "log.connection.close",
        "hookstream logs lost connections once, with the role",
    ),
];
