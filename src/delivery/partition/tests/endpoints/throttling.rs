//! Endpoints that accept only so many requests.

use super::*;

/// Accepts so many requests per second, as many at once, and else responds `otherwise`.
fn limited(per_second: f64, otherwise: Response) -> impl FnMut(&Seen<'_>) -> (Duration, Response) {
    let (mut tokens, mut last) = (per_second.max(1.0), Duration::ZERO);
    move |seen| {
        tokens = (tokens + (seen.at - last).as_secs_f64() * per_second).min(per_second.max(1.0));
        last = seen.at;
        if tokens < 1.0 {
            return (QUICK, otherwise);
        }
        tokens -= 1.0;
        (QUICK, ok())
    }
}

#[test]
fn a_burst_for_an_endpoint_that_throttles_is_delivered_at_its_rate_without_spending_attempts() {
    let cases = [
        (2.0, status(429, Some(1)), 200),
        (2.0, status(429, None), 200),
        (2.0, status(503, Some(1)), 200),
        (20.0, status(429, Some(10)), 4000),
        (2.0, Response::Unprocessed, 200),
    ];
    for (rate, throttled, count) in cases {
        let mut world = Virtual::new("none", 8, limited(rate, throttled));
        for _ in 0..count {
            world.event(Duration::ZERO, "order.created", None);
        }
        let ideal = Duration::from_secs_f64(f64::from(count) / rate);
        world.run(2 * ideal);
        assert_eq!(
            world.delivered.len(),
            count as usize,
            "{rate}/s, {throttled:?}: within {:?}",
            2 * ideal
        );
        assert!(world.delivered.iter().all(|one| one.attempt == 0));
        assert_eq!(world.outcome(AttemptOutcome::Retry), 0);
        let refused = world.outcome(AttemptOutcome::Throttled);
        assert!((1..count as usize / 4).contains(&refused), "{refused}");
        assert_eq!(world.opened, 0, "{throttled:?}");
    }
}

#[test]
fn throttled_commands_keep_their_order() {
    for (order, retry_after) in [("strict", 1), ("strict", 7), ("per_subject", 1)] {
        let mut world = Virtual::new(order, 8, limited(5.0, status(429, Some(retry_after))));
        for number in 0..300 {
            let subject = format!("subject{}", number % 3);
            let at = Duration::from_millis(number * 20);
            world.event(at, "order.created", Some(&subject));
        }
        world.run(Duration::from_secs(3600));
        assert_eq!(world.delivered.len(), 300);
        let mut last: HashMap<&str, usize> = HashMap::new();
        for one in &world.delivered {
            let subject = one.subject.as_deref().unwrap();
            let before = last.insert(subject, one.number);
            assert!(before.is_none_or(|before| before < one.number), "{order}");
        }
        assert!(world.outcome(AttemptOutcome::Throttled) > 0);
    }
}

#[test]
fn an_endpoint_that_is_throttled_for_good_is_left_alone_but_never_down() {
    let mut world = Virtual::new("none", 8, |_| (QUICK, status(429, None)));
    for _ in 0..1000 {
        world.event(Duration::ZERO, "order.created", None);
    }
    world.run(Duration::from_secs(3600));
    let requests: usize = world.requests.values().sum();
    assert!(
        (60..120).contains(&requests),
        "{requests} requests in an hour"
    );
    assert_eq!((world.opened, world.dead), (0, 0));
}
