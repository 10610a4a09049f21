//! Simulated processes: tasks that run, pause and die with their node, clocks that drift and jump, randomness of their own.
//!
//! Everything runs on one thread, on tokio's paused clock with tokio's own random choices seeded. When no task is ready, time jumps to the
//! next timer. A killed process stops being polled first, then its tasks are dropped: so no destructor of it gets a word out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use kontiki_base::BoxFuture;
use kontiki_base::env::{Abort, Env, Mono, Task, WallMs};
use kontiki_proto::process::{Process, spawn_in};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::rng::Stream;
use super::trace::{Event, Node, Trace};

/// Wall-clock time when a world begins: 2026-01-01.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// The world's time of a moment on its wall clock, both in nanoseconds.
pub fn moment(wall_ns: i64) -> u64 {
    u64::try_from(wall_ns - EPOCH_MS * 1_000_000).unwrap_or(0)
}

/// Finished tasks are forgotten whenever so many have been started.
const SWEEP_EVERY: usize = 256;

/// A clock that goes fast or slow, and a wall clock that is off.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// World time and local time at the last change of the rate.
    world: Instant,
    local: Instant,
    /// Millionths that it gains on the world.
    drift_ppm: i32,
    wall_offset_ms: i64,
}

impl Clock {
    fn now(&self) -> Instant {
        let passed = Instant::now().saturating_duration_since(self.world);
        self.local + scale(passed, 1_000_000 + i64::from(self.drift_ppm), 1_000_000)
    }
}

fn scale(d: Duration, by: i64, of: i64) -> Duration {
    let (by, of) = (u128::try_from(by.max(1)).unwrap_or(1), u128::try_from(of.max(1)).unwrap_or(1));
    Duration::from_nanos(u64::try_from(d.as_nanos() * by / of).unwrap_or(u64::MAX))
}

struct State {
    alive: bool,
    /// Tasks that wait for the process to go on; `None`: it is not paused.
    parked: Option<Vec<Waker>>,
    tasks: Vec<AbortHandle>,
    running: isize,
    clock: Clock,
    random: Stream,
    order: Stream,
    /// How often in a million a ready task is sent to the end of the queue instead of being polled.
    shuffle: u32,
}

