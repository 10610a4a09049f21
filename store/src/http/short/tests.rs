//! The wire by itself: bytes in, bytes out. That calls are served as by the general way is shown by the tests of the services, which run on
//! such connections.

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::ids::Revision;
use kontiki_proto::etcd::etcdserverpb as pb;
use proptest::prelude::*;
use prost::Message as _;

use super::super::Peer;
use super::super::authority::{END_HEADERS, END_STREAM, HEAD, HEADERS, PREFACE, put_string};
use super::outlet::DEFAULT_WINDOW;
use super::wire::{DATA, Wire, put_head};
use crate::grpc::short::{Answer, Calls};
use crate::testing::bench;

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const RST_STREAM: u8 = 3;

fn wire() -> Wire {
    let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), common_name: None };
    Wire::new(Calls::new(&bench().service), peer, 100)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_head(&mut out, payload.len(), kind, flags, stream);
    out.put_slice(payload);
    out.to_vec()
}

/// A header block; with `index`, the client's table learns its fields.
fn block(path: &str, index: bool) -> Vec<u8> {
    let mut out = vec![0x83];
    for (name, value) in [(":path", path), (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")] {
        out.push(if index { 0x40 } else { 0 });
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, value.as_bytes());
    }
    out
}

fn message() -> Vec<u8> {
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() }.encode_to_vec();
    [&[0, 0, 0, 0, u8::try_from(put.len()).unwrap()][..], &put].concat()
}

fn feed(wire: &mut Wire, bytes: &[u8], step: usize) {
    let mut input = BytesMut::new();
    for piece in bytes.chunks(step) {
        input.put_slice(piece);
        wire.feed(&mut input).unwrap();
    }
}

/// A wire on which HTTP/2 has begun.
fn begun() -> Wire {
    let mut wire = wire();
    feed(&mut wire, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat(), 1000);
    wire.to_server.clear();
    wire
}

/// A put on a stream.
fn put(stream: u32) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &block("/etcdserverpb.KV/Put", false)), frame(DATA, END_STREAM, stream, &message())].concat()
}

fn answer(bytes: usize) -> Answer {
    let kv = kontiki_proto::etcd::mvccpb::KeyValue { value: vec![7; bytes].into(), ..Default::default() };
    Answer::Range(pb::RangeResponse { kvs: vec![kv], ..Default::default() })
}

/// Kinds and flags of frames, and bytes of data among them.
fn frames(mut bytes: &[u8]) -> (Vec<(u8, u8)>, usize) {
    let (mut seen, mut data) = (Vec::new(), 0);
    while let Some(head) = bytes.first_chunk::<HEAD>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        seen.push((head[3], head[4]));
        data += if head[3] == DATA { length } else { 0 };
        bytes = &bytes[HEAD + length..];
    }
    assert!(bytes.is_empty(), "frames are whole");
    (seen, data)
}

#[tokio::test]
async fn short_calls_stay_and_the_rest_passes_however_it_is_cut() {
    let (short, other) = (block("/etcdserverpb.KV/Put", true), block("/etcdserverpb.Watch/Watch", true));
    let (head, tail) = short.split_at(7);
    let half = message().len() / 2;
    let bytes = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, 0, 1, head),
        frame(9, END_HEADERS, 1, tail),
        frame(DATA, 0, 1, &message()[..half]),
        frame(HEADERS, END_HEADERS, 3, &other),
        frame(DATA, END_STREAM, 1, &message()[half..]),
        frame(DATA, END_STREAM, 3, b"watch"),
        // Nothing of this is for anybody who has not seen the stream.
        frame(RST_STREAM, 0, 1, &[0; 4]),
        // References into a table that has seen both.
        frame(HEADERS, END_HEADERS, 5, &[0x80 | 69, 0x80 | 68, 0x80 | 67, 0x80 | 66, 0x83]),
    ]
    .concat();
    let mut seen = Vec::new();
    for step in [1, 2, 7, 10_000] {
        let mut wire = wire();
        feed(&mut wire, &bytes, step);
        let asked: Vec<(u32, Bytes)> = wire.asked.drain(..).map(|asked| (asked.stream, asked.body)).collect();
        assert_eq!(asked, [(1, message().into())]);
        let passed = wire.to_server.split_off(PREFACE.len());
        assert_eq!(frames(&passed).0, [(SETTINGS, 0), (HEADERS, END_HEADERS), (DATA, END_STREAM)]);
        assert!(passed.windows(25).any(|text| text == b"/etcdserverpb.Watch/Watch"), "written anew");
        seen.push(passed);
        feed(&mut wire, &frame(DATA, END_STREAM, 5, &message()), 100);
        assert_eq!(wire.asked.len(), 1, "the table of the client is followed");
    }
    assert!(seen.windows(2).all(|two| two[0] == two[1]));
}

