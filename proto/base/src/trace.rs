//! Where a piece of work belongs in a distributed trace: what travels in HTTP headers, in gRPC metadata and in the raft log.
//!
//! Pure data, in the two forms that travel: the text of W3C Trace Context (`traceparent`), and 25 bytes. What makes spans out of it is
//! `kontiki_proto::trace`.

use std::fmt;

/// The HTTP header, and the gRPC metadata, that carries a [`TraceContext`].
pub const TRACEPARENT: &str = "traceparent";

/// Every span that Kontiki makes, by name. A name, once given, keeps its meaning: dashboards and tests ask for it.
///
/// | span | where | fields |
/// |---|---|---|
/// | [`REQUEST`](names::REQUEST) | the API server's door, REST and gRPC | `door`, `verb`, `resource`, `namespace`, `name`, `peer`, `code` (HTTP, or gRPC's at that door) |
/// | [`RPC`](names::RPC) | the etcd door | `method`, `peer`, `code` if the call failed at once |
/// | [`RECONCILE`](names::RECONCILE) | a controller at work | `controller`, `key`, `outcome` |
/// | [`BIND`](names::BIND) | the scheduler binds a batch of pods | `pods` |
/// | [`PROPOSE`](names::PROPOSE) | a batch of commands, from its leaving the queue until it is applied where it was proposed | `commands`, `bytes` |
/// | [`READ_BARRIER`](names::READ_BARRIER) | a linearizable read that waits for its index | |
/// | [`LOG_SYNC`](names::LOG_SYNC) | write and fsync of the group of entries that this one is in, on every member | `index`, `entries`, `bytes` |
/// | [`RAFT_APPEND`](names::RAFT_APPEND) | on the leader: from sending an entry to a follower until that has synced it | `to`, `index`, `entries` |
/// | [`RAFT_APPLY`](names::RAFT_APPLY) | on every member: the write batch that applies the entry | `index`, `revision` after it |
pub mod names {
    /// A request to the API server.
    pub const REQUEST: &str = "request";
    /// A call to the etcd door.
    pub const RPC: &str = "rpc";
    /// One run of a controller over one key.
    pub const RECONCILE: &str = "reconcile";
    /// The scheduler binds pods.
    pub const BIND: &str = "bind";
    /// A batch of commands on its way through consensus.
    pub const PROPOSE: &str = "propose";
    /// A linearizable read waits for its index.
    pub const READ_BARRIER: &str = "read.barrier";
    /// A group of log entries becomes durable.
    pub const LOG_SYNC: &str = "log.sync";
    /// An entry goes to a follower.
    pub const RAFT_APPEND: &str = "raft.append";
    /// An entry is applied.
    pub const RAFT_APPLY: &str = "raft.apply";

    /// All of them.
    pub const ALL: &[&str] = &[REQUEST, RPC, RECONCILE, BIND, PROPOSE, READ_BARRIER, LOG_SYNC, RAFT_APPEND, RAFT_APPLY];
}

/// A span as others refer to it. Both ids are never zero: [W3C Trace Context](https://www.w3.org/TR/trace-context/) forbids it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// The flag that says: this trace is recorded.
const SAMPLED: u8 = 1;

impl TraceContext {
    /// Bytes of the binary form.
    pub const BYTES: usize = 25;

    /// Bytes of the text form.
    pub const TEXT: usize = 55;

    /// A context of its parts; `None` if an id is zero.
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, flags })
    }

    /// The trace.
    pub const fn trace_id(self) -> [u8; 16] {
        self.trace_id
    }

    /// The span in the trace.
    pub const fn span_id(self) -> [u8; 8] {
        self.span_id
    }

    /// W3C's flags; a bit that is not known is kept.
    pub const fn flags(self) -> u8 {
        self.flags
    }

    /// Whether somebody records the trace.
    pub const fn sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Reads a `traceparent`. `None` for what the specification tells to ignore: the caller goes on without a parent.
    ///
    /// A version later than ours is read as ours if it begins like ours.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let (head, rest) = text.split_at_checked(Self::TEXT)?;
        let [version] = hex(&head[..2])?;
        let ends_well = if version == 0 { rest.is_empty() } else { rest.first().is_none_or(|b| *b == b'-') };
        if version == 0xff || !ends_well || [2, 35, 52].iter().any(|dash| head[*dash] != b'-') {
            return None;
        }
        let [flags] = hex(&head[53..])?;
        Self::new(hex(&head[3..35])?, hex(&head[36..52])?, flags)
    }

    /// The text of a `traceparent`.
    pub fn to_text(self) -> [u8; Self::TEXT] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut text[3..35], &self.trace_id);
        put_hex(&mut text[36..52], &self.span_id);
        put_hex(&mut text[53..], &[self.flags]);
        text
    }

    /// The binary form: trace id, span id, flags.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = self.flags;
        bytes
    }

    /// Reads the binary form; `None` if an id is zero.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        trace_id.copy_from_slice(&bytes[..16]);
        span_id.copy_from_slice(&bytes[16..24]);
        Self::new(trace_id, span_id, bytes[24])
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_text().iter().try_for_each(|b| fmt::Write::write_char(f, char::from(*b)))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lowercase hexadecimal digits, exactly two for each byte: W3C allows no others.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    let mut bytes = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn put_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_text_form_is_that_of_w3c() {
        let context = TraceContext::parse(GIVEN).unwrap();
        assert_eq!(context.trace_id()[..4], [0x4b, 0xf9, 0x2f, 0x35]);
        assert_eq!(context.span_id(), [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert!(context.sampled());
        assert_eq!(context.to_string(), GIVEN);
        let unsampled = TraceContext::parse(&GIVEN.replace("-01", "-00")).unwrap();
        assert!(!unsampled.sampled());
        let later = format!("cc{}-what-the-future-will-be-like", &GIVEN[2..]);
        assert_eq!(TraceContext::parse(&later), Some(context), "a later version begins like ours");
    }

    #[test]
    fn what_is_no_traceparent_is_ignored() {
        let bad = [
            "",
            "00",
            &GIVEN[..54],
            &format!("{GIVEN}-more"),
            &format!("cc{}.more", &GIVEN[2..]),
            &format!("ff{}", &GIVEN[2..]),
            &GIVEN.to_uppercase(),
            &GIVEN.replace('-', "_"),
            &GIVEN.replace("4bf9", "4bg9"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-0f067aa0ba902b7-01",
        ];
        for text in bad {
            assert_eq!(TraceContext::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_binary_form_survives_and_refuses_zero_ids() {
        let context = TraceContext::parse(GIVEN).unwrap();
        assert_eq!(TraceContext::decode(&context.encode()), Some(context));
        for cleared in [0..16, 16..24] {
            let mut bytes = context.encode();
            bytes[cleared].fill(0);
            assert_eq!(TraceContext::decode(&bytes), None);
        }
    }

    #[test]
    fn names_are_distinct() {
        let distinct: std::collections::BTreeSet<_> = names::ALL.iter().collect();
        assert_eq!(distinct.len(), names::ALL.len());
    }
}
