//! Many requests in flight to one origin: CPU beside a raw client with as many and beside a consumer by hand, and
//! connections opened.

use serde_json::json;

use crate::Scale;
use crate::deliver::{DONE, fill_for, helper};
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, World, median, subscription};

/// What is sent at a time.
struct Case {
    in_flight: usize,
    subscriptions: usize,
    /// The path of the receiver without the number.
    kind: &'static str,
    commands: usize,
    /// CPU relative to the raw client's.
    target: f64,
}

impl Case {
    fn each(&self) -> usize {
        self.in_flight / self.subscriptions
    }

    /// The most requests at a time. A receiver that answers at once never sees more than one.
    fn peak(&self, run: &Run) -> f64 {
        match self.kind {
            "ok" => self.in_flight as f64,
            _ => run.peak.max(1.0),
        }
    }
}

/// CPU seconds, and connections over the most requests at a time.
struct Run {
    cpu: f64,
    connections: f64,
    peak: f64,
    /// A second.
    rate: f64,
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let cases = [
        Case {
            in_flight: 80,
            subscriptions: 10,
            kind: "ok",
            commands: scale.pick(100_000, 200_000),
            target: 1.2,
        },
        Case {
            in_flight: 640,
            subscriptions: 10,
            kind: "ok",
            commands: scale.pick(100_000, 200_000),
            target: 1.25,
        },
        // One origin of many tenants, so slow that so many are needed.
        Case {
            in_flight: 5_000,
            subscriptions: 5_000,
            kind: "after/400",
            commands: scale.pick(50_000, 200_000),
            target: 1.25,
        },
    ];
    for case in &cases {
        measure(kafka, scale, report, case)?;
    }
    Ok(())
}

fn measure(kafka: &Kafka, scale: &Scale, report: &mut Report, case: &Case) -> Result<(), Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let all: Vec<_> = (0..case.subscriptions)
        .map(|number| {
            let url = format!("http://127.0.0.1:{port}/{}/{number}", case.kind);
            let mut one = subscription(number, &url);
            one["max_in_flight"] = json!(case.each());
            one
        })
        .collect();
    let name = format!("flight-{}", case.in_flight);
    let world = World::new(kafka, &name, 12, &all)?;
    fill_for(kafka, &world.commands(), case.commands, case.subscriptions)?;
    let (mut ours, mut raw, mut by_hand) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..scale.runs {
        receiver.ask("reset")?;
        // An origin gets three quarters, a subscription a ninth of what the others leave.
        let flags = ["--workers", "1", "--max-in-flight", "8192"];
        let again = world.again(&format!("{name}-{run}"));
        let role = again.start("deliver", &flags)?;
        let (cost, seconds) = role.wait(&DONE, case.commands as f64)?;
        ours.push(told(
            &mut receiver,
            cost.cpu,
            case.commands as f64 / seconds,
        )?);
        role.stop()?;
        receiver.ask("reset")?;
        let (count, tasks) = (case.commands.to_string(), case.in_flight.to_string());
        let cost = helper("client", &[&port, &count, &tasks, case.kind])?;
        raw.push(told(
            &mut receiver,
            cost.cpu,
            case.commands as f64 / cost.wall,
        )?);
        receiver.ask("reset")?;
        let (topic, partitions) = (world.commands(), world.partitions().to_string());
        let arguments = [
            &kafka.address,
            &topic,
            &partitions,
            &count,
            &port,
            &tasks,
            case.kind,
        ];
        let cost = helper("byhand", &arguments)?;
        by_hand.push(told(
            &mut receiver,
            cost.cpu,
            case.commands as f64 / cost.wall,
        )?);
    }
    let at = case.in_flight;
    let micros = |runs: &[Run]| median(runs.iter().map(|run| run.cpu / case.commands as f64 * 1e6));
    report.tells(
        &format!("flight: CPU per delivery, {at} at a time"),
        micros(&ours),
        " µs",
    );
    report.tells(
        &format!("flight: CPU per request of a raw client, {at} at a time"),
        micros(&raw),
        " µs",
    );
    report.at_most(
        &format!("flight: CPU over the raw client's, {at} at a time"),
        median(ours.iter().zip(&raw).map(|(ours, raw)| ours.cpu / raw.cpu)),
        " x",
        case.target,
    );
    report.tells(
        &format!("flight: CPU per delivery of a consumer by hand, {at} at a time"),
        micros(&by_hand),
        " µs",
    );
    report.at_most(
        &format!("flight: CPU over that of the consumer by hand, {at} at a time"),
        median(
            ours.iter()
                .zip(&by_hand)
                .map(|(ours, hand)| ours.cpu / hand.cpu),
        ),
        " x",
        1.1,
    );
    report.at_most(
        &format!("flight: connections over the most requests at a time, {at}"),
        median(ours.iter().map(|run| run.connections / case.peak(run))),
        " x",
        1.1,
    );
    let all = [
        ("hookstream", &ours),
        ("raw client", &raw),
        ("consumer by hand", &by_hand),
    ];
    let rows: Vec<Vec<String>> = all
        .into_iter()
        .map(|(name, runs)| {
            let of = |figure: fn(&Run) -> f64| format!("{:.0}", median(runs.iter().map(figure)));
            vec![
                name.to_owned(),
                of(|run| run.rate),
                format!("{:.0}", median(runs.iter().map(|run| case.peak(run)))),
                of(|run| run.connections),
            ]
        })
        .collect();
    report.table(
        &format!(
            "{at} requests at a time, {} subscriptions, one origin:",
            case.subscriptions
        ),
        &["what", "requests/s", "most at a time", "connections"],
        &rows,
    );
    Ok(())
}

/// What the receiver has seen of a run.
fn told(receiver: &mut Helper, cpu: f64, rate: f64) -> Result<Run, Problem> {
    let seen = receiver.ask("report")?;
    let number = |name: &str| seen[name].as_f64().ok_or(format!("no {name}"));
    Ok(Run {
        cpu,
        connections: number("connections")?,
        peak: number("peak")?,
        rate,
    })
}
