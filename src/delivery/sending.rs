//! An attempt in flight: sends one request and reports its end.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::partition::effect::Attempt;
use super::partition::event::{AttemptEnd, LaneId};
use super::request::{Target, read_rest, response_of};
use super::shares::Held;
use super::tokens::Renewed;
use crate::edge::clock;
use crate::edge::http::{Failure, FailureClass, Reply};
use crate::edge::otlp::Open;
use crate::edge::port::Http;
use crate::model::attempt::Excerpt;
use crate::model::outcome::{Response, Verdict, judge};
use crate::model::span;
use crate::model::units::{EpochMs, Offset};

/// The time limit for reading the body of a response that is already judged, so that its connection can be reused.
const DRAIN: Duration = Duration::from_secs(1);
/// Whether the endpoint does not accept the token, and the subscription does not take that for a success.
fn is_unauthorized<R>(reply: &Reply<R>, target: &Target) -> bool {
    const UNAUTHORIZED: u16 = 401;
    let Reply::Answered(answer) = reply else {
        return false;
    };
    let response = Response::Status {
        status: answer.status,
        retry_after: None,
    };
    answer.status == UNAUTHORIZED
        && judge(response, &target.subscription.overrides.on_status) != Verdict::Delivered
}

fn unprocessed(error: String) -> Failure {
    Failure {
        class: FailureClass::Other,
        error,
        heard: true,
        is_unprocessed: true,
    }
}

/// Identifies an attempt within a worker.
pub(super) type Ticket = u64;

/// A partition in one epoch: events of a former epoch are dropped (**Owner only**).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub(super) partition: i32,
    pub(super) epoch: u64,
}

/// The end of an attempt, or of its connection's use.
pub(super) enum Ended {
    Attempt(Owner, Box<Finished>),
    /// The slot is free; follows the attempt's end if the response body was still open. Carries the beginning of the body
    /// if it is wanted.
    Slot(Owner, LaneId, Option<Body>),
}

/// The beginning of a response body.
pub(super) struct Body {
    /// The attempt's ticket.
    pub(super) ticket: Ticket,
    /// The offset of its command, unless it was delivered.
    pub(super) failed: Option<Offset>,
    pub(super) excerpt: Excerpt,
}

/// The result of an attempt, and when it ended.
pub(super) struct Finished {
    pub(super) end: AttemptEnd<Rc<Target>>,
    pub(super) ticket: Ticket,
    pub(super) began: EpochMs,
    pub(super) took: Duration,
}

/// An attempt to make.
pub(super) struct Sending<H> {
    pub(super) owner: Owner,
    pub(super) ticket: Ticket,
    pub(super) attempt: Attempt<Rc<Target>>,
    pub(super) client: H,
    pub(super) span: Option<Open>,
    /// Counts the request to its host and its subscriber, until its connection is free.
    pub(super) held: Held,
    pub(super) ended: UnboundedSender<Ended>,
}

impl<H: Http> Sending<H> {
    /// Sends the request, reports the result, and then reads the rest of the response.
    pub(super) async fn run(self) {
        let Self {
            owner,
            ticket,
            attempt,
            client,
            span,
            held: _held,
            ended,
        } = self;
        let Attempt {
            lane,
            offset,
            command,
            endpoint: target,
            permit,
        } = attempt;
        let own = span.as_ref().map(Open::traceparent);
        let traceparent = own.as_deref().or(command.traceparent.as_deref());
        let began = clock::now();
        let deadline = tokio::time::Instant::from_std(permit.began + target.timeout);
        // Each request is signed anew.
        let build = || target.request(&command, traceparent, clock::now());
        let used = target.authorization();
        let mut reply = client.post_until_processed(&build, deadline).await;
        if let Some(token) = target.token()
            && is_unauthorized(&reply, &target)
        {
            // The token may have been revoked. This is still the same attempt.
            match token.renewed(used.as_deref(), deadline).await {
                Renewed::Another => {
                    let former = std::mem::replace(
                        &mut reply,
                        client.post_until_processed(&build, deadline).await,
                    );
                    drop(former);
                }
                // Not the endpoint's fault: the attempt does not count.
                Renewed::Failed(reason) => reply = Reply::Failed(unprocessed(reason)),
                Renewed::No => {}
            }
        }
        let took = clock::instant() - permit.began;
        let heard = match &reply {
            Reply::Answered(_) => true,
            Reply::Failed(failure) => failure.heard,
        };
        let (response, error, rest) = response_of(reply);
        let delivered =
            || judge(response, &target.subscription.overrides.on_status) == Verdict::Delivered;
        if let Some(span) = span {
            let reply = span::Reply {
                response,
                error: error.as_deref(),
                delivered: delivered(),
            };
            let facts = span::attempt(&command, &target.subscription.url.to_url(), reply);
            span.end_after(took, facts);
        }
        if tracing::enabled!(tracing::Level::DEBUG) && !delivered() {
            tracing::debug!(
                webhook_id = %command.webhook_id, subscription = %command.subscription,
                trace_id = command.trace_id(), attempt = command.attempt.saturating_add(1),
                status = response.status(), error = error.as_deref(), "attempt failed",
            );
        }
        let shown = (target.is_logged || !delivered()).then(|| Rc::clone(&target));
        let failed = (!delivered()).then_some(offset);
        let finished = Finished {
            end: AttemptEnd {
                lane,
                offset,
                command,
                keep_copy: target.is_logged,
                endpoint: target,
                permit,
                response,
                error,
                heard,
                slot_follows: rest.is_some(),
            },
            ticket,
            began,
            took,
        };
        // The worker outlives its tasks; if it has ended, nobody needs the result.
        ended.send(Ended::Attempt(owner, Box::new(finished))).ok();
        if let Some(rest) = rest {
            let deadline = deadline.min((clock::instant() + DRAIN).into());
            let excerpt = read_rest::<H>(rest, deadline, shown).await;
            let body = excerpt.map(|excerpt| Body {
                ticket,
                failed,
                excerpt,
            });
            ended.send(Ended::Slot(owner, lane, body)).ok();
        }
    }
}
