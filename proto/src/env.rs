//! The system's own clock, tasks and randomness: the one place that may touch them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kontiki_base::BoxFuture;
use kontiki_base::env::{Abort, Env, Mono, Task, WallMs};

/// [`Env`] on tokio and the machine's clocks.
#[derive(Clone, Debug)]
pub struct SystemEnv {
    origin: Instant,
}

impl SystemEnv {
    /// An environment whose monotonic clock starts now.
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemEnv {
    fn default() -> Self {
        Self::new()
    }
}

struct TokioTask(tokio::task::AbortHandle);

impl Abort for TokioTask {
    fn abort(&self) {
        self.0.abort();
    }
}

impl Env for SystemEnv {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        Task(Box::new(TokioTask(tokio::spawn(task).abort_handle())))
    }

    fn sleep(&self, d: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(d))
    }

    fn now_mono(&self) -> Mono {
        Mono(self.origin.elapsed())
    }

    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    fn now_wall(&self) -> WallMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn random_u64(&self) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        // RandomState is seeded by the operating system once per process and differs at every call: enough for ids and jitter.
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u64(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(0));
        hasher.finish()
    }
}
