//! Clients of a simulated cluster: real etcd clients on the simulated network, which record what they ask and what they are told. Some
//! read and write a few keys ([`super::choice`]), some live by leases, some watch ([`super::watcher`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::ask::{self, perform};
use super::choice::{Choice, PREFIX};
use super::http::Channel;
use super::net::Net;
use super::rng::Stream;
use super::rt::Proc;
use super::schedule::Knobs;
use super::trace::{Event, Node, Trace};
use crate::history::{Answer, Ask, LeaseAsk, Op, Record, Recorder, Step};

/// Nodes from here on are clients.
pub const FIRST_CLIENT: Node = 100;

/// Clients that live by leases.
const LESSEES: u16 = 2;

/// Clients that watch.
const WATCHERS: u16 = 3;

/// What all clients of a run share.
pub struct Load {
    /// True: finish the operation at hand and stop.
    pub stop: AtomicBool,
    /// True: watchers stop, too.
    pub stop_watching: AtomicBool,
    /// Takes down everything.
    pub recorder: Recorder,
    /// The number of the next watch.
    pub watches: AtomicU64,
}

impl Load {
    /// A load that has not begun.
    pub fn new(recorder: Recorder) -> Arc<Self> {
        Arc::new(Self { stop: AtomicBool::new(false), stop_watching: AtomicBool::new(false), recorder, watches: AtomicU64::new(1) })
    }
}

/// How many nodes of clients there are.
pub fn nodes(knobs: Knobs) -> u16 {
    u16::from(knobs.clients) + LESSEES + WATCHERS
}

/// One client.
pub struct Client {
    pub(super) number: u16,
    pub(super) process: Arc<Proc>,
    net: Arc<Net>,
    pub(super) load: Arc<Load>,
    knobs: Knobs,
    pub(super) random: Stream,
    choice: Choice,
    asked: u64,
    pub(super) member: usize,
}

/// The clients that are at work.
pub struct Running {
    /// Those that read and write: they end by [`Load::stop`].
    pub writers: Vec<tokio::task::JoinHandle<()>>,
    /// Those that watch: they end by [`Load::stop_watching`].
    pub watchers: Vec<tokio::task::JoinHandle<()>>,
}

/// Starts all clients.
pub fn start(seed: u64, knobs: Knobs, net: &Arc<Net>, load: &Arc<Load>) -> Running {
    let client = |number: u16| {
        let process = Proc::new(seed, FIRST_CLIENT + number, 0, 0, Arc::clone(net.trace()));
        net.join(&process);
        Client {
            number,
            process,
            net: Arc::clone(net),
            load: Arc::clone(load),
            knobs,
            random: Stream::new(seed, "client", number.into()),
            choice: Choice::new(number, knobs.keys, knobs.value_bytes, Stream::new(seed, "choice", number.into())),
            asked: 0,
            member: usize::from(number) % usize::from(knobs.members),
        }
    };
    let (mut writers, mut watchers) = (Vec::new(), Vec::new());
    for number in 0..nodes(knobs) {
        let client = client(number);
        let process = Arc::clone(&client.process);
        if number < u16::from(knobs.clients) {
            writers.push(process.run(client.read_and_write()));
        } else if number < u16::from(knobs.clients) + LESSEES {
            writers.push(process.run(client.live_by_leases()));
        } else {
            watchers.push(process.run(client.watch()));
        }
    }
    Running { writers, watchers }
}

impl Client {
    pub(super) fn stopped(&self) -> bool {
        self.load.stop.load(Ordering::Relaxed)
    }

    pub(super) fn trace(&self) -> &Arc<Trace> {
        self.net.trace()
    }

    pub(super) fn channel(&self) -> Channel {
        let node = Node::try_from(self.member).unwrap_or(0);
        Channel::new(Arc::clone(&self.process), Arc::clone(&self.net), node, ask::LIMIT)
    }

    pub(super) fn next_member(&mut self) {
        self.member = (self.member + 1) % usize::from(self.knobs.members);
    }

