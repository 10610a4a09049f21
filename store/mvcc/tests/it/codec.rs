//! Commands as bytes: there and back, and whatever else may lie in a log.

use bytes::Bytes;
use kontiki_base::Revision;
use kontiki_base::ids::{LeaseId, Term};
use kontiki_base::kv::{Op, PutReq, Txn};
use kontiki_mvcc::auth::Who;
use kontiki_mvcc::{Command, DecodeError};
use proptest::prelude::*;

use crate::generate::Choices;
use crate::util::{put, then};

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_come_back(tape in prop::collection::vec(any::<u32>(), 0..200), now in any::<i32>()) {
        let mut choices = Choices::Tape(tape.into_iter());
        let mut commands = Vec::new();
        while !choices.exhausted() {
            commands.push(choices.any_command(Revision(i64::from(now))));
        }
        let bytes = Command::encode_batch(&commands);
        prop_assert_eq!(Command::decode_batch(bytes.clone()), Ok(commands.clone()));
        for command in &commands {
            prop_assert_eq!(&Command::decode(command.encode()).unwrap(), command);
        }
        // No beginning of it is a batch, nor is anything longer.
        for cut in 0..bytes.len() {
            prop_assert!(Command::decode_batch(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        prop_assert_eq!(Command::decode_batch(longer), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn garbage_is_an_error_or_exactly_what_encode_writes(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut bytes = bytes;
        bytes.insert(0, 1);
        let bytes = Bytes::from(bytes);
        if let Ok(command) = Command::decode(bytes.clone()) {
            prop_assert_eq!(command.encode(), bytes.clone());
        }
        if let Ok(commands) = Command::decode_batch(bytes.clone()) {
            prop_assert_eq!(Command::encode_batch(&commands), bytes);
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_another_command(tape in prop::collection::vec(any::<u32>(), 0..60), at in any::<prop::sample::Index>(), bit in 0..8) {
        let command = Choices::Tape(tape.into_iter()).any_command(Revision(40));
        let mut bytes = command.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        if let Ok(other) = Command::decode(bytes.clone().into()) {
            prop_assert_ne!(&other, &command);
            prop_assert_eq!(other.encode(), bytes);
        }
    }
}

#[test]
fn extremes_come_back() {
    let nothing = Txn::default();
    for command in [
        Command::LeaseGrant { id: LeaseId(i64::MIN), ttl: i64::MAX },
        Command::LeaseRevoke { id: LeaseId(i64::MAX) },
        Command::LeaseExpire { id: LeaseId(i64::MIN), term: Term(u64::MAX) },
        Command::Compact { revision: Revision(-1) },
        Command::Txn { txn: nothing.clone(), fence: Some(Term(u64::MAX)) },
        Command::Txn { txn: nothing, fence: None },
        Command::Put(PutReq { value: vec![0xab; 1 << 20].into(), ..put("k", "") }),
    ] {
        assert_eq!(Command::decode(command.encode()), Ok(command));
    }
    assert_eq!(Command::decode_batch(Command::encode_batch(&[])), Ok(vec![]));
}

#[test]
fn a_value_is_not_copied() {
    let bytes = Command::Put(put("key", "value")).encode();
    let within = |part: &Bytes| bytes.as_ptr_range().contains(&part.as_ptr());
    let Ok(Command::Put(req)) = Command::decode(bytes.clone()) else { panic!() };
    assert!(within(&req.key) && within(&req.value));
}

#[test]
fn what_is_wrong_is_said() {
    let table: &[(&[u8], DecodeError)] = &[
        (&[], DecodeError::Truncated),
        (&[9], DecodeError::Format(9)),
        (&[1], DecodeError::Truncated),
        (&[1, 99], DecodeError::Tag { what: "command", tag: 99 }),
        (&[1, 1, 0x80], DecodeError::Tag { what: "flags", tag: 0x80 }),
        (&[1, 6, 0x80, 0x00], DecodeError::Number),
        (&[1, 6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], DecodeError::Number),
        // A length beyond the end, and a count that would take all memory.
        (&[1, 1, 0, 0, 5, b'k'], DecodeError::Truncated),
        (&[1, 3, 0, 0xff, 0xff, 0xff, 0xff, 0x0f], DecodeError::Truncated),
    ];
    for (bytes, error) in table {
        assert_eq!(Command::decode(Bytes::copy_from_slice(bytes)), Err(error.clone()), "{bytes:?}");
    }
}

#[test]
fn nesting_is_bounded() {
    let deep = |levels| (1..levels).fold(then(vec![]), |txn, _| then(vec![Op::Txn(txn)]));
    let command = |levels| Command::Txn { txn: deep(levels), fence: None };
    assert!(Command::decode(command(128).encode()).is_ok());
    assert_eq!(Command::decode(command(129).encode()), Err(DecodeError::TooDeep));
    // A hostile one, far deeper than any stack.
    let mut bytes = vec![1, 3];
    bytes.extend([0, 1, 3].repeat(1_000_000));
    assert_eq!(Command::decode(bytes.into()), Err(DecodeError::TooDeep));
}

#[test]
fn nobody_asks_for_what_somebody_asks_for() {
    let twice = Command::LeaseRevoke { id: LeaseId(1) }.by(Who::nobody()).by(Who { user: "root".into(), revision: 1 });
    assert_eq!(Command::decode(twice.encode()), Err(DecodeError::Tag { what: "command", tag: 33 }));
    let mut name = Command::LeaseRevoke { id: LeaseId(1) }.by(Who { user: "a".into(), revision: 1 }).encode().to_vec();
    let at = name.iter().position(|byte| *byte == b'a').unwrap();
    name[at] = 0xff;
    assert_eq!(Command::decode(name.into()), Err(DecodeError::Text));
}
