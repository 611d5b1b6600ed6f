//! `hookstream demo`: a demonstration with sample data in one process.
//!
//! It runs a broker (embedded, or the one of `--brokers`), sample receivers, sample events, and the same roles as
//! `hookstream run`; no part of the program is replaced for the demo. The expected webhooks are known and the receivers
//! record what they get, so the exit code is 0 only if every delivery was correct. Tests run it.

mod broker;
mod events;
mod ledger;
mod receivers;
mod sender;
mod subscribers;
mod view;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Args;

use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print;
use crate::config::table::SETTINGS;
use crate::config::{Guarantee, Layers, Settings, Source};
use crate::edge::clock;
use crate::model::dead_letter::{Filter, Reason};
use crate::model::units::parse_duration;
use crate::replay::{self, End, Plan};
use crate::runtime::shutdown::Stop;
use crate::wiring::{Role, Service, ServiceError};
use broker::{Broker, EMBEDDED};
use events::Flow;
use ledger::Ledger;
use receivers::{Receivers, SharedLedger};
use subscribers::{Behavior, SUBSCRIBERS};
use view::{View, latency};

/// How often the state is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The demo fails when nothing changes for this long.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the replay takes.
const REPLAY_DURATION: Duration = Duration::from_secs(3);

/// `hookstream demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// How long to send orders, 1s to 10m; the demo ends about 10 seconds later
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    duration: Duration,
    /// Orders per second
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    rate: u32,
}

fn duration(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
    let duration = parse_duration(text)?;
    if allowed.contains(&duration) {
        Ok(duration)
    } else {
        Err("must be 1s to 10m".to_owned())
    }
}

/// Sets the defaults of the demo.
pub fn prepare(layers: &mut Layers) {
    let common = [
        ("http-listen", "127.0.0.1:0"),
        // A demo that is started again continues where it was.
        ("start-at", "earliest"),
        ("tiers", "1s,2s,5s"),
        ("retry-schedule", "1s,2s,2s"),
        ("drain-deadline", "2s"),
        ("egress-allow-http", "true"),
        ("egress-allow-cidr", "127.0.0.0/8"),
        ("egress-ports", "any"),
        // Dead letters are expected, and the view shows them.
        (
            "log",
            "warn,hookstream::delivery::notices=error,librdkafka=error",
        ),
    ];
    for (name, value) in common {
        layers.give(name, Source::Default, value);
    }
    // The maximum wait of a fetch, for low latency.
    layers.give_property("fetch.wait.max.ms=20", Source::Default);
    if given(layers, "brokers").is_none() {
        layers.give("brokers", Source::Default, EMBEDDED);
        layers.give("guarantee", Source::Default, "at-least-once");
        return;
    }
    // A real Kafka may be in use: the demo has its own topics and groups.
    let prefix = given(layers, "topic-prefix").unwrap_or_else(|| format!("demo-{}-", random()));
    layers.give("events", Source::Default, format!("{prefix}order-events"));
    layers.give("group-prefix", Source::Default, prefix.clone());
    layers.give("topic-prefix", Source::Default, prefix);
}

fn random() -> String {
    std::iter::repeat_with(|| fastrand::char('a'..='z'))
        .take(6)
        .collect()
}

/// The value of the setting, unless it is the default.
fn given(layers: &Layers, name: &str) -> Option<String> {
    let setting = SETTINGS.iter().find(|setting| setting.name == name)?;
    let (value, source) = layers.effective(setting)?;
    (source != Source::Default).then(|| value.to_owned())
}

/// Runs the demo.
///
/// # Errors
/// [`CliError`]: a part failed, or a delivery was wrong.
pub fn run(settings: Settings, args: &DemoArgs) -> Result<Exit, CliError> {
    let flow = Flow {
        per_second: args.rate,
        duration: args.duration,
    };
    let interrupt = Interrupt::watch()?;
    let broker = Broker::start(settings, flow)?;
    let source = broker
        .settings
        .topics
        .events
        .first()
        .cloned()
        .unwrap_or_default();
    let ledger = SharedLedger::new(Ledger::new(&source));
    let receivers = Receivers::start(&ledger)?;
    broker.subscribe(&receivers, args.rate)?;
    let service = Service::start(
        &broker.settings,
        &[Role::Fanout, Role::Deliver, Role::Release],
    )?;
    introduce(&broker, &service, args)?;
    let roles = Roles::watch(service)?;
    let mut scenario = Scenario {
        broker: &broker,
        ledger,
        roles: &roles,
        interrupt,
        view: View::new(),
    };
    let result = scenario.run(flow);
    let Scenario { ledger, view, .. } = scenario;
    let ended = roles.end();
    let ledger = ledger.lock();
    view.end(&ledger)?;
    match result {
        // A failed role is the cause of the error.
        Err(error) if error.exit == Exit::Failure => ended.and(Err(error)),
        Err(error) => Err(error),
        Ok(()) => {
            ended?;
            conclude(&broker, &ledger)
        }
    }
}

