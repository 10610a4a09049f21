//! What members say to each other, as bytes. Fixed layouts: integers are big-endian, a list is its length and its items, a string or a
//! blob is its length (u32) and its bytes. Everything that cannot be read is refused whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::ids::{LogIndex, LogPos, Term};
use kontiki_proto::store::HandOver;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse};

use super::types::{self, LogId, Membership, Peer, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::log::LogEntry;

type C = TypeConfig;

pub(super) fn decode<T>(mut from: Bytes, get: impl FnOnce(&mut Bytes) -> Option<T>) -> Result<T, String> {
    match get(&mut from) {
        Some(value) if from.is_empty() => Ok(value),
        _ => Err("a message of a peer cannot be read".into()),
    }
}

pub(super) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("a message part is smaller than 4 GiB"));
    out.put_slice(bytes);
}

pub(super) fn get_bytes(from: &mut Bytes) -> Option<Bytes> {
    let len = from.try_get_u32().ok()? as usize;
    (len <= from.len()).then(|| from.split_to(len))
}

pub(super) fn get_string(from: &mut Bytes) -> Option<String> {
    String::from_utf8(get_bytes(from)?.to_vec()).ok()
}

/// The length of a list whose items take at least `least` bytes each: a longer one cannot be in the message.
fn get_len(from: &mut Bytes, least: usize) -> Option<usize> {
    let len = from.try_get_u32().ok()? as usize;
    (len.checked_mul(least)? <= from.len()).then_some(len)
}

fn put_len(out: &mut BytesMut, len: usize) {
    out.put_u32(u32::try_from(len).expect("a list in a message is shorter than 2^32"));
}

fn put_strings(out: &mut BytesMut, strings: &[String]) {
    put_len(out, strings.len());
    strings.iter().for_each(|s| put_bytes(out, s.as_bytes()));
}

fn get_strings(from: &mut Bytes) -> Option<Vec<String>> {
    (0..get_len(from, 4)?).map(|_| get_string(from)).collect()
}

pub(super) fn get_u64(from: &mut Bytes) -> Option<u64> {
    from.try_get_u64().ok()
}

