//! Consent: who is pending, until when, and that a consent is about one URL.

use super::*;
use crate::model::subscription::verification::{Means, Tested};

impl Topic {
    fn try_out(&mut self, tested: Tested) {
        let at = EpochMs(self.log.len() as i64);
        let verification = Verification::new(&self.now(), tested, at);
        self.put("verified/a", Some(verification.to_json()));
    }

    fn consents(&mut self, per_minute: Option<u32>) {
        let by = Means::Handshake;
        self.try_out(Tested::Verified { by, per_minute });
    }

    #[track_caller]
    fn assert_state(&self, state: State) {
        assert_eq!(self.state(), state);
        for compacted in [false, true] {
            let again = self.read_again(compacted);
            assert_eq!(again.get("a").unwrap().state, state, "read again");
        }
    }
}

fn refusal() -> Tested {
    Tested::Refused {
        reason: "status 404".into(),
        failures: 1,
    }
}

#[test]
fn a_subscription_that_needs_consent_is_pending_until_its_endpoint_gives_it() {
    for needs in [json!({"verify": true}), json!({"state": "pending"})] {
        let mut topic = Topic::default();
        topic.apply(needs);
        topic.assert_state(State::Pending);
        topic.try_out(refusal());
        topic.assert_state(State::Pending);
        assert_eq!(topic.fold.verification("a").unwrap().tested, refusal());
        topic.consents(None);
        topic.assert_state(State::Active);
        assert_eq!(
            topic.now().resumed_at(),
            Some(EpochMs(2)),
            "what waited does not expire at once"
        );
    }
}

#[test]
fn a_changed_url_is_pending_again_and_another_change_is_not() {
    let mut topic = Topic::default();
    topic.apply(json!({"verify": true}));
    topic.consents(None);
    topic.apply(json!({"verify": true, "events": ["invoice.*"]}));
    topic.assert_state(State::Active);
    topic.apply(json!({"verify": true, "url": "https://acme.example/new"}));
    topic.assert_state(State::Pending);
    assert!(
        topic.fold.verification("a").is_none(),
        "it is about the other URL"
    );
    topic.consents(None);
    topic.assert_state(State::Active);
}

#[test]
fn a_consent_to_a_former_url_counts_for_nothing() {
    let mut topic = Topic::default();
    topic.apply(json!({"verify": true}));
    let by = Means::Challenge;
    let late = Tested::Verified {
        by,
        per_minute: None,
    };
    let late = Verification::new(&topic.now(), late, EpochMs(1));
    topic.apply(json!({"verify": true, "url": "https://acme.example/new"}));
    topic.put("verified/a", Some(late.to_json()));
    topic.assert_state(State::Pending);
}

#[test]
fn the_rate_that_an_endpoint_allows_limits_it() {
    let mut topic = Topic::default();
    topic.apply(json!({"verify": true, "rate_limit": {"per_second": 50}}));
    topic.consents(Some(120));
    let limit = topic.now().rate_limit.clone().unwrap();
    assert_eq!((limit.per_second, limit.burst), (2.0, 1));
    topic.consents(None);
    assert_eq!(topic.now().rate_limit.clone().unwrap().per_second, 50.0);
    topic.consents(Some(120));
    topic.apply(json!({"verify": true, "rate_limit": {"per_second": 1}}));
    assert_eq!(
        topic.now().rate_limit.clone().unwrap().per_second,
        1.0,
        "its own is lower"
    );
    let again = topic.read_again(true);
    assert_eq!(again.get("a").unwrap().rate_limit, topic.now().rate_limit);
}

#[test]
fn a_pause_comes_before_consent_and_a_resume_does_not_replace_it() {
    let mut topic = Topic::default();
    topic.apply(json!({"verify": true}));
    topic.operator(State::Paused);
    topic.assert_state(State::Paused);
    topic.operator(State::Active);
    topic.assert_state(State::Pending);
    let kept = Decision::kept(&topic.now(), Version::of_applied(b"next", None), EpochMs(9));
    assert_eq!(kept.state, State::Active, "none decides that it is pending");
    topic.operator(State::Paused);
    topic.consents(None);
    topic.assert_state(State::Paused);
    topic.operator(State::Active);
    topic.assert_state(State::Active);
}

