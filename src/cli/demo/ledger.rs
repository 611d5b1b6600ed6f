//! The expected and the received webhooks of each receiver, for the view and for the final check. Pure: times are
//! arguments.
//!
//! The sender and the receivers fill it, not the program's own counters, so the check covers what really arrived.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::subscribers::{Behavior, FLAKY_ACCEPTS, SUBSCRIBERS};
use crate::cli::samples::Event;
use crate::model::event;

/// Deliveries included in the median latency.
const RECENT: usize = 200;

/// Errors that are kept as text; further ones are only counted.
const MAX_ERRORS: usize = 10;

/// One webhook from its receiver's view.
#[derive(Debug)]
struct Webhook {
    ordered: Instant,
    attempts: u32,
    /// The body of the first attempt.
    body: Option<Bytes>,
    last_status: Option<u16>,
    delivered: u32,
}

/// The numbers of one subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Webhooks that it must get.
    pub(super) expected: usize,
    /// Accepted webhooks.
    pub(super) delivered: usize,
    /// Webhooks without a response yet.
    pub(super) waiting: usize,
    /// Failed webhooks that will be retried.
    pub(super) retrying: usize,
    /// Webhooks that are dead letters.
    pub(super) dead: usize,
    /// The median latency from sending to acceptance, of recent ones.
    pub(super) median: Option<Duration>,
}

/// One received request.
pub(super) struct Attempt<'a> {
    pub(super) webhook_id: &'a str,
    /// The attempt number in its header.
    pub(super) number: Option<u32>,
    pub(super) body: &'a Bytes,
    /// Why the signature is invalid.
    pub(super) signature: Result<(), &'static str>,
}

#[derive(Debug, Default)]
struct Account {
    webhooks: HashMap<String, Webhook>,
    recent: VecDeque<Duration>,
}

/// The accounts of all subscribers.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The source of the events, as in the webhook ids.
    source: String,
    accounts: [Account; SUBSCRIBERS.len()],
    fixed: bool,
    orders: u32,
    requests: u64,
    errors: Vec<String>,
    further_errors: u32,
}

impl Ledger {
    /// An empty ledger.
    pub(super) fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            accounts: Default::default(),
            fixed: false,
            orders: 0,
            requests: 0,
            errors: Vec::new(),
            further_errors: 0,
        }
    }

    /// Records an event that is about to be sent.
    pub(super) fn expect(&mut self, event: &Event, now: Instant) {
        self.orders += 1;
        for (subscriber, account) in SUBSCRIBERS.iter().zip(&mut self.accounts) {
            if subscriber.matches(event) {
                let id = event::plain_webhook_id(
                    &self.source,
                    event.event_type,
                    &event.id,
                    subscriber.name,
                );
                let webhook = Webhook {
                    ordered: now,
                    attempts: 0,
                    body: None,
                    last_status: None,
                    delivered: 0,
                };
                account.webhooks.insert(id, webhook);
            }
        }
    }

    /// Makes the strict receiver accept from now on.
    pub(super) fn fix_strict(&mut self) {
        self.fixed = true;
    }

    /// Records a request to the subscriber at `index`; returns the response status.
    pub(super) fn attempt(&mut self, index: usize, attempt: &Attempt<'_>) -> u16 {
        let subscriber = &SUBSCRIBERS[index];
        self.requests += 1;
        let Some(webhook) = self.accounts[index].webhooks.get_mut(attempt.webhook_id) else {
            let id = attempt.webhook_id;
            self.error(format!(
                "{} got {id}, which is for another subscriber",
                subscriber.name
            ));
            return 200;
        };
        webhook.attempts += 1;
        let (count, id) = (webhook.attempts, attempt.webhook_id);
        let first = webhook.body.get_or_insert_with(|| attempt.body.clone());
        let same = first == attempt.body;
        let status = match subscriber.behavior {
            Behavior::Flaky if count == 1 => 503,
            Behavior::Flaky if count < FLAKY_ACCEPTS => 500,
            Behavior::Strict if !self.fixed => 400,
            _ => 200,
        };
        let name = subscriber.name;
        if let Err(reason) = attempt.signature {
            self.error(format!("{name} could not verify {id}: {reason}"));
        }
        if !same {
            self.error(format!(
                "{name} got {id} with a different body at attempt {count}"
            ));
        }
        // A replay counts from 1 again.
        if subscriber.behavior != Behavior::Strict && attempt.number != Some(count) {
            let number = attempt.number.unwrap_or_default();
            self.error(format!(
                "{name} got {id} {count} times, but the request says attempt {number}"
            ));
        }
        status
    }

    /// Records that the response was sent.
    pub(super) fn responded(&mut self, index: usize, webhook_id: &str, status: u16, now: Instant) {
        let account = &mut self.accounts[index];
        let Some(webhook) = account.webhooks.get_mut(webhook_id) else {
            return;
        };
        webhook.last_status = Some(status);
        if status != 200 {
            return;
        }
        webhook.delivered += 1;
        let took = now.saturating_duration_since(webhook.ordered);
        let again = webhook.delivered > 1;
        if account.recent.len() == RECENT {
            account.recent.pop_front();
        }
        account.recent.push_back(took);
        if again {
            self.error(format!(
                "{} got {webhook_id} again after accepting it",
                SUBSCRIBERS[index].name
            ));
        }
    }

    fn error(&mut self, text: String) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(text);
        } else {
            self.further_errors += 1;
        }
    }

    /// The numbers of the subscriber at `index`.
    pub(super) fn numbers(&self, index: usize) -> Numbers {
        let account = &self.accounts[index];
        let mut numbers = Numbers {
            expected: account.webhooks.len(),
            median: median(&account.recent),
            ..Numbers::default()
        };
        for webhook in account.webhooks.values() {
            let counted = match webhook.last_status {
                _ if webhook.delivered > 0 => &mut numbers.delivered,
                None => &mut numbers.waiting,
                Some(400) => &mut numbers.dead,
                Some(_) => &mut numbers.retrying,
            };
            *counted += 1;
        }
        numbers
    }

    /// Events sent.
    pub(super) fn orders(&self) -> u32 {
        self.orders
    }

    /// Requests received.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Webhooks expected by all subscribers.
    pub(super) fn webhooks(&self) -> usize {
        self.accounts
            .iter()
            .map(|account| account.webhooks.len())
            .sum()
    }

    /// Whether every webhook is delivered or a dead letter.
    pub(super) fn is_settled(&self) -> bool {
        (0..SUBSCRIBERS.len()).all(|index| {
            let numbers = self.numbers(index);
            numbers.waiting == 0 && numbers.retrying == 0
        })
    }

    /// Whether every webhook is delivered.
    pub(super) fn is_complete(&self) -> bool {
        self.accounts.iter().all(|account| {
            account
                .webhooks
                .values()
                .all(|webhook| webhook.delivered > 0)
        })
    }

    /// All errors, at the end of the demo.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.errors.clone();
        if self.further_errors > 0 {
            faults.push(format!("and {} more errors", self.further_errors));
        }
        if self.orders == 0 {
            faults.push("no event was sent".to_owned());
        }
        for (subscriber, account) in SUBSCRIBERS.iter().zip(&self.accounts) {
            let all = account.webhooks.len();
            let missing = account
                .webhooks
                .values()
                .filter(|webhook| webhook.delivered == 0)
                .count();
            if missing > 0 {
                faults.push(format!(
                    "{} did not get {missing} of {all} webhooks",
                    subscriber.name
                ));
            }
            let attempts = match subscriber.behavior {
                Behavior::Prompt | Behavior::Slow => 1,
                Behavior::Flaky => FLAKY_ACCEPTS,
                Behavior::Strict => 2,
            };
            let delivered = account
                .webhooks
                .values()
                .filter(|webhook| webhook.delivered > 0);
            let other = delivered
                .filter(|webhook| webhook.attempts != attempts)
                .count();
            if other > 0 {
                faults.push(format!(
                    "{} got {other} of {all} webhooks with a number of requests other than {attempts}",
                    subscriber.name
                ));
            }
        }
        faults
    }
}

