//! Callers: each makes a call, waits for its end, and makes the next. All callers of one connection are one script that one task runs.

use std::io;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::env::Env as _;
use kontiki_proto::env::SystemEnv;
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use pb::response_op::Response;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::stats::{Dice, Histogram};
use super::wire::{Event, Wire};

/// Calls that are still under way at the end of a run are waited for so long.
const GRACE: Duration = Duration::from_secs(10);

/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// When a run is measured, in nanoseconds of its clock.
#[derive(Clone, Debug)]
pub(super) struct Times {
    /// The clock of everybody who takes part.
    pub(super) clock: SystemEnv,
    /// From here on.
    pub(super) begin: u64,
    /// Up to here; no call begins later.
    pub(super) end: u64,
}

impl Times {
    /// Now.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.clock.now_mono().0.as_nanos()).unwrap_or(u64::MAX)
    }

    const fn measured(&self, now: u64) -> bool {
        self.begin <= now && now < self.end
    }

    fn until(&self, nanos: u64) -> Duration {
        Duration::from_nanos(nanos.saturating_sub(self.now()))
    }
}

/// What callers have seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How long calls took, or events were under way.
    pub(super) latencies: Histogram,
    /// Calls that went well, or events that came.
    pub(super) done: u64,
    /// Calls that were refused.
    pub(super) refused: u64,
}

impl Tally {
    /// Adds another's.
    pub(super) fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.done += other.done;
        self.refused += other.refused;
    }
}

/// What the callers of one connection do.
pub(super) trait Script: Send {
    /// Everybody's first call.
    fn start(&mut self, wire: &mut Wire, times: &Times, now: u64);

    /// A message came.
    fn message(&mut self, wire: &mut Wire, times: &Times, caller: u32, body: &Bytes, now: u64);

    /// A stream ended, after so many messages.
    fn ended(&mut self, wire: &mut Wire, times: &Times, caller: u32, messages: u64, now: u64);

    /// Streams last until the end of the run, and then are simply left.
    fn lasting(&self) -> bool;

    /// What was seen.
    fn tally(&self) -> &Tally;
}

/// Runs a script on a connection of its own.
///
/// # Errors
/// The connection fails, or a lasting stream ends.
pub(super) async fn drive(address: &str, script: &mut dyn Script, times: &Times) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let (mut wire, mut input, mut events) = (Wire::new(address), BytesMut::with_capacity(READ), Vec::new());
    let patience = times.until(times.end) + if script.lasting() { Duration::ZERO } else { GRACE };
    let over = tokio::time::sleep(patience);
    tokio::pin!(over);
    script.start(&mut wire, times, times.now());
    while wire.open_streams() > 0 {
        let unsent = !wire.out().is_empty();
        tokio::select! {
            biased;
            sent = writer.write_buf(wire.out()), if unsent => drop(sent?),
            read = reader.read_buf(&mut input) => {
                if read? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
                }
                wire.feed(&mut input, &mut events)?;
                let now = times.now();
                for event in events.drain(..) {
                    match event {
                        Event::Message { caller, body } => script.message(&mut wire, times, caller, &body, now),
                        Event::Ended { caller, messages } => script.ended(&mut wire, times, caller, messages, now),
                    }
                }
                input.reserve(READ);
            }
            () = &mut over => {
                let unanswered = !script.lasting();
                return if unanswered { Err(io::Error::other("calls were not answered")) } else { Ok(()) };
            }
        }
    }
    let early = script.lasting() && times.now() < times.end;
    if early { Err(io::Error::other("the server ended a stream")) } else { Ok(()) }
}

/// What a call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Puts a value at any key.
    Put,
    /// Puts the present time, and a value after it, at one key.
    Stamp,
    /// Reads one key.
    Get {
        /// What the member that is asked has.
        serializable: bool,
    },
    /// Reads any key.
    GetAny,
    /// Four linearizable reads of any key for each put.
    Mixed,
    /// Changes a key of the caller's own as kube-apiserver does: if it is still at the revision that was seen.
    Cas,
    /// Reads all keys of the fill.
    Range,
    /// Puts every key once, in order, from this one in steps.
    Fill {
        /// The next key.
        next: u64,
        /// To the one after it.
        step: u64,
    },
}