fn get_bool(from: &mut Bytes) -> Option<bool> {
    match from.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn put_pos(out: &mut BytesMut, pos: LogPos) {
    out.put_u64(pos.term.get());
    out.put_u64(pos.index.get());
}

fn get_pos(from: &mut Bytes) -> Option<LogPos> {
    Some(LogPos { term: Term::new(get_u64(from)?), index: LogIndex::new(get_u64(from)?) })
}

fn put_log_id(out: &mut BytesMut, id: Option<LogId>) {
    put_pos(out, types::pos_or_zero(id));
}

fn get_log_id(from: &mut Bytes) -> Option<Option<LogId>> {
    get_pos(from).map(types::log_id)
}

pub(super) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

pub(super) fn get_vote(from: &mut Bytes) -> Option<Vote> {
    let leader_id = openraft::impls::leader_id_std::LeaderId { term: get_u64(from)?, voted_for: get_u64(from)? };
    Some(Vote { leader_id, committed: get_bool(from)? })
}

pub(super) fn put_peer(out: &mut BytesMut, peer: &Peer) {
    put_bytes(out, peer.name.as_bytes());
    put_strings(out, &peer.peer_urls);
    put_strings(out, &peer.client_urls);
    out.put_u8(u8::from(peer.started));
}

pub(super) fn get_peer(from: &mut Bytes) -> Option<Peer> {
    Some(Peer { name: get_string(from)?, peer_urls: get_strings(from)?, client_urls: get_strings(from)?, started: get_bool(from)? })
}

pub(super) fn put_membership(out: &mut BytesMut, membership: &Membership) {
    put_len(out, membership.get_joint_config().len());
    for config in membership.get_joint_config() {
        put_len(out, config.len());
        config.iter().for_each(|id| out.put_u64(*id));
    }
    put_len(out, membership.nodes().count());
    for (id, peer) in membership.nodes() {
        out.put_u64(*id);
        put_peer(out, peer);
    }
}

pub(super) fn get_membership(from: &mut Bytes) -> Option<Membership> {
    let mut configs = Vec::new();
    for _ in 0..get_len(from, 4)? {
        let config: Option<BTreeSet<u64>> = (0..get_len(from, 8)?).map(|_| get_u64(from)).collect();
        configs.push(config?);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..get_len(from, 8)? {
        nodes.insert(get_u64(from)?, get_peer(from)?);
    }
    Membership::new(configs, nodes).ok()
}

pub(super) fn put_stored(out: &mut BytesMut, stored: &StoredMembership) {
    put_log_id(out, *stored.log_id());
    put_membership(out, stored.membership());
}

pub(super) fn get_stored(from: &mut Bytes) -> Option<StoredMembership> {
    Some(StoredMembership::new(get_log_id(from)?, get_membership(from)?))
}

pub(super) fn put_meta(out: &mut BytesMut, meta: &SnapshotMeta) {
    put_log_id(out, meta.last_log_id);
    put_stored(out, &meta.last_membership);
}

pub(super) fn get_meta(from: &mut Bytes) -> Option<SnapshotMeta> {
    Some(SnapshotMeta { last_log_id: get_log_id(from)?, last_membership: get_stored(from)? })
}

pub(super) fn append_request(request: AppendEntriesRequest<C>) -> Bytes {
    let entries: Vec<LogEntry> = request.entries.into_iter().map(types::to_log).collect();
    let bytes: usize = entries.iter().map(|e| e.body.len() + 21).sum();
    let mut out = BytesMut::with_capacity(64 + bytes);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.prev_log_id);
    put_log_id(&mut out, request.leader_commit);
    put_len(&mut out, entries.len());
    for entry in entries {
        put_pos(&mut out, entry.pos);
        out.put_u8(entry.kind);
        put_bytes(&mut out, &entry.body);
    }
    out.freeze()
}

pub(super) fn get_append_request(from: &mut Bytes) -> Option<AppendEntriesRequest<C>> {
    let (vote, prev_log_id, leader_commit) = (get_vote(from)?, get_log_id(from)?, get_log_id(from)?);
    let mut entries = Vec::new();
    for _ in 0..get_len(from, 21)? {
        let (pos, kind, body) = (get_pos(from)?, from.try_get_u8().ok()?, get_bytes(from)?);
        entries.push(types::from_log(LogEntry { pos, kind, body })?);
    }
    Some(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(super) fn append_result(result: &StreamAppendResult<C>) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    match result {
        Ok(matched) => {
            out.put_u8(0);
            put_log_id(&mut out, *matched);
        }
        Err(StreamAppendError::Conflict(at)) => {
            out.put_u8(1);
            put_log_id(&mut out, Some(*at));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(super) fn get_append_result(from: &mut Bytes) -> Option<StreamAppendResult<C>> {
    Some(match from.try_get_u8().ok()? {
        0 => Ok(get_log_id(from)?),
        1 => Err(StreamAppendError::Conflict(get_log_id(from)??)),
        2 => Err(StreamAppendError::HigherVote(get_vote(from)?)),
        _ => return None,
    })
}

pub(super) fn vote_request(request: &VoteRequest<C>) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.last_log_id);
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(super) fn get_vote_request(from: &mut Bytes) -> Option<VoteRequest<C>> {
    let mut request = VoteRequest::new(get_vote(from)?, get_log_id(from)?);
    request.leadership_transfer = get_bool(from)?;
    Some(request)
}

pub(super) fn vote_response(response: &VoteResponse<C>) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    put_vote(&mut out, &response.vote);
    put_log_id(&mut out, response.last_log_id);
    out.put_u8(u8::from(response.vote_granted));
    out.freeze()
}

pub(super) fn get_vote_response(from: &mut Bytes) -> Option<VoteResponse<C>> {
    let (vote, last_log_id) = (get_vote(from)?, get_log_id(from)?);
    Some(VoteResponse { vote, vote_granted: get_bool(from)?, last_log_id })
}

pub(super) fn transfer_request(request: &TransferLeaderRequest<C>, why: HandOver) -> Bytes {
    let mut out = BytesMut::with_capacity(48);
    put_vote(&mut out, request.from_leader());
    out.put_u64(*request.to_node_id());
    put_log_id(&mut out, request.last_log_id().copied());
    out.put_u8(u8::try_from(i32::from(why)).unwrap_or_default());
    out.freeze()
}

pub(super) fn get_transfer_request(from: &mut Bytes) -> Option<(TransferLeaderRequest<C>, HandOver)> {
    let request = TransferLeaderRequest::new(get_vote(from)?, get_u64(from)?, get_log_id(from)?);
    // A member of another version may have reasons that are not known here.
    let why = HandOver::try_from(i32::from(from.try_get_u8().ok()?)).unwrap_or(HandOver::Unknown);
    Some((request, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vote() -> Vote {
        types::vote_from_log(crate::log::Vote { term: Term::new(3), member: kontiki_base::MemberId::new(9), committed: true })
    }

    fn membership() -> Membership {
        let peer = |n: u64| Peer { name: format!("m{n}"), peer_urls: vec![format!("http://{n}:1")], client_urls: vec![], started: n == 1 };
        let nodes: BTreeMap<u64, Peer> = (1..=4).map(|n| (n, peer(n))).collect();
        Membership::new(vec![[1, 2, 3].into(), [1, 2].into()], nodes).unwrap()
    }

    #[test]
    fn messages_survive_their_encoding() {
        let log_id = |index| types::LogId::new_term_index(2, index);
        let origin = types::Origin { member: kontiki_base::MemberId::new(1), boot: 2, seq: 3 };
        let proposal = |trace| types::Payload::Normal(types::Proposal::new(origin, trace, &Bytes::from_static(b"commands")));
        let entries = vec![
            types::Entry { log_id: log_id(5), payload: types::Payload::Blank },
            types::Entry { log_id: log_id(6), payload: proposal(None) },
            types::Entry { log_id: log_id(7), payload: proposal(kontiki_base::trace::TraceContext::new([4; 16], [5; 8], 1)) },
            types::Entry { log_id: log_id(8), payload: types::Payload::Membership(membership()) },
        ];
        let request = AppendEntriesRequest { vote: vote(), prev_log_id: Some(log_id(4)), entries, leader_commit: None };
        let back = decode(append_request(request.clone()), get_append_request).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
        let sent = |r: AppendEntriesRequest<C>| r.entries.into_iter().map(types::to_log).collect::<Vec<_>>();
        assert_eq!(sent(back), sent(request));
        let ok: StreamAppendResult<C> = Ok(Some(log_id(0)));
        for result in [ok, Ok(None), Err(StreamAppendError::Conflict(log_id(3))), Err(StreamAppendError::HigherVote(vote()))] {
            assert_eq!(decode(append_result(&result), get_append_result).unwrap(), result);
        }
        let mut asked = VoteRequest::new(vote(), Some(log_id(1)));
        asked.leadership_transfer = true;
        assert_eq!(decode(vote_request(&asked), get_vote_request).unwrap(), asked);
        let answer = VoteResponse::new(vote(), Some(log_id(1)), true);
        assert_eq!(decode(vote_response(&answer), get_vote_response).unwrap(), answer);
        let transfer = TransferLeaderRequest::new(vote(), 7, None);
        let sent = transfer_request(&transfer, HandOver::StallingDisk);
        assert_eq!(decode(sent, get_transfer_request).unwrap(), (transfer, HandOver::StallingDisk));
        let meta = SnapshotMeta { last_log_id: Some(log_id(8)), last_membership: StoredMembership::new(Some(log_id(2)), membership()) };
        let mut out = BytesMut::new();
        put_meta(&mut out, &meta);
        assert_eq!(decode(out.freeze(), get_meta).unwrap(), meta);
    }

    proptest! {
        #[test]
        fn junk_is_refused_without_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..200)) {
            let junk = Bytes::from(junk);
            let _ = decode(junk.clone(), get_append_request);
            let _ = decode(junk.clone(), get_append_result);
            let _ = decode(junk.clone(), get_vote_request);
            let _ = decode(junk.clone(), get_meta);
            let _ = decode(junk, get_transfer_request);
        }
    }
}
