//! An endpoint is down and comes back: how long its backlog takes, and the appends for each of its commands.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scale;
use crate::drain::DELIVERED;
use crate::latency::{produce, wait};
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, Role, STUCK, World, subscription};

/// What the subscription accepts a second.
const LIMIT: f64 = 1_000.0;
/// The longest delay between probes, of the default.
const LONGEST_PROBE: f64 = 600.0;

/// Records written for commands after fan-out's: into tiers, between them, and back.
fn appends(role: &Role) -> Result<f64, Problem> {
    let moved = role.sum(&["hookstream_parked_total", "hookstream_released_total"])?;
    let retried = role.sum(&["hookstream_attempts_total"])? - role.sum(&DELIVERED)?;
    Ok(moved + retried)
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let minutes = scale.pick(1, 30);
    let (count, rate) = scale.pick((6_000, 100.0), (15_000, 15_000.0 / 1_800.0));
    let mut receiver = Helper::start("receiver", &[])?;
    let mut one = subscription(
        0,
        &format!("http://127.0.0.1:{}/switch/0", receiver.line()?),
    );
    one["max_in_flight"] = json!(64);
    one["rate_limit"] = json!({"per_second": LIMIT, "burst": LIMIT});
    let world = World::new(kafka, "outage", 4, &[one])?;
    let role = world.again("outage").start("run", &[])?;
    role.wait_ready()?;
    receiver.ask("down")?;
    let time = Duration::from_secs_f64(f64::from(count) / rate);
    let sent = produce(kafka, &world.events(), rate, time)?;
    let (up, written) = (Instant::now(), appends(&role)?);
    receiver.ask("up")?;
    let seen = wait(&mut receiver, sent, 2 * STUCK)?;
    let took = up.elapsed().as_secs_f64();
    role.stop()?;
    if seen["all"]["count"].as_u64().unwrap_or(0) < sent as u64 {
        return Err(format!("of {sent} commands only these came in {took:.0} s: {seen}").into());
    }
    // The delay between probes doubles, with jitter, so it is at most the time of the outage by then.
    let probe = (time.as_secs_f64() * 1.2).min(LONGEST_PROBE);
    report.at_most(
        &format!("outage of {minutes} min: until {sent} commands are delivered"),
        took,
        " s",
        (sent as f64 / LIMIT * 1.1 + probe).round(),
    );
    report.tells(
        &format!("outage of {minutes} min: appends per command until its end"),
        written / sent as f64,
        "",
    );
    Ok(())
}