/// The running roles, on their own threads.
struct Roles {
    stop: Arc<Stop>,
    ended: JoinHandle<Result<(), ServiceError>>,
}

impl Roles {
    fn watch(service: Service) -> Result<Self, CliError> {
        let stop = service.stop_handle();
        let ended = std::thread::Builder::new()
            .name("roles".to_owned())
            .spawn(move || service.wait())
            .map_err(|error| CliError::new(Exit::Failure, format!("starting a thread: {error}")))?;
        Ok(Self { stop, ended })
    }

    fn end(self) -> Result<(), CliError> {
        self.stop.request();
        let lost = |_| {
            Err(CliError::new(
                Exit::Failure,
                "the thread of the roles panicked",
            ))
        };
        match self.ended.join() {
            Ok(ended) => Ok(ended?),
            Err(panic) => lost(panic),
        }
    }
}

/// The running demonstration.
struct Scenario<'a> {
    broker: &'a Broker,
    ledger: SharedLedger,
    roles: &'a Roles,
    interrupt: Interrupt,
    view: View,
}

impl Scenario<'_> {
    fn run(&mut self, flow: Flow) -> Result<(), CliError> {
        let sending = sender::start(self.broker, &self.ledger, random(), flow, &self.roles.stop)?;
        // The embedded broker lets a group wait for 3 s for more members.
        self.wait("roles joining their groups", |ledger| {
            ledger.requests() > 0 || sending.is_finished()
        })?;
        self.wait("sending orders", |_| sending.is_finished())?;
        sending
            .join()
            .unwrap_or_else(|_| Err(CliError::new(Exit::Failure, "the sender thread panicked")))?;
        self.wait("all orders sent, waiting for retries", Ledger::is_settled)?;
        let dead = self.dead_letters()?;
        self.ledger.lock().fix_strict();
        self.replay(dead)?;
        self.check_none_left()
    }

    /// Updates the view until `done`; fails when a role ends, nothing changes for too long, or a signal is received.
    fn wait(&mut self, doing: &str, done: impl Fn(&Ledger) -> bool) -> Result<(), CliError> {
        let (mut seen, mut since) = ((0, 0), clock::instant());
        loop {
            {
                let ledger = self.ledger.lock();
                self.view.show(doing, &ledger)?;
                if done(&ledger) {
                    return Ok(());
                }
                let now = (ledger.orders(), ledger.requests());
                if now != seen {
                    (seen, since) = (now, clock::instant());
                }
            }
            if self.interrupt.is_raised() {
                return Err(interrupted());
            }
            if self.roles.stop.is_requested() {
                return Err(wrong(&["a role ended early".to_owned()]));
            }
            if since.elapsed() > STALL_TIMEOUT {
                return Err(self.stalled(doing));
            }
            self.roles.stop.wait(CHECK_INTERVAL);
        }
    }

    /// The error for a stalled demo, with the open dead letters.
    fn stalled(&self, doing: &str) -> CliError {
        let mut faults = vec![format!(
            "no progress for {} s ({doing})",
            STALL_TIMEOUT.as_secs()
        )];
        faults.extend(self.ledger.lock().faults());
        if let Ok((counts, _)) = replay::preview(&self.broker.settings, &Plan::default(), &|| false)
        {
            faults.extend(counts.groups.iter().map(|((subscriber, reason), count)| {
                format!(
                    "dead letters of {subscriber}: {}, {}",
                    count.letters,
                    reason.as_str()
                )
            }));
        }
        wrong(&faults)
    }

    fn plan(&self) -> Plan {
        let subscriber = SUBSCRIBERS
            .iter()
            .find(|subscriber| subscriber.behavior == Behavior::Strict);
        let filter = Filter {
            subscriber: subscriber.map(|subscriber| subscriber.name.to_owned()),
            reason: Some(Reason::PermanentStatus),
            status: Some(400),
            ..Filter::default()
        };
        Plan {
            filter,
            ..Plan::default()
        }
    }

    /// Open dead letters, counted as by `hookstream replay --dead-letters --dry-run`.
    fn open(&self, plan: &Plan) -> Result<u64, CliError> {
        let (counts, _) =
            replay::preview(&self.broker.settings, plan, &|| self.interrupt.is_raised())
                .map_err(|failure| print::failed(&failure))?;
        Ok(counts.letters())
    }

    /// Waits until every webhook that strict refused is a dead letter in Kafka; returns how many are open.
    fn dead_letters(&mut self) -> Result<u64, CliError> {
        let refused: usize = (0..SUBSCRIBERS.len())
            .map(|index| self.ledger.lock().numbers(index).dead)
            .sum();
        let refused = u64::try_from(refused).unwrap_or(u64::MAX);
        let plan = self.plan();
        let begun = clock::instant();
        // Delivery commits outcomes every 100 ms: a response precedes its dead letter.
        loop {
            let open = self.open(&plan)?;
            if open >= refused {
                return Ok(open);
            }
            if self.interrupt.is_raised() {
                return Err(interrupted());
            }
            if self.roles.stop.is_requested() {
                return Err(wrong(&["a role ended early".to_owned()]));
            }
            if begun.elapsed() > STALL_TIMEOUT {
                return Err(wrong(&[format!(
                    "strict refused {refused} webhooks, but {open} dead letters are open"
                )]));
            }
            self.roles.stop.wait(CHECK_INTERVAL);
        }
    }

    /// Replays at a visible pace, and waits until everything is delivered.
    fn replay(&mut self, dead: u64) -> Result<(), CliError> {
        let pace = REPLAY_DURATION.div_f64(dead.max(1) as f64);
        let plan = Plan {
            pace: Some(pace),
            ..self.plan()
        };
        let (settings, interrupt) = (self.broker.settings.clone(), self.interrupt.clone());
        let replaying = std::thread::Builder::new()
            .name("replay".to_owned())
            .spawn(move || replay::run(&settings, &plan, &|| interrupt.is_raised(), &mut |_| {}))
            .map_err(|error| CliError::new(Exit::Failure, format!("starting a thread: {error}")))?;
        let doing = "strict is fixed, replaying its dead letters";
        self.wait(doing, |_| replaying.is_finished())?;
        let Ok(report) = replaying.join() else {
            return Err(wrong(&["the replay thread panicked".to_owned()]));
        };
        let replayed = report.replayed.letters();
        match report.end {
            End::Failed(error) => Err(wrong(&[format!("replaying the dead letters: {error}")])),
            End::Stopped => Err(interrupted()),
            End::Complete if replayed != dead => Err(wrong(&[format!(
                "{replayed} of {dead} dead letters were replayed"
            )])),
            End::Complete => self.wait(doing, Ledger::is_complete),
        }
    }

    /// Checks that no dead letters are left.
    fn check_none_left(&self) -> Result<(), CliError> {
        let left = self.open(&Plan::default())?;
        let mut faults = self.ledger.lock().faults();
        if left > 0 {
            faults.push(format!("{left} dead letters are still open"));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(wrong(&faults))
        }
    }
}