/// The keys and values of a run.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// What all keys begin with; ends with a slash.
    pub(super) prefix: &'static str,
    /// How many keys there are.
    pub(super) keys: u64,
    /// Bytes of a value.
    pub(super) value: usize,
    /// Random bytes that values are cut from: a store that compresses has no advantage.
    pub(super) pool: Bytes,
}

/// Random bytes that values are cut from.
const POOL: usize = 1 << 20;

impl Data {
    /// So many keys, with values of so many bytes.
    pub(super) fn new(prefix: &'static str, keys: u64, value: usize) -> Self {
        let (mut dice, mut pool) = (Dice(42), BytesMut::with_capacity(POOL + value + 8));
        while pool.len() < POOL + value {
            pool.put_u64(dice.roll());
        }
        Self { prefix, keys, value, pool: pool.freeze() }
    }

    /// A key by its number.
    pub(super) fn key(&self, number: u64) -> Bytes {
        format!("{}{number:020}", self.prefix).into()
    }

    /// A value: another piece of the pool for each roll.
    pub(super) fn value(&self, dice: &mut Dice) -> Bytes {
        let at = usize::try_from(dice.below(POOL as u64)).unwrap_or(0);
        self.pool.slice(at..at + self.value)
    }
}

/// The key that watchers look at.
pub(super) const WATCHED: &str = "/registry/watched";

/// The end of a prefix that ends with a slash.
fn after(prefix: &str) -> Bytes {
    format!("{}0", &prefix[..prefix.len() - 1]).into()
}

#[derive(Clone, Copy, Debug, Default)]
struct Caller {
    began: u64,
    /// The revision of its key.
    seen: i64,
}

/// Callers of unary methods.
pub(super) struct Callers {
    call: Call,
    data: Data,
    callers: Vec<Caller>,
    /// The number of the first caller, among those of all connections.
    first: u64,
    dice: Dice,
    scratch: BytesMut,
    tally: Tally,
}

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";

impl Callers {
    /// So many callers, the first of which has a number.
    pub(super) fn new(call: Call, data: Data, first: u64, count: u32, seed: u64) -> Self {
        let callers = vec![Caller::default(); count as usize];
        Self { call, data, callers, first, dice: Dice(seed), scratch: BytesMut::new(), tally: Tally::default() }
    }

    fn begin(&mut self, wire: &mut Wire, times: &Times, caller: u32, now: u64) {
        if now >= times.end {
            return;
        }
        self.scratch.clear();
        let Some(path) = self.write(caller, now) else { return };
        self.callers[caller as usize].began = now;
        wire.call(caller, path, &self.scratch, true, self.call == Call::Cas);
    }

    /// Writes the next request; `None` when there is none.
    fn write(&mut self, caller: u32, now: u64) -> Option<&'static str> {
        match &mut self.call {
            Call::Mixed if self.dice.below(5) > 0 => {
                let key = self.data.key(self.dice.below(self.data.keys));
                put(&mut self.scratch, &pb::RangeRequest { key, ..Default::default() }, RANGE)
            }
            Call::GetAny => {
                let key = self.data.key(self.dice.below(self.data.keys));
                put(&mut self.scratch, &pb::RangeRequest { key, ..Default::default() }, RANGE)
            }
            Call::Put | Call::Mixed => {
                let key = self.data.key(self.dice.below(self.data.keys));
                let value = self.data.value(&mut self.dice);
                put(&mut self.scratch, &pb::PutRequest { key, value, ..Default::default() }, PUT)
            }
            Call::Stamp => {
                let mut value = BytesMut::with_capacity(self.data.value + 8);
                value.put_u64(now);
                value.put_slice(&self.data.value(&mut self.dice));
                let request = pb::PutRequest { key: WATCHED.into(), value: value.freeze(), ..Default::default() };
                put(&mut self.scratch, &request, PUT)
            }
            Call::Get { serializable } => {
                let request = pb::RangeRequest { key: self.data.key(0), serializable: *serializable, ..Default::default() };
                put(&mut self.scratch, &request, RANGE)
            }
            Call::Cas => {
                let key = Bytes::from(format!("/registry/pods/bench/pod-{:08}", self.first + u64::from(caller)));
                let value = self.data.value(&mut self.dice);
                put(&mut self.scratch, &cas(key, value, self.callers[caller as usize].seen), TXN)
            }
            Call::Range => {
                let request = pb::RangeRequest { key: self.data.prefix.into(), range_end: after(self.data.prefix), ..Default::default() };
                put(&mut self.scratch, &request, RANGE)
            }
            Call::Fill { next, step } => {
                let number = (*next < self.data.keys).then_some(*next)?;
                *next += *step;
                let value = self.data.value(&mut self.dice);
                put(&mut self.scratch, &pb::PutRequest { key: self.data.key(number), value, ..Default::default() }, PUT)
            }
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what its callers answer")]
fn put(out: &mut BytesMut, message: &impl prost::Message, path: &'static str) -> Option<&'static str> {
    message.encode(out).expect("a buffer grows");
    Some(path)
}

/// kube-apiserver's update: put if the key is still at this revision (0: is not there), else read it.
fn cas(key: Bytes, value: Bytes, seen: i64) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(seen)),
        ..Default::default()
    };
    let op = |request| vec![pb::RequestOp { request: Some(request) }];
    let put = pb::PutRequest { key: key.clone(), value, ..Default::default() };
    pb::TxnRequest {
        compare: vec![compare],
        success: op(Request::RequestPut(put)),
        failure: op(Request::RequestRange(pb::RangeRequest { key, ..Default::default() })),
    }
}