fn median(recent: &VecDeque<Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = recent.iter().copied().collect();
    let middle = sorted.len().checked_sub(1)? / 2;
    Some(*sorted.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::clock;

    fn index(name: &str) -> usize {
        SUBSCRIBERS
            .iter()
            .position(|subscriber| subscriber.name == name)
            .unwrap()
    }

    /// A ledger that expects the three events of one large order.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new("order-events");
        let number = (0..)
            .step_by(3)
            .find(|number| Event::new("r", *number).total >= 100)
            .unwrap();
        for number in number..number + 3 {
            ledger.expect(&Event::new("r", number), clock::instant());
        }
        ledger
    }

    fn send_all(ledger: &mut Ledger, name: &str, number: u32, body: &'static [u8]) {
        let index = index(name);
        let ids: Vec<String> = ledger.accounts[index].webhooks.keys().cloned().collect();
        for id in ids {
            let body = Bytes::from_static(body);
            let attempt = Attempt {
                webhook_id: &id,
                number: Some(number),
                body: &body,
                signature: Ok(()),
            };
            let status = ledger.attempt(index, &attempt);
            ledger.responded(index, &id, status, clock::instant());
        }
    }

    /// A ledger at the point where the strict receiver is fixed.
    fn ledger_until_fixed() -> Ledger {
        let mut ledger = ledger();
        for name in ["good", "large", "slow", "flaky", "strict"] {
            send_all(&mut ledger, name, 1, b"{}");
        }
        assert!(
            !ledger.is_settled(),
            "the flaky one waits for more attempts"
        );
        send_all(&mut ledger, "flaky", 2, b"{}");
        send_all(&mut ledger, "flaky", 3, b"{}");
        ledger
    }

    #[test]
    fn a_correct_run_has_no_errors() {
        let mut ledger = ledger_until_fixed();
        assert!(ledger.is_settled() && !ledger.is_complete());
        assert_eq!(ledger.numbers(index("strict")).dead, 1);
        ledger.fix_strict();
        send_all(&mut ledger, "strict", 1, b"{}");
        assert!(ledger.is_complete());
        assert_eq!(ledger.faults(), Vec::<String>::new());
        assert_eq!((ledger.orders(), ledger.webhooks()), (3, 9));
    }

    #[test]
    fn missing_webhooks_are_reported() {
        let faults = ledger_until_fixed().faults();
        assert_eq!(faults, ["strict did not get 1 of 1 webhooks"]);
    }

    #[test]
    fn a_repeated_delivery_a_different_body_and_an_invalid_signature_are_errors() {
        let mut ledger = ledger_until_fixed();
        ledger.fix_strict();
        send_all(&mut ledger, "strict", 1, b"{ }");
        send_all(&mut ledger, "slow", 2, b"{}");
        let body = Bytes::new();
        let attempt = Attempt {
            webhook_id: "foreign",
            number: Some(1),
            body: &body,
            signature: Err("none"),
        };
        assert_eq!(ledger.attempt(index("good"), &attempt), 200);
        let faults = ledger.faults().join("\n");
        for part in [
            "different body",
            "again after",
            "for another subscriber",
            "number of requests other than",
        ] {
            assert!(faults.contains(part), "{part} is missing in {faults}");
        }
    }
}