fn interrupted() -> CliError {
    CliError::new(Exit::Interrupted, "interrupted; all roles have shut down")
}

fn wrong(faults: &[String]) -> CliError {
    CliError::new(
        Exit::Failure,
        format!("the demo found errors:\n  {}", faults.join("\n  ")),
    )
}

/// Prints the introduction.
fn introduce(broker: &Broker, service: &Service, args: &DemoArgs) -> Result<(), CliError> {
    let settings = &broker.settings;
    let broker = if broker.is_embedded() {
        "embedded in this process, nothing to install (at-least-once)".to_owned()
    } else {
        let guarantee = match settings.guarantee {
            Guarantee::ExactlyOnce => "exactly-once",
            Guarantee::AtLeastOnce => "at-least-once",
        };
        format!(
            "{}, {guarantee}, topics {}*",
            settings.brokers, settings.topics.prefix
        )
    };
    let introductions: Vec<String> = SUBSCRIBERS
        .iter()
        .map(|subscriber| format!("    {:<9}{}", subscriber.name, subscriber.introduction))
        .collect();
    print::line(&format!(
        "\
hookstream demo: events on Kafka become signed webhooks

  Kafka      {broker}
  events     {} per second for {} on {}: orders created, paid, shipped
  webhooks   to five subscribers on this machine:
{}
  metrics    http://{}/metrics
",
        args.rate,
        humantime::format_duration(args.duration),
        settings.topics.events.join(","),
        introductions.join("\n"),
        service.http,
    ))
}

