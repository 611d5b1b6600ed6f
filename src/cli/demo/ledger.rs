//! What each receiver should get and what it got: the numbers of the view, and the verdict at the end.
//!
//! Kept from the outside, by the one who sends the orders and by the receivers, not from the program's own counters:
//! so the verdict is about what really arrived. Pure: times are arguments.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::events::Event;
use super::subscribers::{Behavior, FLAKY_ACCEPTS, SUBSCRIBERS};
use crate::model::event;

/// Deliveries over which a latency is taken.
const RECENT: usize = 200;

/// Mistakes that are kept word by word; more are counted only.
const MISTAKES: usize = 10;

/// One webhook, as its receiver knows it.
#[derive(Debug)]
struct Webhook {
    ordered: Instant,
    attempts: u32,
    /// Of the first attempt.
    body: Option<Bytes>,
    last_status: Option<u16>,
    delivered: u32,
}

/// One subscriber's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Webhooks that it shall get in the end.
    pub(super) expected: usize,
    /// It has accepted.
    pub(super) delivered: usize,
    /// No attempt has been answered yet.
    pub(super) waiting: usize,
    /// Refused, to be tried again.
    pub(super) retrying: usize,
    /// Refused for good.
    pub(super) dead: usize,
    /// From order to acceptance, of recent ones.
    pub(super) median: Option<Duration>,
}

/// One request, as it came.
pub(super) struct Attempt<'a> {
    pub(super) webhook_id: &'a str,
    /// What the request says of itself.
    pub(super) number: Option<u32>,
    pub(super) body: &'a Bytes,
    /// Why the signature is no good.
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
    /// Source of the events, as the webhook ids have it.
    source: String,
    accounts: [Account; SUBSCRIBERS.len()],
    mended: bool,
    orders: u32,
    requests: u64,
    mistakes: Vec<String>,
    further_mistakes: u32,
}

impl Ledger {
    /// Nothing is expected yet.
    pub(super) fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            accounts: Default::default(),
            mended: false,
            orders: 0,
            requests: 0,
            mistakes: Vec::new(),
            further_mistakes: 0,
        }
    }

    /// The order is about to be sent.
    pub(super) fn expect(&mut self, order: &Event, now: Instant) {
        self.orders += 1;
        for (subscriber, account) in SUBSCRIBERS.iter().zip(&mut self.accounts) {
            if subscriber.wants(order) {
                let id = event::webhook_id(&self.source, &order.id, subscriber.name);
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

    /// The strict receiver accepts from now on.
    pub(super) fn mend(&mut self) {
        self.mended = true;
    }

    /// Takes a request of the subscriber at `index` down, and tells the status to answer with.
    pub(super) fn attempt(&mut self, index: usize, attempt: &Attempt<'_>) -> u16 {
        let subscriber = &SUBSCRIBERS[index];
        self.requests += 1;
        let Some(webhook) = self.accounts[index].webhooks.get_mut(attempt.webhook_id) else {
            let id = attempt.webhook_id;
            self.mistake(format!("{} got {id}, which is not for it", subscriber.name));
            return 200;
        };
        webhook.attempts += 1;
        let (count, id) = (webhook.attempts, attempt.webhook_id);
        let first = webhook.body.get_or_insert_with(|| attempt.body.clone());
        let same = first == attempt.body;
        let status = match subscriber.behavior {
            Behavior::Flaky if count == 1 => 503,
            Behavior::Flaky if count < FLAKY_ACCEPTS => 500,
            Behavior::Strict if !self.mended => 400,
            _ => 200,
        };
        let name = subscriber.name;
        if let Err(reason) = attempt.signature {
            self.mistake(format!("{name} could not verify {id}: {reason}"));
        }
        if !same {
            self.mistake(format!(
                "{name} got {id} with another body at attempt {count}"
            ));
        }
        // A replay counts from 1 again.
        if subscriber.behavior != Behavior::Strict && attempt.number != Some(count) {
            let told = attempt.number.unwrap_or_default();
            self.mistake(format!(
                "{name} got {id} for time {count}, called attempt {told}"
            ));
        }
        status
    }

    /// The request is answered.
    pub(super) fn answered(&mut self, index: usize, webhook_id: &str, status: u16, now: Instant) {
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
            self.mistake(format!(
                "{} got {webhook_id} again after it had accepted it",
                SUBSCRIBERS[index].name
            ));
        }
    }

    fn mistake(&mut self, text: String) {
        if self.mistakes.len() < MISTAKES {
            self.mistakes.push(text);
        } else {
            self.further_mistakes += 1;
        }
    }

    /// Of the subscriber at `index`.
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

    /// Orders sent.
    pub(super) fn orders(&self) -> u32 {
        self.orders
    }

    /// Requests received.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Webhooks that shall be delivered in the end, to all.
    pub(super) fn webhooks(&self) -> usize {
        self.accounts
            .iter()
            .map(|account| account.webhooks.len())
            .sum()
    }

    /// Whether every webhook is where it stays until somebody does something: delivered, or dead.
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

    /// All that did not come out as it should; to be asked at the end.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.mistakes.clone();
        if self.further_mistakes > 0 {
            faults.push(format!("and {} more such", self.further_mistakes));
        }
        if self.orders == 0 {
            faults.push("no order was sent".to_owned());
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
                    "{} got {other} of {all} webhooks by another number of requests than {attempts}",
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
            ledger.answered(index, &id, status, clock::instant());
        }
    }

    /// The story up to where the strict one is mended.
    fn told_until_mended() -> Ledger {
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
    fn the_story_comes_out_right() {
        let mut ledger = told_until_mended();
        assert!(ledger.is_settled() && !ledger.is_complete());
        assert_eq!(ledger.numbers(index("strict")).dead, 1);
        ledger.mend();
        send_all(&mut ledger, "strict", 1, b"{}");
        assert!(ledger.is_complete());
        assert_eq!(ledger.faults(), Vec::<String>::new());
        assert_eq!((ledger.orders(), ledger.webhooks()), (3, 9));
    }

    #[test]
    fn what_is_missing_is_named() {
        let faults = told_until_mended().faults();
        assert_eq!(faults, ["strict did not get 1 of 1 webhooks"]);
    }

    #[test]
    fn a_repeated_delivery_another_body_and_a_bad_signature_are_faults() {
        let mut ledger = told_until_mended();
        ledger.mend();
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
            "another body",
            "again after",
            "not for it",
            "another number of requests",
        ] {
            assert!(faults.contains(part), "{part} is missing in {faults}");
        }
    }
}