#[tokio::test]
async fn an_answer_is_whole_and_one_that_nobody_waits_for_is_not_sent() {
    let mut wire = begun();
    feed(&mut wire, &[put(1), put(3), frame(RST_STREAM, 0, 3, &[0; 4])].concat(), 1000);
    let put = || Answer::Put(pb::PutResponse { header: Some(pb::ResponseHeader { revision: 5, ..Default::default() }), prev_kv: None });
    wire.answer(1, &put());
    wire.answer(3, &put());
    wire.answer(99, &put());
    let (seen, _) = frames(&wire.outlet.ready);
    assert_eq!(seen, [(HEADERS, END_HEADERS), (DATA, 0), (HEADERS, END_HEADERS | END_STREAM)]);
    wire.outlet.ready.clear();
    feed(&mut wire, &self::put(5), 1000);
    wire.answer(5, &Answer::Refused(tonic::Status::not_found("no such thing")));
    assert_eq!(frames(&wire.outlet.ready).0, [(HEADERS, END_HEADERS | END_STREAM)]);
    assert!(wire.to_server.is_empty() && wire.outlet.ready.windows(7).any(|text| text == b"no%20su"));
}

#[tokio::test]
async fn windows_are_kept_for_both() {
    let mut wire = begun();
    let window = usize::try_from(DEFAULT_WINDOW).unwrap();
    feed(&mut wire, &[put(1), put(3)].concat(), 1000);
    wire.answer(1, &answer(window * 2));
    assert_eq!(frames(&wire.outlet.ready).1, window, "as much as the stream and the connection take");
    wire.answer(3, &answer(10));
    wire.written_behind(&[frame(DATA, 0, 7, &[1; 50]), frame(HEADERS, END_HEADERS, 7, &[0x88])].concat());
    assert_eq!(frames(&wire.outlet.ready).1, window, "the server behind does not know, and is held");
    wire.outlet.ready.clear();
    feed(&mut wire, &frame(WINDOW_UPDATE, 0, 0, &60_u32.to_be_bytes()), 1000);
    let (seen, data) = frames(&wire.outlet.ready);
    assert_eq!((seen[0], seen[1], data), ((DATA, 0), (HEADERS, END_HEADERS), 60), "what was held goes first, in its order");
    assert!(wire.to_server.is_empty(), "room for our own bytes is not told to it");
    feed(&mut wire, &frame(WINDOW_UPDATE, 0, 1, &(1_u32 << 30).to_be_bytes()), 1000);
    assert_eq!(frames(&wire.outlet.ready).1, 60, "the connection takes no more");
    wire.outlet.ready.clear();
    feed(&mut wire, &frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()), 1000);
    let (seen, _) = frames(&wire.outlet.ready);
    assert_eq!(seen.iter().filter(|seen| **seen == (HEADERS, END_HEADERS | END_STREAM)).count(), 2, "both are answered");
    let told = u32::from_be_bytes(*wire.to_server[HEAD..].first_chunk().unwrap());
    assert_eq!(told, (1 << 20) + 50 - u32::try_from(window).unwrap(), "all but what was sent here before");
    wire.outlet.ready.clear();
    assert!(wire.outlet.is_empty(), "nothing waits any more");
}

#[tokio::test]
async fn a_goodbye_names_the_last_stream_of_all() {
    let mut wire = begun();
    feed(&mut wire, &put(9), 1000);
    let goaway = |last: u32| frame(GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &[0; 4]].concat());
    wire.written_behind(&[goaway(0x7fff_ffff), goaway(3)].concat());
    assert_eq!(wire.outlet.ready, [goaway(0x7fff_ffff), goaway(9)].concat());
    feed(&mut wire, &put(11), 1000);
    assert_eq!(wire.asked.len(), 1, "and later ones are the server's to ignore");
    assert!(!wire.to_server.is_empty());
}

#[tokio::test]
async fn other_protocols_pass() {
    let mut wire = wire();
    feed(&mut wire, b"POST /v3/kv/range HTTP/1.1\r\n\r\n", 3);
    assert!(wire.is_through());
    assert_eq!(wire.to_server, &b"POST /v3/kv/range HTTP/1.1\r\n\r\n"[..]);
}

#[tokio::test]
async fn a_call_is_carried_out() {
    let bench = bench();
    let calls = Calls::new(&bench.service);
    let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), common_name: None };
    let mut wire = Wire::new(calls.clone(), peer, 100);
    feed(&mut wire, &[PREFACE.to_vec(), put(1), put(3)].concat(), 1000);
    let (first, second) = (wire.asked.remove(0), wire.asked.remove(0));
    let Answer::Put(done) = calls.call(first.head, first.body).await else { panic!("not a put") };
    assert_eq!(done.header.unwrap().revision, Revision::new(2).get());
    let broken = Bytes::from_static(&[0, 0, 0, 0, 2, 0xff, 0xff]);
    let Answer::Whole(whole) = calls.call(second.head, broken).await else { panic!("it cannot be decoded") };
    assert_eq!(whole.0["grpc-status"], "13");
}

proptest! {
    /// Whatever comes, the worst is an error.
    #[test]
    fn nonsense_is_survived(
        given in prop::collection::vec((0_u8..11, any::<u8>(), 0_u32..8, prop::collection::vec(any::<u8>(), 0..60)), 0..12),
        back in prop::collection::vec(any::<u8>(), 0..200),
        step in 1_usize..60,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut wire = wire();
        let mut input = BytesMut::from(PREFACE);
        for (kind, flags, stream, payload) in given {
            let payload = if kind == HEADERS { block("/etcdserverpb.KV/Range", flags & 1 == 0) } else { payload };
            input.put_slice(&frame(kind, flags, stream, &payload));
        }
        wire.feed(&mut input).ok();
        back.chunks(step).for_each(|piece| wire.written_behind(piece));
        for number in 0..8 {
            wire.answer(number, &answer(100));
        }
    }
}
