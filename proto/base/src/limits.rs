//! Every bound of the system and what happens at it. A queue without a row here is a bug.

macro_rules! limits {
    ($($name:ident: $ty:ty = $value:expr => $full:literal;)*) => {
        $(
            #[doc = concat!("When full or exceeded: ", $full, ".")]
            pub const $name: $ty = $value;
        )*

        /// Name, value and consequence of every limit, for `--help`, metrics and tests.
        pub const ALL: &[(&str, u64, &str)] = &[$((stringify!($name), $value as u64, $full),)*];
    };
}

limits! {
    // store: requests
    REQUEST_BYTES: usize = 1_572_864 => "the request is refused: TooLarge, etcd's text \"request is too large\"";
    TXN_OPS: usize = 128 => "an etcd client's transaction is refused: \"too many operations in txn request\" (API server transactions have their own bound)";
    TRANSACT_OBJECTS: usize = 500 => "Transact is refused with BadRequest";
    PROPOSALS_QUEUED: usize = 16_384 => "TooManyRequests at once, etcd's text \"too many requests\"";
    PROPOSALS_QUEUED_BYTES: usize = 64 << 20 => "TooManyRequests at once, etcd's text \"too many requests\"";
    PROPOSALS_IN_FLIGHT: usize = 8 => "the next batch grows while it waits";
    PROPOSAL_BATCH: usize = 512 => "the rest waits for the next batch";
    PROPOSAL_BATCH_BYTES: usize = 4 << 20 => "the rest waits for the next batch";
    READS_QUEUED: usize = 65_536 => "TooManyRequests at once";
    CLIENT_CONNECTIONS: usize = 16_384 => "a client waits to be accepted until another has gone";
    SHORT_OUT_BYTES: usize = 1 << 20 => "a connection whose client does not take what it asked for is not read from";
    RANGES_AT_ONCE: usize = 64 => "a read of a range waits until another has ended";
    SNAPSHOTS_AT_ONCE: usize = 4 => "a further Maintenance.Snapshot is refused: ResourceExhausted";
    SNAPSHOT_PARTS_QUEUED: usize = 16 => "the snapshot is read on when its client has taken a part";
    AUTH_TOKENS: usize = 65_536 => "the simple token that would end first ends now: its client logs in again";
    PASSWORDS_AT_ONCE: usize = 4 => "a password waits to be hashed until another is done";
    // store: watches
    WATCH_RING_REVISIONS: usize = 65_536 => "a cursor that is behind the ring reads history from the engine";
    WATCH_RING_BYTES: usize = 64 << 20 => "the oldest batches leave the ring";
    WATCH_STREAM_QUEUE: usize = 64 => "the cursor goes back to catching up from history; the writer is never slowed";
    WATCHES_PER_STREAM: usize = 10_000 => "the watch is refused: TooManyRequests";
    // store: raft
    RAFT_TAIL_BYTES: usize = 64 << 20 => "older entries are read from the segment files";
    RAFT_APPEND_QUEUE: usize = 64 => "the leader waits for the follower's acknowledgement";
    RAFT_LOG_QUEUE: usize = 1_024 => "consensus waits for the log's writer";
    RAFT_APPEND_BYTES: usize = 4 << 20 => "the rest of the entries goes in the next append message";
    RAFT_APPLY_CHUNK: usize = 512 => "the rest of the entries is applied in the next write batch";
    RAFT_APPLY_CHUNK_BYTES: usize = 4 << 20 => "the rest of the entries is applied in the next write batch";
    APPLY_MEMO_KEYS: usize = 131_072 => "keys whose present life was not asked for lately are looked up in the engine again";
    RAFT_APPLY_QUEUE: usize = 4 => "consensus waits for the apply thread";
    LEADERSHIP_OBSERVATIONS: usize = 1_024 => "a member forgets what it saw of the oldest elections";
    PEER_MESSAGE_BYTES: usize = 64 << 20 => "the message is refused and its stream ends";
    PEER_HANDSHAKES: usize = 64 => "a peer that connects waits until another has shaken hands";
    SNAPSHOT_CHUNK_BYTES: usize = 1 << 20 => "the file goes on in the next chunk";
    // API server
    BODY_BYTES: usize = 3 << 20 => "413 RequestEntityTooLarge";
    LIST_PAGE_MAX: usize = 10_000 => "a longer page is cut to this and a continue token is given";
    PROTOBUF_DEPTH: usize = 100 => "a body that nests deeper is refused with BadRequest";
    PROTOBUF_VALUES: usize = 500_000 => "a body that holds more values is refused with 413, whatever its size in bytes";
    JSON_PATCH_OPS: usize = 10_000 => "413: a JSON patch of more operations is refused";
    JSON_PATCH_COPY_BYTES: usize = 3 << 20 => "413: the copies of one JSON patch may not make more bytes than this";
    CACHE_EVENTS: usize = 16_384 => "a watch from before the window is replayed from the store's history, or answers 410 Expired if that is gone";
    WATCHER_QUEUE: usize = 1_024 => "the rest waits in the window; a watch that the window has left behind is closed, and its client resumes from what it saw";
    REQUESTS_IN_FLIGHT: usize = 2_000 => "429 with Retry-After";
    // agents
    QUEUE_KEYS: usize = 100_000 => "the informer stops reading until the queue has room";
    NODE_SESSION_QUEUE: usize = 1_024 => "the session is closed and the agent comes back with its full state";
    STATUS_BATCH: usize = 256 => "the rest goes in the next batch";
    NODE_OBJECTS: usize = 4_096 => "the object that a node fetched longest ago is forgotten and fetched again when needed";
    NODE_EVENTS: usize = 256 => "a node drops the Kubernetes event; states are reported in pod statuses in any case";
    NODE_INPUTS: usize = 1_024 => "a finished step waits until the node's loop has taken it";
    LOG_STREAMS: usize = 128 => "429: the agent serves no further log";
    BIND_BATCH: usize = 256 => "the rest is bound in the next transaction";
    LIVENESS_NODES: usize = 50_000 => "heartbeats of further nodes are not recorded, and their sessions are refused: TooManyRequests";
    EVENT_ROWS: usize = 4_096 => "the oldest row of the aggregation is forgotten: its next event starts a new count";
    EVENTS_QUEUED: usize = 1_024 => "the event is dropped and counted";
    NODE_SESSIONS: usize = 10_000 => "the session is refused: TooManyRequests, and the agent tries another server";
    // traces
    SPANS_QUEUED: usize = 8_192 => "the span is dropped: its trace has a hole";
}

const _: () = assert!(PROPOSAL_BATCH <= PROPOSALS_QUEUED);
const _: () = assert!(REQUEST_BYTES <= PROPOSAL_BATCH_BYTES);

#[cfg(test)]
mod tests {
    #[test]
    fn every_limit_says_what_happens() {
        for (name, value, full) in super::ALL {
            assert!(*value > 0 && full.len() > 10, "{name}");
        }
    }
}