/// A process on a node. A node that is started again gets a new one.
pub struct Proc {
    node: Node,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

impl Proc {
    /// The `life`-th process on a node. `shuffle` is how often in a million a ready task has to wait for the others.
    pub fn new(seed: u64, node: Node, life: u64, shuffle: u32, trace: Arc<Trace>) -> Arc<Self> {
        let now = Instant::now();
        let stream = |name| Stream::new(seed, name, (u64::from(node) << 32) | life);
        let state = State {
            alive: true,
            parked: None,
            tasks: Vec::new(),
            running: 0,
            clock: Clock { world: now, local: now, drift_ppm: 0, wall_offset_ms: 0 },
            random: stream("node"),
            order: stream("scheduler"),
            shuffle,
        };
        trace.say(node, Event::Process, life, 0, format_args!("begins"));
        Arc::new(Self { node, trace, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its node.
    pub const fn node(&self) -> Node {
        self.node
    }

    /// Whether it has not been killed.
    pub fn is_alive(&self) -> bool {
        self.lock().alive
    }

    /// Whether it is alive and not paused.
    pub fn runs(&self) -> bool {
        let state = self.lock();
        state.alive && state.parked.is_none()
    }

    /// Starts a task of it, and hands out what it returns. Nothing ever comes if the process dies.
    pub fn run<T: Send + 'static>(self: &Arc<Self>, task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        spawn_in(Arc::clone(self) as Arc<dyn Process>, task)
    }

    /// Its view of the machine.
    pub fn env(self: &Arc<Self>) -> Arc<dyn Env> {
        Arc::new(SimEnv { process: Arc::clone(self) })
    }

    /// From now on none of its tasks runs until [`Proc::resume`]; its timers fire late.
    pub fn pause(&self) {
        let mut state = self.lock();
        if state.alive && state.parked.is_none() {
            state.parked = Some(Vec::new());
            drop(state);
            self.trace.say(self.node, Event::Process, 1, 0, format_args!("pauses"));
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        let parked = self.lock().parked.take();
        if let Some(parked) = parked {
            self.trace.say(self.node, Event::Process, 2, 0, format_args!("goes on"));
            parked.into_iter().for_each(Waker::wake);
        }
    }

    /// Changes how fast its clock goes: it gains so many millionths on the world.
    pub fn set_drift(&self, ppm: i32) {
        let mut state = self.lock();
        let local = state.clock.now();
        state.clock = Clock { world: Instant::now(), local, drift_ppm: ppm, ..state.clock };
    }

    /// Lets its wall clock jump.
    pub fn jump_wall(&self, by_ms: i64) {
        self.lock().clock.wall_offset_ms += by_ms;
    }

    /// From now on nothing of it runs.
    pub fn stop(&self) {
        self.lock().alive = false;
        self.trace.say(self.node, Event::Process, 3, 0, format_args!("dies"));
    }

    /// Drops all tasks of a process that was stopped, and waits until they are gone.
    ///
    /// # Errors
    /// How many are still there.
    pub async fn bury(&self) -> Result<(), isize> {
        // Dropping a task may start another one; a few rounds are plenty.
        for _ in 0..1_000 {
            let tasks = std::mem::take(&mut self.lock().tasks);
            tasks.iter().for_each(AbortHandle::abort);
            if self.lock().running == 0 {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
        Err(self.lock().running)
    }
}

impl Process for Proc {
    fn admit(&self, cx: &mut Context<'_>) -> bool {
        let mut state = self.lock();
        if !state.alive {
            return false;
        }
        if let Some(parked) = &mut state.parked {
            parked.push(cx.waker().clone());
            return false;
        }
        let shuffle = state.shuffle;
        if state.order.chance(shuffle) {
            cx.waker().wake_by_ref();
            return false;
        }
        drop(state);
        self.trace.add(self.node, Event::Poll, 0, 0);
        true
    }

    fn began(&self, task: AbortHandle) {
        let mut state = self.lock();
        state.running += 1;
        if !state.alive {
            task.abort();
        }
        if state.tasks.len() >= SWEEP_EVERY && state.tasks.len().is_multiple_of(SWEEP_EVERY) {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(task);
    }

    fn ended(&self) {
        self.lock().running -= 1;
    }

    fn random_u64(&self) -> u64 {
        self.lock().random.next()
    }

    fn now(&self) -> Instant {
        self.lock().clock.now()
    }

    fn world_time(&self, local: Duration) -> Duration {
        scale(local, 1_000_000, 1_000_000 + i64::from(self.lock().clock.drift_ppm))
    }
}

struct SimEnv {
    process: Arc<Proc>,
}

struct Spawned(AbortHandle);

impl Abort for Spawned {
    fn abort(&self) {
        self.0.abort();
    }
}

impl Env for SimEnv {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        Task(Box::new(Spawned(self.process.run(task).abort_handle())))
    }

    fn sleep(&self, d: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(self.process.world_time(d)))
    }

    fn now_mono(&self) -> Mono {
        Mono(self.process.now().saturating_duration_since(self.process.trace.origin()))
    }

    fn now_wall(&self) -> WallMs {
        let passed = i64::try_from(self.process.trace.origin().elapsed().as_millis()).unwrap_or(i64::MAX);
        WallMs(EPOCH_MS + passed + self.process.lock().clock.wall_offset_ms)
    }

    fn random_u64(&self) -> u64 {
        self.process.random_u64()
    }
}

/// A runtime of a simulated world: one thread, a clock that jumps, all of tokio's choices from `seed`.
pub fn runtime(seed: u64) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    builder.build()
}