/// The revision at which a key is after such a transaction.
fn revision_after(body: &Bytes) -> Option<i64> {
    let reply = pb::TxnResponse::decode(body.clone()).ok()?;
    if reply.succeeded {
        return Some(reply.header?.revision);
    }
    match reply.responses.into_iter().next()?.response? {
        Response::ResponseRange(range) => Some(range.kvs.first().map_or(0, |kv| kv.mod_revision)),
        _ => None,
    }
}

impl Script for Callers {
    fn start(&mut self, wire: &mut Wire, times: &Times, now: u64) {
        for caller in 0..u32::try_from(self.callers.len()).unwrap_or(u32::MAX) {
            self.begin(wire, times, caller, now);
        }
    }

    fn message(&mut self, _: &mut Wire, _: &Times, caller: u32, body: &Bytes, _: u64) {
        if self.call == Call::Cas
            && let Some(revision) = revision_after(body)
        {
            self.callers[caller as usize].seen = revision;
        }
    }

    fn ended(&mut self, wire: &mut Wire, times: &Times, caller: u32, messages: u64, now: u64) {
        if times.measured(now) {
            if messages > 0 {
                self.tally.done += 1;
                self.tally.latencies.record(now - self.callers[caller as usize].began);
            } else {
                self.tally.refused += 1;
            }
        }
        self.begin(wire, times, caller, now);
    }

