//! What must become of each event, known from its number alone and not from the program under test.
//!
//! Which subscription matches, how its endpoint treats each attempt and where that ends are pure functions of the
//! event's number and the subscription's: the generator, the endpoints and the checker all ask here.

use std::time::Duration;

use serde_json::{Value, json};

use crate::it::support::Answer;

/// Delay of the only tier and of every retry, before jitter: a retry is one wait.
pub const RETRY: Duration = Duration::from_secs(1);
/// Retries after the first attempt.
pub const RETRIES: u32 = 5;
/// Deadline of an attempt.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// What an endpoint is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Accepts everything at once.
    Healthy,
    /// As healthy, but matches only events whose type begins with `a.`.
    OnlyA,
    /// As healthy, but matches only events whose `data.k` is 5 or more.
    Filtered,
    /// Answers 500 to the first attempts, at most two.
    Flaky,
    /// Resets, closes, sends garbage or half an answer to the first attempt of every twentieth; sometimes it hangs, or
    /// answers late.
    Rude,
    /// Refuses every fourth for good, with 400.
    Refusing,
    /// Answers 500 to every attempt of every fifth.
    Exhausting,
    /// Accepts, and cuts the connection.
    Cutting,
    /// As healthy, and paused now and then.
    Paused,
    /// As healthy; its secret is changed now and then.
    Rotated,
    /// As healthy; deleted and made again now and then, so nothing can be said of what it matches.
    Volatile,
}

/// Every subscription: its number is its place.
pub const SUBSCRIPTIONS: [Kind; 14] = [
    Kind::Healthy,
    Kind::Healthy,
    Kind::Healthy,
    Kind::OnlyA,
    Kind::Filtered,
    Kind::Flaky,
    Kind::Flaky,
    Kind::Rude,
    Kind::Refusing,
    Kind::Exhausting,
    Kind::Cutting,
    Kind::Paused,
    Kind::Rotated,
    Kind::Volatile,
];

/// Where a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Accepted by the attempt after so many failures.
    Delivered(u32),
    /// Dead-lettered.
    Dead(&'static str),
}

/// Whether an event and a subscription make a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matched {
    Yes,
    No,
    /// The subscription came and went.
    Maybe,
}

impl Kind {
    /// The id of the subscription of number `number`.
    pub fn id(number: usize) -> String {
        format!("s{number}")
    }

    /// Those whose first attempts are accepted at once, whatever else happens: by them it is seen that all is well.
    pub fn is_probe(self) -> bool {
        self == Self::Healthy
    }

    pub fn matches(self, event: u32) -> Matched {
        let yes = match self {
            Self::OnlyA => kind_of(event).starts_with("a."),
            Self::Filtered => data_k(event) >= 5,
            Self::Volatile => return Matched::Maybe,
            _ => true,
        };
        if yes { Matched::Yes } else { Matched::No }
    }

    pub fn end(self, event: u32) -> End {
        match self {
            Self::Flaky => End::Delivered(mix(event) % 3),
            Self::Rude => End::Delivered(u32::from(mix(event).is_multiple_of(20))),
            Self::Refusing if event.is_multiple_of(4) => End::Dead("permanent-status"),
            Self::Exhausting if event.is_multiple_of(5) => End::Dead("attempts-exhausted"),
            _ => End::Delivered(0),
        }
    }

    /// What its endpoint does with an attempt, counted from 1.
    pub fn answer(self, event: u32, attempt: u32) -> Answer {
        match self.end(event) {
            End::Dead("permanent-status") => Answer::status(400),
            End::Dead(_) => Answer::status(500),
            End::Delivered(failures) if attempt <= failures => self.failure(event),
            End::Delivered(_) if self == Self::Cutting && event.is_multiple_of(2) => {
                Answer::ok().then_cut()
            }
            End::Delivered(_) => Answer::ok(),
        }
    }

    fn failure(self, event: u32) -> Answer {
        if self != Self::Rude {
            return Answer::status(500);
        }
        match mix(event) / 20 % 24 {
            // Rare: an endpoint that hangs often has its commands parked for up to ten minutes, longer than a round.
            0 => Answer::hang(),
            // After the deadline: the answer comes to nobody.
            1 => Answer::ok().after(TIMEOUT * 2),
            2..8 => Answer::reset(),
            8..13 => Answer::close(),
            13..18 => Answer::garbage(),
            _ => Answer::half(),
        }
    }
}

/// Whether the endpoint of subscription `number` accepts this attempt.
pub fn accepts(number: usize, event: u32, attempt: u32) -> bool {
    matches!(SUBSCRIPTIONS[number].end(event), End::Delivered(failures) if attempt > failures)
}

/// Whether an attempt takes as long as its deadline: the endpoint hangs, or answers too late.
#[allow(dead_code, reason = "only the test on Kubernetes needs it")]
pub fn is_slow(number: usize, event: u32, attempt: u32) -> bool {
    let kind = SUBSCRIPTIONS[number];
    kind == Kind::Rude && !accepts(number, event, attempt) && mix(event) / 20 % 24 < 2
}

/// Scatters numbers, so that kinds of events do not go in step.
fn mix(event: u32) -> u32 {
    let scattered = event.wrapping_mul(0x9e37_79b1);
    scattered ^ (scattered >> 15)
}

fn kind_of(event: u32) -> &'static str {
    ["a.made", "a.paid", "b.made", "b.sent.late"][(mix(event) >> 8) as usize % 4]
}

fn data_k(event: u32) -> u32 {
    mix(event) >> 16 & 7
}

/// The event of that number, as it is produced.
pub fn event(number: u32) -> String {
    json!({
        "id": format!("e{number}"),
        "type": kind_of(number),
        "time": "2026-07-01T12:00:00Z",
        "subject": format!("order-{}", number % 50),
        "data": {"n": number, "k": data_k(number)},
    })
    .to_string()
}

/// The number of an event, from its id as in [`event`].
pub fn number_of(event_id: &str) -> Option<u32> {
    event_id.strip_prefix('e')?.parse().ok()
}

/// The number of a subscription, from its id.
pub fn subscription_of(id: &str) -> Option<usize> {
    let number = id.strip_prefix('s')?.parse().ok()?;
    (number < SUBSCRIPTIONS.len()).then_some(number)
}

/// The event's number in a request's body: `"n":` and digits, wherever the format puts it.
pub fn number_in(body: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("\"n\":")?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..end].parse().ok()
}

/// Whether the endpoint of subscription `number` is reached by a name, so that it suffers where DNS fails.
pub fn is_named(number: usize) -> bool {
    number % 3 == 1
}

/// The healthy subscription that shares an HTTP/2 origin with bad tenants.
#[allow(dead_code, reason = "the test on Kubernetes has no such origin")]
pub const SHARES_ORIGIN: usize = 2;

/// The record of subscription `number`, whose endpoint is at `url`.
pub fn subscription(number: usize, url: &str, secret: &str, state: &str) -> Value {
    let kind = SUBSCRIPTIONS[number];
    let events = if kind == Kind::OnlyA { "a.**" } else { "**" };
    let mut value = json!({
        "id": Kind::id(number),
        // Some subscribers own two.
        "subscriber": format!("owner-{}", number % 9),
        "url": url,
        "events": [events],
        "secrets": [secret],
        "state": state,
        "timeout": format!("{}s", TIMEOUT.as_secs()),
        "retry_schedule": vec![format!("{}s", RETRY.as_secs()); RETRIES as usize],
    });
    if kind == Kind::Filtered {
        value["filter"] = json!({"data.k": [{"numeric": [">=", 5]}]});
    }
    value
}
