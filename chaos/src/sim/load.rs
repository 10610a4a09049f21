//! Clients of a simulated cluster: real etcd clients on the simulated network, which record what they ask and what they are told. Some
//! read and write a few keys, some live by leases, some watch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;

use super::ask::{self, perform, seen};
use super::http::Channel;
use super::net::Net;
use super::rng::Stream;
use super::rt::Proc;
use super::schedule::Knobs;
use super::trace::{Event, Node, Trace};
use crate::history::{
    Answer, Ask, Compare, CompareOp, CompareTarget, Frame, LeaseAsk, Op, RangeAsk, Record, Recorder, SeenEvent, Step, Watch, WatchAsk,
};

/// Nodes from here on are clients.
pub const FIRST_CLIENT: Node = 100;

/// All keys of the run lie here…
const PREFIX: &str = "chaos/";

/// …and before this.
const END: &str = "chaos0";

/// Clients that live by leases.
const LESSEES: u16 = 2;

/// Clients that watch.
const WATCHERS: u16 = 2;

/// What all clients of a run share.
pub struct Load {
    /// True: finish the operation at hand and stop.
    pub stop: AtomicBool,
    /// True: watchers stop, too.
    pub stop_watching: AtomicBool,
    /// Takes down everything.
    pub recorder: Recorder,
    watches: AtomicU64,
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
struct Client {
    number: u16,
    process: Arc<Proc>,
    net: Arc<Net>,
    load: Arc<Load>,
    knobs: Knobs,
    random: Stream,
    /// The last known revision of each key.
    known: Vec<i64>,
    asked: u64,
    member: usize,
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
            known: vec![0; knobs.keys.into()],
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
    fn stopped(&self) -> bool {
        self.load.stop.load(Ordering::Relaxed)
    }

    fn trace(&self) -> &Arc<Trace> {
        self.net.trace()
    }

    fn channel(&self) -> Channel {
        let node = Node::try_from(self.member).unwrap_or(0);
        Channel::new(Arc::clone(&self.process), Arc::clone(&self.net), node, ask::LIMIT)
    }

    fn next_member(&mut self) {
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
            let slot = usize::try_from(self.random.below(self.knobs.keys.into())).unwrap_or(0);
            let ask = self.choose(slot);
            let writes = ask.value().is_some();
            match self.ask(ask).await {
                Answer::Written { revision } => self.known[slot] = if writes { revision } else { 0 },
                Answer::Read { found, .. } => self.known[slot] = found.map_or(0, |(_, at)| at),
                Answer::Txn { revision, succeeded: true, .. } => self.known[slot] = revision,
                _ => {}
            }
        }
    }

    fn value(&mut self) -> String {
        let pad = usize::try_from(self.random.below(u64::from(self.knobs.value_bytes) + 1)).unwrap_or(0);
        format!("c{}-{}{}", self.number, self.asked, "_".repeat(pad))
    }

    fn choose(&mut self, slot: usize) -> Ask {
        let key = format!("{PREFIX}k{slot}");
        let expect = self.known[slot];
        match self.random.below(100) {
            0..30 => Ask::Get { key },
            30..55 => Ask::Put { key, value: self.value() },
            55..75 => Ask::Cas { key, expect, value: self.value() },
            75..81 => Ask::Delete { key },
            81..88 => self.transaction(key, expect),
            88..95 => {
                let serializable = self.random.chance(400_000);
                let limit = i64::try_from(self.random.below(3)).unwrap_or(0);
                Ask::Do(Step::Range(RangeAsk { key: PREFIX.into(), end: END.into(), limit, serializable, ..RangeAsk::default() }))
            }
            95..97 => Ask::Do(Step::Delete { key: format!("{PREFIX}k"), end: format!("{PREFIX}k2"), prev: true }),
            _ => Ask::Do(Step::Put { key, value: self.value(), lease: 0, prev: true }),
        }
    }

    /// Two keys at once, if the first is what it was; otherwise a look at both.
    fn transaction(&mut self, key: String, expect: i64) -> Ask {
        let put = |key: String, value: String| Step::Put { key, value, lease: 0, prev: false };
        let value = self.value();
        let other = format!("{PREFIX}pair");
        Ask::Txn {
            compare: vec![Compare { key: key.clone(), target: CompareTarget::Mod(expect), op: CompareOp::Equal }],
            success: vec![put(key, format!("{value}.1")), put(other, format!("{value}.2"))],
            failure: vec![Step::Range(RangeAsk { key: PREFIX.into(), end: END.into(), ..RangeAsk::default() })],
        }
    }