    fn lasting(&self) -> bool {
        false
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// Watchers of one key, many on each stream, as kube-apiserver's are.
pub(super) struct Watchers {
    streams: u32,
    each: u32,
    messages: u64,
    tally: Tally,
}

/// Of so many messages, one is read for how long it was under way.
const SAMPLED: u64 = 16;

impl Watchers {
    /// So many streams with so many watches each.
    pub(super) fn new(streams: u32, each: u32) -> Self {
        Self { streams, each, messages: 0, tally: Tally::default() }
    }

    /// When the first event of a message was written.
    fn stamp(body: &Bytes) -> Option<u64> {
        let response = pb::WatchResponse::decode(body.clone()).ok()?;
        let value = response.events.into_iter().next()?.kv?.value;
        Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
    }
}

/// Events in a watch response, counted without reading them; 0 if it makes no sense.
fn events_in(mut body: &[u8]) -> u64 {
    const EVENTS: u64 = 11;
    let mut events = 0;
    while !body.is_empty() {
        let Ok(tag) = prost::encoding::decode_varint(&mut body) else { return 0 };
        let Ok(number) = prost::encoding::decode_varint(&mut body) else { return 0 };
        if tag & 7 == 2 {
            let Some(rest) = usize::try_from(number).ok().and_then(|len| body.get(len..)) else { return 0 };
            body = rest;
            events += u64::from(tag >> 3 == EVENTS);
        }
    }
    events
}

impl Script for Watchers {
    fn start(&mut self, wire: &mut Wire, _: &Times, _: u64) {
        let create = pb::WatchCreateRequest { key: WATCHED.into(), ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let message = request.encode_to_vec();
        for caller in 0..self.streams {
            let stream = wire.call(caller, "/etcdserverpb.Watch/Watch", &message, false, true);
            for _ in 1..self.each {
                wire.send(stream, &message, false);
            }
        }
    }

    fn message(&mut self, _: &mut Wire, times: &Times, _: u32, body: &Bytes, now: u64) {
        if !times.measured(now) {
            return;
        }
        self.messages += 1;
        self.tally.done += events_in(body);
        if self.messages.is_multiple_of(SAMPLED)
            && let Some(written) = Self::stamp(body)
        {
            self.tally.latencies.record(now.saturating_sub(written));
        }
    }

    fn ended(&mut self, _: &mut Wire, _: &Times, _: u32, _: u64, _: u64) {}

    fn lasting(&self) -> bool {
        true
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// Holders of leases: each keeps its lease alive on a stream of its own, as fast as it is answered.
pub(super) struct Holders {
    leases: Vec<i64>,
    streams: Vec<(u32, u64)>,
    tally: Tally,
}

impl Holders {
    /// A holder for each of these leases.
    pub(super) fn new(leases: Vec<i64>) -> Self {
        Self { leases, streams: Vec::new(), tally: Tally::default() }
    }
}

impl Script for Holders {
    fn start(&mut self, wire: &mut Wire, _: &Times, now: u64) {
        for (caller, id) in (0..).zip(&self.leases) {
            let message = pb::LeaseKeepAliveRequest { id: *id }.encode_to_vec();
            self.streams.push((wire.call(caller, "/etcdserverpb.Lease/LeaseKeepAlive", &message, false, false), now));
        }
    }

    fn message(&mut self, wire: &mut Wire, times: &Times, caller: u32, _: &Bytes, now: u64) {
        let (stream, began) = self.streams[caller as usize];
        if times.measured(now) {
            self.tally.done += 1;
            self.tally.latencies.record(now - began);
        }
        let message = pb::LeaseKeepAliveRequest { id: self.leases[caller as usize] }.encode_to_vec();
        self.streams[caller as usize].1 = now;
        wire.send(stream, &message, false);
    }

    fn ended(&mut self, _: &mut Wire, _: &Times, _: u32, _: u64, _: u64) {}

    fn lasting(&self) -> bool {
        true
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_as_they_are_read() {
        let event = |n: usize| kontiki_proto::etcd::mvccpb::Event {
            kv: Some(kontiki_proto::etcd::mvccpb::KeyValue { key: "k".into(), value: vec![7; n].into(), ..Default::default() }),
            ..Default::default()
        };
        for events in [vec![], vec![event(0)], vec![event(300), event(8), event(70_000)]] {
            let header = Some(pb::ResponseHeader { revision: 1 << 40, ..Default::default() });
            let body = pb::WatchResponse { header, watch_id: 7, created: true, events, ..Default::default() };
            assert_eq!(events_in(&body.encode_to_vec()), body.events.len() as u64);
        }
        assert_eq!(events_in(&[0x5a, 200]), 0, "cut off");
    }

    #[test]
    fn a_key_is_written_at_the_revision_that_a_transaction_tells() {
        let header = Some(pb::ResponseHeader { revision: 9, ..Default::default() });
        let won = pb::TxnResponse { header, succeeded: true, responses: vec![] };
        assert_eq!(revision_after(&won.encode_to_vec().into()), Some(9));
        let kv = kontiki_proto::etcd::mvccpb::KeyValue { mod_revision: 5, ..Default::default() };
        let range = |kvs| pb::ResponseOp { response: Some(Response::ResponseRange(pb::RangeResponse { kvs, ..Default::default() })) };
        let lost = |kvs| pb::TxnResponse { header, succeeded: false, responses: vec![range(kvs)] };
        assert_eq!(revision_after(&lost(vec![kv]).encode_to_vec().into()), Some(5));
        assert_eq!(revision_after(&lost(vec![]).encode_to_vec().into()), Some(0), "it is not there yet");
    }

    #[test]
    fn values_are_of_one_length_and_differ() {
        let (data, mut dice) = (Data::new("/a/", 10, 256), Dice(1));
        let values: Vec<_> = (0..100).map(|_| data.value(&mut dice)).collect();
        assert!(values.iter().all(|v| v.len() == 256));
        assert!(values.windows(2).all(|pair| pair[0] != pair[1]));
        let (first, last) = (data.key(0), data.key(u64::MAX));
        assert!(first < last && &first[..] > data.prefix.as_bytes() && last < after(data.prefix));
    }
}
