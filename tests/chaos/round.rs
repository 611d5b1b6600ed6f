//! One round: traffic flows, faults come one after the other, each followed until all is well again; then rest, and the
//! check.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::checker::{Promise, check};
use crate::faults::{Bag, Fault, Scene, secret};
use crate::fleet::{Fleet, SESSION};
use crate::history::{History, Injected};
use crate::it::support::{Broker, World};
use crate::origin::Origin;
use crate::reading::{Sampler, come_to_rest, copies, count_records, event_numbers, requests};
use crate::report::{Report, print_logs};
use crate::tenants::{self, Tenants};
use crate::traffic::{self, Generator, Progress};
use crate::truth::{self, Kind, SUBSCRIPTIONS};

/// How long the system may take until all that was produced during a fault is through. Past it, it is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// How long after other faults a tenant's fault is not held responsible for what healthy subscribers notice.
const CALM: Duration = Duration::from_secs(10);

/// What a round is to be.
pub struct Plan {
    pub seed: u64,
    pub length: Duration,
    /// Events a second.
    pub rate: u32,
    pub promise: Promise,
    /// No faults that take half a minute.
    pub short: bool,
    /// At most so many faults come on top of each other before it is waited until all is well again.
    pub bursts: usize,
}

/// How many faults come next: in half of the cases one alone.
fn burst(rng: &mut Rng, most: usize) -> usize {
    if most < 2 || rng.bool() {
        1
    } else {
        rng.usize(2..=most)
    }
}

/// Runs one round, and adds it to the report.
pub fn run(broker: &Broker, plan: &Plan, wanted: &dyn Fn(Fault) -> bool, report: &mut Report) {
    let mut rng = Rng::with_seed(plan.seed);
    let mut world = World::on(broker, "chaos");
    world.tiers = vec![truth::RETRY];
    if plan.promise == Promise::AtLeastOnce {
        world.flags = ["--guarantee", "at-least-once"].map(str::to_owned).to_vec();
    }
    let progress = Arc::new(Progress::default());
    let receiver = traffic::receiver(Ipv4Addr::LOCALHOST.into(), &progress);
    let origin = Origin::start(&receiver);
    world
        .flags
        .extend(["--ca-file".to_owned(), origin.ca_file()]);
    Tenants::create_topic(&world);
    world.topics.events.push(tenants::events(&world));
    world.create_topics(3);
    let world = Arc::new(world);
    for number in 0..SUBSCRIPTIONS.len() {
        traffic::put(&world, &receiver, number, &secret(0), "active");
    }
    let url = origin.url(&format!("/{}", Kind::id(truth::SHARES_ORIGIN)));
    traffic::put_at(&world, &url, truth::SHARES_ORIGIN, &secret(0), "active");
    let mut fleet = Fleet::start(&world, &[("fanout", 2), ("deliver", 2), ("release", 2)]);
    let sampler = Sampler::start(&world);
    let generator = Generator::start(&world, plan.rate);
    let tenants = Tenants::default();
    let mut faults = Vec::new();
    let mut scene = Scene {
        broker,
        world: &world,
        receiver: &receiver,
        origin: &origin,
        fleet: &mut fleet,
        secret: 0,
        partitions: 3,
        failures: Vec::new(),
        generator: &generator,
        tenants: &tenants,
        progress: &progress,
        rate: plan.rate,
        alone: true,
        recovered: None,
    };
    let until = Instant::now() + plan.length;
    let mut bag = Bag::new(wanted, plan.short);
    // As a fault is: the first events meet clients that still connect.
    let mut disturbed = Some(Instant::now());
    while Instant::now() < until {
        let burst = burst(&mut rng, plan.bursts);
        let first = generator.next();
        let mut since = Instant::now();
        let mut names = Vec::new();
        scene.alone = burst == 1;
        scene.recovered = None;
        for _ in 0..burst {
            let fault = bag.next(&mut rng);
            let from = Instant::now();
            let injected = scene.inject(fault, &mut rng);
            println!(
                "{:>6.1} s: {}",
                (plan
                    .length
                    .saturating_sub(until.saturating_duration_since(from)))
                .as_secs_f64(),
                injected.what
            );
            // What a kill breaks is broken from its beginning; what lasts, is mended at its end.
            since = if matches!(fault, Fault::Kill | Fault::BrokerKill) {
                from
            } else {
                Instant::now()
            };
            names.push(fault);
            faults.push(injected);
        }
        // A broker that came back, or a replica that was killed, disturbs for a while after all is through.
        if names.iter().all(|fault: &Fault| fault.is_of_tenant())
            && disturbed.is_none_or(|at: Instant| at.elapsed() > CALM)
        {
            let first = faults.len() - names.len();
            faults[first..]
                .iter_mut()
                .for_each(|fault: &mut Injected| fault.of_tenant = true);
        }
        let last = generator.next() + plan.rate;
        let through = scene
            .fleet
            .tend_until_through(&progress, first, last, STUCK);
        if through.is_none() && excuse_what_kafka_lost(&world, &generator, &progress, first, last) {
            report.injected(&names);
            continue;
        }
        let recovered = through.map(|at| scene.recovered.unwrap_or(at));
        report.faults(
            &names,
            recovered.map(|at| at.saturating_duration_since(since)),
        );
        if through.is_none() {
            report.stuck(
                format!("after {names:?}: {}", faults.last().unwrap().what),
                scene.fleet.logs(),
            );
            break;
        }
        if !names.iter().all(|fault| fault.is_of_tenant()) {
            disturbed = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(rng.u64(200..2000)));
        scene.fleet.tend();
    }
    let mut failures = std::mem::take(&mut scene.failures);
    tenants.check(&world, plan.promise == Promise::ExactlyOnce, &mut failures);
    report.failures(failures);
    let mut sent = generator.finish();
    let left = come_to_rest(&world, &progress, sent.len(), || fleet.tend());
    let positions = sampler.finish();
    count_records(&world, &mut sent);
    let history = History {
        sent,
        requests: requests(&receiver),
        copies: copies(&world),
        positions,
        faults,
        session: SESSION,
        evictions: fleet.evictions(),
        left,
    };
    let verdict = check(&history, plan.promise);
    if !verdict.violations.is_empty() {
        print_logs(fleet.logs());
    }
    report.failures(std::mem::take(&mut fleet.stuck));
    report.round(plan, &history, verdict, std::mem::take(&mut fleet.ended));
}

/// Events that are not on their topic cannot come through: whether all that are missing are such ones. The checker counts
/// them, since the generator's client had them acknowledged.
fn excuse_what_kafka_lost(
    world: &World,
    generator: &Generator,
    progress: &Progress,
    first: u32,
    last: u32,
) -> bool {
    // Before the topic is read: what comes through meanwhile was too late, not lost.
    let missing = progress.missing(first, last);
    let there: HashSet<u32> = event_numbers(world).into_iter().collect();
    let is_lost = |&event: &u32| !there.contains(&event) && generator.has_acknowledged(event);
    let lost = !missing.is_empty() && missing.iter().all(is_lost);
    if lost {
        println!("          not on the topic, though acknowledged: events {missing:?}");
        missing.into_iter().for_each(|event| progress.excuse(event));
    }
    lost
}