    /// Leases one after another: with keys, kept alive for a while, then revoked or forgotten.
    async fn live_by_leases(mut self) {
        let mut number = 0;
        while !self.stopped() {
            number += 1;
            let id = i64::from(self.number) * 1_000_000 + number;
            let ttl = i64::try_from(self.random.between(2, 5)).unwrap_or(2);
            let granted = self.ask(Ask::Lease(LeaseAsk::Grant { id, ttl })).await;
            let Answer::Lease { ttl, .. } = granted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            for key in 0..self.random.between(1, 3) {
                let (key, value) = (format!("{PREFIX}lease-{}-{key}", self.number), self.value());
                self.ask(Ask::Do(Step::Put { key, value, lease: id, prev: false })).await;
            }
            for _ in 0..self.random.below(8) {
                let third = u64::try_from(ttl).unwrap_or(1) * 1_000 / 3;
                tokio::time::sleep(Duration::from_millis(self.random.between(third / 2, third))).await;
                let question = if self.random.chance(200_000) { LeaseAsk::Remaining { id } } else { LeaseAsk::KeepAlive { id } };
                if self.stopped() || matches!(self.ask(Ask::Lease(question)).await, Answer::Lease { ttl, .. } if ttl <= 0) {
                    break;
                }
            }
            if self.random.chance(500_000) {
                self.ask(Ask::Lease(LeaseAsk::Revoke { id })).await;
            } else {
                // Forgotten: it ends by itself, whatever happens to whoever counts its time.
                tokio::time::sleep(Duration::from_secs(u64::try_from(ttl).unwrap_or(1))).await;
            }
        }
    }

    /// One watch after another, each from where the last one was.
    async fn watch(mut self) {
        let mut next = 1;
        while !self.load.stop_watching.load(Ordering::Relaxed) {
            let watch = self.load.watches.fetch_add(1, Ordering::Relaxed);
            let ask =
                WatchAsk { key: PREFIX.into(), end: END.into(), start: next, prev: self.random.chance(300_000), ..WatchAsk::default() };
            self.note(watch, Frame::Asked(ask.clone()));
            match self.follow(watch, &ask, &mut next).await {
                Ok(()) => return,
                Err(compact) => next = next.max(compact),
            }
            self.note(watch, Frame::Closed);
            self.next_member();
            tokio::time::sleep(Duration::from_millis(self.random.between(5, 200))).await;
        }
    }

    fn note(&self, watch: u64, frame: Frame) {
        let (at, member) = (self.trace().now(), self.member);
        let record = Watch { watch, client: self.number, member, at, frame };
        self.trace().add(self.process.node(), Event::Answer, watch, 7);
        self.load.recorder.record(Record::Watch(record));
    }

    /// Follows a watch until it breaks, or until there is no more to watch (`Ok`). The error is where history begins, if that was the reason.
    async fn follow(&mut self, watch: u64, ask: &WatchAsk, next: &mut i64) -> Result<(), i64> {
        let create = pb::WatchCreateRequest {
            key: ask.key.clone().into(),
            range_end: ask.end.clone().into(),
            start_revision: ask.start,
            prev_kv: ask.prev,
            progress_notify: true,
            ..pb::WatchCreateRequest::default()
        };
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::StreamExt::chain(futures::stream::iter([create]), futures::stream::pending());
        let opened = tokio::time::timeout(ask::LIMIT, WatchClient::new(self.channel()).watch(requests)).await;
        let Ok(Ok(stream)) = opened else { return Err(0) };
        let mut stream = stream.into_inner();
        // Watchers move, so that every member is asked to catch somebody up.
        let until = tokio::time::Instant::now() + Duration::from_millis(self.random.between(2_000, 20_000));
        loop {
            let response = tokio::select! {
                biased;
                response = stream.message() => response,
                () = tokio::time::sleep(Duration::from_millis(250)) => {
                    if self.load.stop_watching.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    if tokio::time::Instant::now() > until && !self.stopped() {
                        return Err(0);
                    }
                    continue;
                }
            };
            let Ok(Some(response)) = response else { return Err(0) };
            let revision = ask::revision(response.header.as_ref());
            if response.canceled {
                self.note(watch, Frame::Cancelled { compact: response.compact_revision, why: response.cancel_reason });
                return Err(response.compact_revision);
            }
            if response.created {
                self.note(watch, Frame::Created { revision });
            } else if response.events.is_empty() {
                *next = (*next).max(revision + 1);
                self.note(watch, Frame::Progress { revision });
            } else {
                let events: Vec<SeenEvent> = response.events.iter().map(event).collect();
                *next = (*next).max(events.last().map_or(0, |event| event.kv.modified + 1));
                self.note(watch, Frame::Events { revision, events, fragment: response.fragment });
            }
        }
    }
}

fn event(event: &kontiki_proto::etcd::mvccpb::Event) -> SeenEvent {
    use kontiki_proto::etcd::mvccpb::event::EventType;
    let delete = event.r#type() == EventType::Delete;
    SeenEvent { delete, kv: event.kv.as_ref().map(seen).unwrap_or_default(), prev: event.prev_kv.as_ref().map(seen) }
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