    /// Asks, and records. Like any client it stays with a member until that fails; now and then it moves anyway.
    async fn ask(&mut self, ask: Ask) -> Answer {
        let (trace, member) = (Arc::clone(self.trace()), self.member);
        self.asked += 1;
        let call = trace.now();
        trace.say(self.process.node(), Event::Ask, member as u64, self.asked, format_args!("{} at n{member}", short(&ask)));
        let answer = perform(&self.channel(), &ask).await;
        let ret = trace.now();
        let failed = matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. });
        trace.say(self.process.node(), Event::Answer, self.asked, u64::from(failed), format_args!("{}", told(&answer)));
        self.load.recorder.record(Record::Op(Op { client: self.number, member, call, ret, ask, answer: answer.clone() }));
        if failed || self.random.chance(20_000) {
            self.next_member();
        }
        answer
    }

    async fn read_and_write(mut self) {
        while !self.stopped() {
            let think = self.random.below(u64::from(self.knobs.think_ms) + 1);
            tokio::time::sleep(Duration::from_millis(think)).await;
            let (slot, ask) = self.choice.draw();
            let answer = self.ask(ask.clone()).await;
            self.choice.learn(slot, &ask, &answer);
        }
    }

    async fn put_leased(&mut self, key: String, lease: i64) {
        let value = self.choice.value();
        self.ask(Ask::Do(Step::Put { key, value, lease, prev: false })).await;
    }

    /// Leases one after another: with keys, kept alive for a while, then revoked or forgotten.
    async fn live_by_leases(mut self) {
        let mut number = 0;
        while !self.stopped() {
            number += 1;
            let id = i64::from(self.number) * 1_000_000 + number;
            let asked = i64::try_from(self.random.between(2, 5)).unwrap_or(2);
            let Answer::Lease { ttl, .. } = self.ask(Ask::Lease(LeaseAsk::Grant { id, ttl: asked })).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let keys = if self.random.chance(150_000) { self.random.between(4, 20) } else { self.random.between(1, 3) };
            for key in 0..keys {
                self.put_leased(format!("{PREFIX}lease-{}-{key}", self.number), id).await;
            }
            self.keep_alive(id, ttl).await;
            if self.random.chance(250_000) {
                self.move_a_key(id).await;
            }
            if self.random.chance(400_000) {
                self.ask(Ask::Lease(LeaseAsk::Revoke { id })).await;
            } else {
                // Forgotten: it ends by itself, whatever happens to whoever counts its time.
                tokio::time::sleep(Duration::from_secs(u64::try_from(ttl).unwrap_or(1))).await;
            }
        }
    }

    /// Renews a lease some times: in good time, or in the last moment.
    async fn keep_alive(&mut self, id: i64, ttl: i64) {
        let millis = u64::try_from(ttl).unwrap_or(1) * 1_000;
        let bounds = if self.random.chance(300_000) { (millis * 7 / 10, millis * 97 / 100) } else { (millis / 6, millis / 3) };
        for _ in 0..self.random.below(8) {
            tokio::time::sleep(Duration::from_millis(self.random.between(bounds.0, bounds.1))).await;
            let question = if self.random.chance(200_000) { LeaseAsk::Remaining { id } } else { LeaseAsk::KeepAlive { id } };
            if self.stopped() || matches!(self.ask(Ask::Lease(question)).await, Answer::Lease { ttl, .. } if ttl <= 0) {
                break;
            }
        }
    }

    /// A key of a lease goes over to another one, which is then forgotten; or is freed of it.
    async fn move_a_key(&mut self, from: i64) {
        let key = format!("{PREFIX}lease-{}-0", self.number);
        let id = from + 500_000;
        match self.random.below(3) {
            0 => self.put_leased(key, 0).await,
            _ => {
                if let Answer::Lease { .. } = self.ask(Ask::Lease(LeaseAsk::Grant { id, ttl: 4 })).await {
                    self.put_leased(key, id).await;
                }
            }
        }
    }
}

/// The faces of a value: who wrote it, without what fills it up.
fn bare(value: &str) -> &str {
    value.trim_end_matches('_')
}

fn short(ask: &Ask) -> String {
    match ask {
        Ask::Put { key, value } => format!("put {key}={}", bare(value)),
        Ask::Cas { key, expect, value } => format!("cas {key}@{expect}={}", bare(value)),
        other => clipped(format!("{other:?}")),
    }
}

fn told(answer: &Answer) -> String {
    match answer {
        Answer::Read { revision, found } => format!("read at {revision}: {:?}", found.as_ref().map(|(v, at)| (bare(v), at))),
        other => clipped(format!("{other:?}")),
    }
}

/// The beginning of a long text.
fn clipped(text: String) -> String {
    let mut parts: VecDeque<&str> = text.split("____").collect();
    let first = parts.pop_front().unwrap_or_default().chars().take(160).collect();
    if parts.is_empty() && text.len() <= 160 { text } else { first }
}
