//! The lag role: how fast it counts what waits, beside a raw consumer of the same records, what it holds for each command,
//! and what it costs while commands flow.
//!
//! Counting is `hookstream lag --once`, from the start of the process to its figures, so that nothing is hidden in a start.
//! What flows is written and committed past by this process, as fan-out and delivery would: the role alone is measured.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::Scale;
use crate::deliver::helper;
use crate::reference::{command, send};
use crate::report::Report;
use crate::stage::{Kafka, Problem, Role, STUCK, World, median, producer_config};

const PARTITIONS: usize = 12;
const SUBSCRIBERS: usize = 10_000;
/// Commands a second that flow.
const RATE: usize = 5000;
/// Of a command's body: what is counted is small.
const BODY: usize = 64;

type Writer = ThreadedProducer<DefaultProducerContext>;

/// Writes one command of one of the subscribers, each with an id of its own, to a partition in turn.
fn write(producer: &Writer, topic: &str, number: usize) -> Result<(), Problem> {
    let mut command = command(number);
    let name = number / PARTITIONS % SUBSCRIBERS;
    command.subscriber = format!("subscriber-{name}").into();
    command.subscription = format!("subscription-{name}").into();
    let record = BaseRecord::<[u8], [u8]>::to(topic)
        .partition((number % PARTITIONS) as i32)
        .key(command.subscriber.as_bytes())
        .payload(&command.body[..BODY])
        .headers(hookstream::edge::kafka::record::command_headers(
            &command.envelope(),
        ));
    send(producer, record)
}

fn fill(kafka: &Kafka, topic: &str, count: usize) -> Result<(), Problem> {
    let producer: Writer = producer_config(&kafka.address).create()?;
    for number in 0..count {
        write(&producer, topic, number)?;
    }
    Ok(producer.flush(STUCK)?)
}

/// Writes `RATE` commands a second from `from` on, and commits past those of a tenth of a second before if they are to be
/// done.
fn flow(
    kafka: &Kafka,
    world: &World<'_>,
    group: Option<&str>,
    from: usize,
    time: Duration,
) -> Result<(), Problem> {
    const STEP: Duration = Duration::from_millis(100);
    let producer: Writer = producer_config(&kafka.address).create()?;
    let committer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.address)
        .set("group.id", group.unwrap_or("nobody"))
        .create()?;
    let topic = world.commands();
    let begun = Instant::now();
    let steps = time.as_millis() / STEP.as_millis();
    let each = RATE / 10;
    for step in 0..steps as usize {
        for number in 0..each {
            write(&producer, &topic, from + step * each + number)?;
        }
        if group.is_some() && step > 0 {
            let mut done = TopicPartitionList::new();
            let all = from + step * each;
            for partition in 0..PARTITIONS {
                let position = all / PARTITIONS + usize::from(partition < all % PARTITIONS);
                let position = Offset::Offset(position as i64);
                done.add_partition_offset(&topic, partition as i32, position)?;
            }
            committer.commit(&done, CommitMode::Sync)?;
        }
        let next = begun + STEP * (step as u32 + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(producer.flush(STUCK)?)
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(1_000_000, 10_000_000);
    let time = scale.pick(Duration::from_secs(10), Duration::from_secs(30));
    let world = World::new(kafka, "lag", PARTITIONS, &[])?;

    // Steady state first, while there is no backlog; a group of its own has done all of it.
    let role = world.again("lag-flow").start("lag", &[])?;
    role.wait(&["hookstream_lag_as_of_timestamp_seconds"], 1.0)?;
    let before = role.cost()?.cpu;
    let begun = Instant::now();
    flow(kafka, &world, Some("lag-flow-deliver"), 0, time)?;
    let share = 100.0 * (role.cost()?.cpu - before) / begun.elapsed().as_secs_f64();
    role.stop()?;
    let flown = RATE * time.as_secs() as usize;
    let few = counted(&world, "lag-few", flown)?.resident()?;
    report.at_most(
        &format!("lag: of a core at {RATE} commands/s"),
        share,
        " %",
        5.0,
    );

    eprintln!("  writing {count} commands");
    fill(kafka, &world.commands(), count - flown)?;
    let (mut ours, mut raw) = (vec![], vec![]);
    for run in 0..scale.pick(1, scale.runs.min(3)) {
        let begun = Instant::now();
        let told: serde_json::Value =
            serde_json::from_str(&world.output(&["lag", "--once", "-o", "json", "--top", "1"])?)?;
        ours.push(begun.elapsed().as_secs_f64());
        if told["total"]["ready"] != count {
            return Err(format!("{} of {count} were counted", told["total"]["ready"]).into());
        }
        let arguments = [
            &kafka.address,
            &world.commands(),
            &PARTITIONS.to_string(),
            &count.to_string(),
        ];
        raw.push(helper("consumer", &arguments.map(String::as_str))?.wall);
        eprintln!(
            "  run {}: {:.1} s, raw {:.1} s",
            run + 1,
            ours[run],
            raw[run]
        );
    }
    let name = format!("lag: {count} commands of {SUBSCRIBERS} subscribers counted from cold");
    let seconds = median(ours.iter().copied());
    report.at_most(&name, seconds, " s", 20.0 * count as f64 / 1e7);
    report.tells(
        "lag: a raw consumer of the same records",
        median(raw.iter().copied()),
        " s",
    );
    let shares = ours.iter().zip(&raw).map(|(ours, raw)| 100.0 * raw / ours);
    // The target is 20 s or 80 % of this, whichever is kinder.
    report.tells("lag: rate over the raw consumer's", median(shares), " %");

    let role = counted(&world, "lag-cold", count)?;
    let held = role.resident()? - few;
    report.at_most(
        "lag: memory for each further command",
        held * 1024.0 * 1024.0 / (count - flown) as f64,
        " B",
        12.0,
    );
    report.tells(
        &format!("lag: peak memory, {count} waiting"),
        role.cost()?.memory,
        " MiB",
    );
    let before = role.cost()?.cpu;
    let begun = Instant::now();
    flow(kafka, &world, None, count, time)?;
    report.tells(
        &format!("lag: of a core at {RATE} commands/s, {count} waiting"),
        100.0 * (role.cost()?.cpu - before) / begun.elapsed().as_secs_f64(),
        " %",
    );
    role.stop()
}

/// A role from cold that has told of so many commands. What it fetched and did not yet read is let go of soon after.
fn counted(world: &World<'_>, name: &str, count: usize) -> Result<Role, Problem> {
    let role = world.again(name).start("lag", &[])?;
    role.wait(&["hookstream_subscriber_lag{"], count as f64)?;
    std::thread::sleep(Duration::from_secs(5));
    Ok(role)
}
