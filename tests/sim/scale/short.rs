//! The test: small shapes, in seconds.

use super::full::{group_shape, partition_shape};
use super::group::{self, Fault};
use super::partition::{self, Manner, Outage, SECOND, Whale};
use crate::settings;

pub fn check() {
    small_groups();
    small_partitions();
    println!("the model of scale has the same figures twice, within their bounds");
}

fn small_groups() {
    let shape = |seed| group::Shape {
        seed,
        members: 12,
        partitions: 60,
        ..group_shape(vec![100, 400, 900])
    };
    for seed in 1..=5 {
        let shape = shape(seed);
        let roll = group::play(&shape, Fault::Roll { at_a_time: 1 });
        assert_eq!(roll, group::play(&shape, Fault::Roll { at_a_time: 1 }));
        // A partition that moves waits for a drain, its commit and at most a few heartbeats.
        assert!(roll.pause(1.0) < 5_000, "{roll:?}");
        assert!(roll.took > 11 * (shape.restart + shape.settle), "{roll:?}");
        let zone = group::play(&shape, Fault::Zone { coordinator: None });
        assert!(
            zone.pause(0.0) >= shape.session - shape.heartbeat,
            "nobody takes a partition before the session has ended: {zone:?}"
        );
        assert!(zone.pause(1.0) < shape.session + 5_000, "{zone:?}");
        assert_eq!(zone.most_owned, 60_usize.div_ceil(8), "{zone:?}");
        let moved = Fault::Zone {
            coordinator: Some(10_000),
        };
        let moved = group::play(&shape, moved);
        assert!(moved.pause(1.0) > zone.pause(1.0), "{moved:?}");
    }
}

fn small_partitions() {
    let settings = settings();
    let shape = partition::Shape {
        rate: 100.0,
        subscriptions: 50,
        until: 30 * SECOND,
        ..partition_shape(7)
    };
    let calm = partition::play(&shape, &settings);
    assert_eq!(calm.appends(), 0, "{calm:?}");
    assert!(calm.delivered > 2_900, "{calm:?}");
    let outage = Outage {
        every: 10,
        from: 20 * SECOND,
        to: 140 * SECOND,
        manner: Manner::RefuseOrHang,
    };
    let shape = partition::Shape {
        outage: Some(outage),
        ..shape
    };
    let down = partition::play(&shape, &settings);
    assert_eq!(down.digest(), partition::play(&shape, &settings).digest());
    let other = partition::Shape {
        seed: 8,
        ..shape.clone()
    };
    assert_ne!(down.digest(), partition::play(&other, &settings).digest());
    assert_eq!(down.dead, 0, "{down:?}");
    let appends = down.appends() as f64 / down.affected as f64;
    // A command that is parked is written twice, to a tier and back; some wait in memory until the probe.
    assert!((1.0..4.0).contains(&appends), "{appends}: {down:?}");
    // What is parked comes back within ten minutes, and what had an attempt by its schedule.
    assert!(down.settled.unwrap_or(u64::MAX) < 15 * 60_000, "{down:?}");
    // Isolated.
    assert!(
        down.healthy[1].p99 <= 2 * down.healthy[0].p99 + 100,
        "{down:?}"
    );
    assert!(down.window <= 4_096, "{down:?}");
    let shape = partition::Shape {
        outage: None,
        whale: Some(Whale {
            commands: 5_000,
            at: 10 * SECOND,
            max_in_flight: 64,
            latency: 80.0,
        }),
        ..shape
    };
    let whale = partition::play(&shape, &settings);
    assert_eq!(whale.dead, 0, "{whale:?}");
    assert!(whale.settled.unwrap_or(u64::MAX) < 60_000, "{whale:?}");
    assert!(whale.healthy[1].max <= 10_000, "{whale:?}");
}
