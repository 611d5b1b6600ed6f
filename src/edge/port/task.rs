//! Running futures on threads that may block.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use crate::edge::clock;

/// Called periodically by a role that waits for a broker: reports a heartbeat and returns whether to keep waiting.
pub type KeepWaiting = Arc<dyn Fn() -> bool + Send + Sync>;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` on this thread, which is parked while there is nothing to do.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// The same for at most `time`; `None` when the future has not ended by then.
pub fn block_within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    let until = clock::instant() + time;
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let rest = until.saturating_duration_since(clock::instant());
        if rest.is_zero() {
            return None;
        }
        std::thread::park_timeout(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_that_waits_for_another_thread_parks_until_it_is_woken() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let other = std::thread::spawn(move || send.send(7));
        assert_eq!(block_on(receive), Ok(7));
        assert_eq!(other.join().unwrap(), Ok(()));
    }

    #[test]
    fn what_does_not_end_in_time_is_given_up() {
        let time = Duration::from_millis(5);
        let begun = clock::instant();
        assert_eq!(block_within(time, std::future::pending::<()>()), None);
        assert!(clock::instant() - begun >= time);
        assert_eq!(block_within(time, std::future::ready(7)), Some(7));
    }
}