#[test]
fn with_the_operators_setting_all_need_consent() {
    let mut fold = Fold::new(true);
    let document = record("a", json!({}));
    fold.take(&at("a", Some(&document), 1));
    let pending = Arc::clone(fold.get("a").unwrap());
    assert_eq!(pending.state, State::Pending);
    let by = Means::Challenge;
    let consent = Tested::Verified {
        by,
        per_minute: None,
    };
    let consent = Verification::new(&pending, consent, EpochMs(2)).to_json();
    fold.take(&at("verified/a", Some(&consent), 2));
    assert_eq!(fold.get("a").unwrap().state, State::Active);
    // Where none is needed, nothing is shown of an old one.
    let mut without = Topic::default();
    without.apply(json!({}));
    without.try_out(refusal());
    without.assert_state(State::Active);
    assert!(without.fold.verification("a").is_none());
}

#[test]
fn an_unreadable_verification_is_no_consent_and_a_deletion_forgets_it() {
    let mut topic = Topic::default();
    topic.apply(json!({"verify": true}));
    let change = topic.put("verified/a", Some(b"{}".to_vec()));
    assert!(
        matches!(
            change,
            Change::Refused {
                in_force: false,
                ..
            }
        ),
        "{change:?}"
    );
    topic.assert_state(State::Pending);
    topic.consents(None);
    assert!(topic.fold.decisions("a").contains(&"verified/a".to_owned()));
    topic.delete();
    topic.apply(json!({"verify": true}));
    assert_eq!(topic.state(), State::Pending);
    let odd = topic.put("verified/no id", Some(b"{}".to_vec()));
    assert!(matches!(odd, Change::Refused { .. }), "{odd:?}");
}

#[derive(Clone, Debug)]
enum Write {
    /// With a state, a rate limit, and whether the endpoint must consent.
    Apply(State, Option<u8>, bool),
    Operator(State),
    Gone,
    /// With the requests per minute that are allowed.
    Consent(Option<u32>),
    Refusal,
    /// The tombstone of what was decided: by the operator, after a 410, about the consent.
    Delete(usize),
}

fn write() -> impl Strategy<Value = Write> {
    let state = || prop_oneof![Just(State::Active), Just(State::Paused)];
    prop_oneof![
        (state(), prop::option::of(1..4_u8), any::<bool>())
            .prop_map(|(state, rate, verify)| Write::Apply(state, rate, verify)),
        state().prop_map(Write::Operator),
        Just(Write::Gone),
        prop::option::of(30..200_u32).prop_map(Write::Consent),
        Just(Write::Refusal),
        (0..3_usize).prop_map(Write::Delete),
    ]
}

proptest! {
    /// State, rate limit and version are what the latest record of each kind says, whatever was decided before it.
    #[test]
    fn what_was_decided_leaves_no_trace_once_it_is_deleted_or_replaced(writes in prop::collection::vec(write(), 1..30)) {
        let mut topic = Topic::default();
        topic.apply(json!({}));
        for (number, write) in writes.into_iter().enumerate() {
            match write {
                Write::Apply(state, rate, verify) => {
                    let mut more = json!({"state": state, "verify": verify, "headers": {"x-n": number.to_string()}});
                    if let Some(rate) = rate {
                        more["rate_limit"] = json!({"per_second": rate});
                    }
                    topic.apply(more);
                }
                Write::Operator(state) => topic.operator(state),
                Write::Gone => {
                    let gone = topic.gone();
                    topic.decide(Decider::Hookstream, &gone);
                }
                Write::Consent(per_minute) => topic.consents(per_minute),
                Write::Refusal => topic.try_out(refusal()),
                Write::Delete(which) => {
                    let keys = [Decider::Operator.key("a"), Decider::Hookstream.key("a"), "verified/a".to_owned()];
                    topic.put(&keys[which], None);
                }
            }
            let of = |one: &Subscription| (one.state, one.rate_limit.clone(), one.source.version().clone());
            let again = topic.read_again(true);
            prop_assert_eq!(of(&topic.now()), of(again.get("a").unwrap()));
        }
    }
}
