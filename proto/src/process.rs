//! The simulated process that a task belongs to, for worlds that run several of them in one thread.
//!
//! A task that is started inside a process belongs to it, and so do the tasks that it starts. The world decides whenever one of them is
//! to be polled whether it may run now: that is how a process is paused, slowed, and killed. Outside of a simulation there is no current
//! process, and all of this costs one look at a thread-local when a task is started.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

/// A process of a simulated world.
pub trait Process: Send + Sync + 'static {
    /// Whether a task may be polled now. If not, it must be woken when it may: its waker is in `cx`.
    fn admit(&self, cx: &mut Context<'_>) -> bool;

    /// A task has begun.
    fn began(&self, task: AbortHandle);

    /// A task has ended, or was dropped.
    fn ended(&self);

    /// 64 random bits from the process's own stream.
    fn random_u64(&self) -> u64;

    /// Now, on the process's own clock that never jumps.
    fn now(&self) -> Instant;

    /// How long the world waits while the process's clock advances by `local`.
    fn world_time(&self, local: Duration) -> Duration;
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Process>>> = const { RefCell::new(None) };
}

/// The process that is running on this thread, if there is one.
pub fn current() -> Option<Arc<dyn Process>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Makes a process the current one, until dropped.
struct Inside(Option<Arc<dyn Process>>);

impl Inside {
    fn of(process: &Arc<dyn Process>) -> Self {
        Self(CURRENT.replace(Some(Arc::clone(process))))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A thread that is ending has no current process any more.
        drop(CURRENT.try_with(|current| current.replace(self.0.take())));
    }
}

/// A task of a process.
struct Gated<F: Future> {
    process: Arc<dyn Process>,
    /// `None` once it has ended.
    inner: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.process.admit(cx) {
            return Poll::Pending;
        }
        let _inside = Inside::of(&self.process);
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        inner.as_mut().poll(cx)
    }
}

impl<F: Future> Drop for Gated<F> {
    fn drop(&mut self) {
        {
            let _inside = Inside::of(&self.process);
            self.inner = None;
        }
        self.process.ended();
    }
}

/// Starts a task of `process`.
pub fn spawn_in<F>(process: Arc<dyn Process>, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let task = tokio::spawn(Gated { process: Arc::clone(&process), inner: Some(Box::pin(future)) });
    process.began(task.abort_handle());
    task
}

/// Starts a task of the current process; if there is none, one like any other.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match current() {
        Some(process) => spawn_in(process, future),
        None => tokio::spawn(future),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::Waker;

    use super::*;

    #[derive(Default)]
    struct Fake {
        paused: Mutex<Option<Vec<Waker>>>,
        tasks: Mutex<(usize, usize)>,
    }

    impl Process for Fake {
        fn admit(&self, cx: &mut Context<'_>) -> bool {
            self.paused.lock().unwrap().as_mut().is_none_or(|parked| {
                parked.push(cx.waker().clone());
                false
            })
        }

        fn began(&self, _task: AbortHandle) {
            self.tasks.lock().unwrap().0 += 1;
        }

        fn ended(&self) {
            self.tasks.lock().unwrap().1 += 1;
        }

        fn random_u64(&self) -> u64 {
            4
        }

        fn now(&self) -> Instant {
            Instant::now()
        }

        fn world_time(&self, local: Duration) -> Duration {
            local
        }
    }

    #[tokio::test]
    async fn a_task_belongs_to_its_process_with_all_that_it_starts() {
        assert!(current().is_none());
        let fake = Arc::new(Fake::default());
        let inner = spawn_in(fake.clone(), async { spawn(async { current().map(|p| p.random_u64()) }).await.unwrap() });
        assert_eq!(inner.await.unwrap(), Some(4));
        assert!(current().is_none());
        assert_eq!(*fake.tasks.lock().unwrap(), (2, 2));
        assert_eq!(spawn(async { current().is_none() }).await.ok(), Some(true));
    }

    #[tokio::test]
    async fn a_paused_process_does_nothing() {
        let fake = Arc::new(Fake::default());
        *fake.paused.lock().unwrap() = Some(Vec::new());
        let (tx, mut rx) = tokio::sync::oneshot::channel();
        let task = spawn_in(fake.clone(), async { tx.send(()).unwrap() });
        tokio::task::yield_now().await;
        assert!(rx.try_recv().is_err() && !task.is_finished());
        fake.paused.lock().unwrap().take().unwrap().into_iter().for_each(Waker::wake);
        rx.await.unwrap();
    }
}
