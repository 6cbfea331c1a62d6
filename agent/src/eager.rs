//! Owns polling a piece of work by itself for as long as it wakes itself.
//!
//! The loop of the agent is one task: whatever wakes it polls all of its parts. An exchange over HTTP wakes itself
//! several times for each answer, and none of that concerns the others.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Polls in a row: more than any exchange needs for one answer, and few enough that the other parts are not kept waiting.
const MOST_IN_A_ROW: usize = 32;

/// Nothing is being polled.
const IDLE: u8 = 0;
/// The work is being polled.
const POLLED: u8 = 1;
/// It was woken since.
const WOKEN: u8 = 2;

struct Alarm {
    state: AtomicU8,
    /// Wakes the task around.
    task: Mutex<Waker>,
}

impl Alarm {
    fn task(&self) -> std::sync::MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == IDLE {
            self.task().wake_by_ref();
        }
    }
}

/// Does the work; while it wakes itself, nothing else of the task is polled.
pub(crate) async fn eager<T>(work: impl Future<Output = T>) -> T {
    let alarm = Arc::new(Alarm {
        state: AtomicU8::new(IDLE),
        task: Mutex::new(Waker::noop().clone()),
    });
    let waker = Waker::from(Arc::clone(&alarm));
    let mut work = pin!(work);
    poll_fn(|task| {
        alarm.task().clone_from(task.waker());
        for _ in 0..MOST_IN_A_ROW {
            alarm.state.store(POLLED, Ordering::SeqCst);
            if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(done);
            }
            let slept =
                alarm
                    .state
                    .compare_exchange(POLLED, IDLE, Ordering::SeqCst, Ordering::SeqCst);
            if slept.is_ok() {
                return Poll::Pending;
            }
        }
        alarm.state.store(IDLE, Ordering::SeqCst);
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes itself so often before it is done.
    async fn restless(times: usize) {
        let mut left = times;
        poll_fn(|task| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// How often the task around is polled until the work is done.
    async fn polls(work: impl Future<Output = ()>) -> usize {
        let mut work = pin!(work);
        let mut polls = 0;
        poll_fn(|task| {
            polls += 1;
            work.as_mut().poll(task)
        })
        .await;
        polls
    }

    #[tokio::test]
    async fn work_that_wakes_itself_is_polled_by_itself() {
        assert_eq!(polls(restless(20)).await, 21);
        assert_eq!(polls(eager(restless(20))).await, 1);
    }

    #[tokio::test]
    async fn the_others_get_their_turn() {
        let polls = polls(eager(restless(10 * MOST_IN_A_ROW))).await;
        assert!((10..=12).contains(&polls), "{polls}");
    }

    #[tokio::test]
    async fn what_others_wake_goes_on() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || sender.send(7));
        assert_eq!(eager(receiver).await, Ok(7));
        assert_eq!(thread.join().unwrap(), Ok(()));
        let timer = tokio::time::sleep(std::time::Duration::from_millis(1));
        assert_eq!(polls(eager(timer)).await, 2);
    }
}
