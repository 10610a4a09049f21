//! How long the log's disk takes: what a leader judges by whether it can go on leading.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::env::{Env, Mono};

/// Measures groups of writes with their sync.
pub struct SyncMeter {
    env: Arc<dyn Env>,
    budget: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    began: Option<Mono>,
    slow: u64,
}

impl SyncMeter {
    /// A meter that counts what takes longer than `budget`.
    pub fn new(env: Arc<dyn Env>, budget: Duration) -> Arc<Self> {
        Arc::new(Self { env, budget, state: Mutex::default() })
    }

    /// What is longer counts as slow.
    pub const fn budget(&self) -> Duration {
        self.budget
    }

    /// How many were slow so far, and how long the one under way has taken.
    pub fn read(&self) -> (u64, Duration) {
        let state = self.lock();
        (state.slow, state.began.map_or(Duration::ZERO, |began| self.env.now_mono().since(began)))
    }

    pub(super) fn begin(&self) {
        self.lock().began = Some(self.env.now_mono());
    }

    pub(super) fn end(&self) {
        let mut state = self.lock();
        let took = state.began.take().map_or(Duration::ZERO, |began| self.env.now_mono().since(began));
        state.slow += u64::from(took > self.budget);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
