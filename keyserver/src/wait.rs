//! Waiting for a future on a thread of its own that may sleep: the other end of what is awaited by the network side.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// Wakes the thread that waits.
struct Sleeper(Thread);

/// What `future` comes to. The thread sleeps meanwhile, so it may be none of those that the network side runs on; and
/// `future` needs none of them (no timers, no sockets).
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Sleeper(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            // A wake-up that came first is remembered, and one that was for another is no harm.
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_another_thread_is_waited_for() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (asked, answered) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                answered.recv().unwrap();
                sender.send(7).unwrap();
            });
            let value = wait(async {
                // Only now, so that there is something to wait for.
                asked.send(()).unwrap();
                receiver.await
            });
            assert_eq!(value, Ok(7));
        });
        assert_eq!(wait(async { 8 }), 8);
    }
}