/// Prints the summary and the next steps.
fn conclude(broker: &Broker, ledger: &Ledger) -> Result<Exit, CliError> {
    let of = |behavior: Behavior| {
        let index = SUBSCRIBERS
            .iter()
            .position(|subscriber| subscriber.behavior == behavior);
        ledger.numbers(index.unwrap_or_default())
    };
    let median = |behavior| of(behavior).median.map_or_else(String::new, latency);
    print::line(&format!(
        "
Results, all verified:
  ok  {} events became {} webhooks, each delivered once to the right subscriber
  ok  {} requests, each with a valid signature (Standard Webhooks, HMAC-SHA256)
  ok  slow ({}) delayed no other subscriber: good got its webhooks in {}
  ok  flaky accepted {} at the third attempt each: same webhook id, same body
  ok  strict refused {}: dead letters, replayed after the fix, none left
",
        ledger.orders(),
        ledger.webhooks(),
        ledger.requests(),
        median(Behavior::Slow),
        median(Behavior::Prompt),
        of(Behavior::Flaky).delivered,
        of(Behavior::Strict).delivered,
    ))?;
    print::line(&next_steps(broker))?;
    Ok(Exit::Done)
}

fn next_steps(broker: &Broker) -> String {
    let settings = &broker.settings;
    if !broker.is_embedded() {
        let (brokers, prefix) = (&settings.brokers, &settings.topics.prefix);
        return format!(
            "\
Nothing was deleted. To inspect the dead letters, and to clean up:
  hookstream dead-letters list --all --brokers {brokers} --topic-prefix {prefix}
  kafka-topics.sh --bootstrap-server {brokers} --delete --topic '{prefix}.*'"
        );
    }
    "\
The same on a real Kafka, exactly-once:
  export HOOKSTREAM_BROKERS=HOST:PORT
  hookstream demo                         this demo, on its own topics
  hookstream topics create --with-events  create your topics
  hookstream subscriptions apply -f FILE  create your subscriptions
  hookstream run                          run all roles in one process
  hookstream replay --dead-letters        send dead letters again"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Machine;

    fn prepared(given: &[(&str, &str)]) -> Settings {
        let mut layers = Layers::new();
        for (name, value) in given {
            layers.give(name, Source::Flag, *value);
        }
        prepare(&mut layers);
        let machine = Machine {
            host_name: "here".to_owned(),
            cores: 2,
        };
        Settings::check(&layers, &machine).unwrap()
    }

    #[test]
    fn by_default_it_runs_on_the_embedded_broker_without_transactions() {
        let settings = prepared(&[]);
        assert_eq!(settings.brokers, EMBEDDED);
        assert_eq!(settings.guarantee, Guarantee::AtLeastOnce);
        assert_eq!(settings.topics.commands(), "webhook-commands");
    }

    #[test]
    fn on_a_real_kafka_it_has_its_own_names() {
        let settings = prepared(&[("brokers", "kafka:9092")]);
        let prefix = &settings.topics.prefix;
        assert!(prefix.starts_with("demo-"), "{prefix}");
        assert_eq!(&settings.group_prefix, prefix);
        assert_eq!(settings.topics.events, [format!("{prefix}order-events")]);
        assert_eq!(settings.guarantee, Guarantee::ExactlyOnce);
    }

    #[test]
    fn given_settings_override_those_of_the_demo() {
        let settings = prepared(&[
            ("brokers", "kafka:9092"),
            ("topic-prefix", "mine-"),
            ("tiers", "3s"),
        ]);
        assert_eq!(settings.topics.prefix, "mine-");
        assert_eq!(settings.group_prefix, "mine-");
        assert_eq!(settings.tiers.delays(), [Duration::from_secs(3)]);
    }
}
