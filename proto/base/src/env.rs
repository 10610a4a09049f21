//! The seam to time, tasks and randomness. The system implementation is `kontiki_proto::env`; the simulator brings its own.

use std::time::Duration;

use crate::BoxFuture;

/// Monotonic time since an origin that means nothing: only differences do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub Duration);

impl Mono {
    /// Time passed since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Mono) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, d: Duration) -> Mono {
        Mono(self.0 + d)
    }
}

/// Wall-clock time: milliseconds since the Unix epoch. May jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(pub i64);

/// Ends a task that [`Env::spawn`] started.
pub trait Abort: Send + Sync {
    /// Stops the task at its next await point.
    fn abort(&self);
}

/// A running task. Dropping this lets the task run on.
pub struct Task(pub Box<dyn Abort>);

impl Task {
    /// Stops the task at its next await point.
    pub fn abort(&self) {
        self.0.abort();
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

/// What a process gets from the machine it runs on, other than disks and networks.
pub trait Env: Send + Sync + 'static {
    /// Starts a task. `name` is stable and appears in spans.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task;

    /// Completes after `d`.
    fn sleep(&self, d: Duration) -> BoxFuture<'static, ()>;

    /// Now, on the clock that never jumps.
    fn now_mono(&self) -> Mono;

    /// Now, on the clock that people read.
    fn now_wall(&self) -> WallMs;

    /// 64 random bits.
    fn random_u64(&self) -> u64;
}
