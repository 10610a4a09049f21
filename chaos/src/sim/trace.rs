//! The trace of a run: every event with its time and node, as one running 128-bit hash. Two runs with the same hash did the same.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which node an event belongs to: members come first, then clients.
pub type Node = u16;

/// Not a node: the world itself.
pub const WORLD: Node = u16::MAX;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// A task was polled.
    Poll = 1,
    /// A message was sent: to whom, of which kind, checksum.
    Send,
    /// A message arrived.
    Arrive,
    /// A message or a connection was lost.
    Lost,
    /// Entries were applied: last index, revision.
    Apply,
    /// A state was installed.
    Install,
    /// A client asked.
    Ask,
    /// A client was answered.
    Answer,
    /// A process began, ended, was paused, went on.
    Process,
    /// A fault began or ended.
    Fault,
    /// Anything else that is worth a line.
    Note,
}

struct Inner {
    hash: u128,
    events: u64,
    /// The last lines; all of them if `print`.
    lines: VecDeque<String>,
    print: bool,
}

/// The trace of one run.
pub struct Trace {
    origin: tokio::time::Instant,
    inner: Mutex<Inner>,
    /// Whether lines are wanted at all.
    verbose: bool,
}

/// Lines that are kept for a report.
const LINES: usize = 60;

/// FNV's 128-bit parameters, applied to whole words.
const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Trace {
    /// A trace that begins now. With `print`, every line goes to standard output, but for polls.
    pub fn new(print: bool) -> Self {
        let inner = Inner { hash: BASIS, events: 0, lines: VecDeque::new(), print };
        Self { origin: tokio::time::Instant::now(), inner: Mutex::new(inner), verbose: print }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the run began, on the world's clock.
    pub fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the run began.
    pub const fn origin(&self) -> tokio::time::Instant {
        self.origin
    }

    /// Adds an event.
    pub fn add(&self, node: Node, event: Event, a: u64, b: u64) {
        let now = self.now();
        let mut inner = self.lock();
        for word in [now, (u64::from(node) << 8) | event as u64, a, b] {
            inner.hash = (inner.hash ^ u128::from(word)).wrapping_mul(PRIME).rotate_left(29);
        }
        inner.events += 1;
    }

    /// Adds an event with a line for people.
    pub fn say(&self, node: Node, event: Event, a: u64, b: u64, line: fmt::Arguments<'_>) {
        self.add(node, event, a, b);
        if self.verbose || matches!(event, Event::Fault | Event::Process | Event::Note) {
            self.line(node, event, line);
        }
    }

    fn line(&self, node: Node, event: Event, line: fmt::Arguments<'_>) {
        let who = if node == WORLD { "world".to_owned() } else { format!("n{node}") };
        let text = format!("{:>12.6} {who:<6} {event:?} {line}", self.now() as f64 / 1e9);
        let mut inner = self.lock();
        if inner.print {
            println!("{text}");
        }
        inner.lines.push_back(text);
        if inner.lines.len() > LINES {
            inner.lines.pop_front();
        }
    }

    /// Hash and number of all events so far.
    pub fn sum(&self) -> (u128, u64) {
        let inner = self.lock();
        (inner.hash, inner.events)
    }

    /// The last lines.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }
}
