//! Random histories for tests: good by construction, and ways to corrupt them.

use crate::history::{Answer, Ask, Change, Compare, CompareOp, CompareTarget, Header, History, Op, RangeAsk, Step, StepAnswer};

use super::model::Model;

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11) % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What kind of history.
pub(super) struct Shape {
    pub(super) ops: usize,
    pub(super) clients: u64,
    pub(super) keys: u64,
    /// Percent of operations whose outcome the client does not learn.
    pub(super) unknown: u64,
}

fn key(rng: &mut Rng, shape: &Shape) -> String {
    format!("k{}", rng.below(shape.keys))
}

fn range(rng: &mut Rng, shape: &Shape) -> (String, String) {
    let start = key(rng, shape);
    match rng.below(3) {
        0 => (start, String::new()),
        1 => (start, key(rng, shape)),
        _ => (start, "\0".into()),
    }
}

fn step(rng: &mut Rng, shape: &Shape, value: String) -> Step {
    match rng.below(4) {
        0 | 1 => Step::Put { key: key(rng, shape), value, lease: 0, prev: rng.chance(50) },
        2 => {
            let (key, end) = range(rng, shape);
            let (limit, count_only, keys_only) = (rng.below(3) as i64, rng.chance(20), rng.chance(20));
            Step::Range(RangeAsk { key, end, limit, count_only, keys_only, ..RangeAsk::default() })
        }
        _ => {
            let (key, end) = range(rng, shape);
            Step::Delete { key, end, prev: rng.chance(50) }
        }
    }
}

fn compare(rng: &mut Rng, shape: &Shape, model: &Model) -> Compare {
    let target = match rng.below(4) {
        0 => CompareTarget::Mod(rng.below(model.revision as u64 + 1) as i64),
        1 => CompareTarget::Version(rng.below(3) as i64),
        2 => CompareTarget::Create(rng.below(model.revision as u64 + 1) as i64),
        _ => CompareTarget::Value(format!("v{}", rng.below(20))),
    };
    let op = [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual][rng.below(4) as usize];
    Compare { key: key(rng, shape), target, op }
}

fn ask(rng: &mut Rng, shape: &Shape, n: usize, model: &Model) -> Ask {
    let value = format!("v{n}");
    match rng.below(10) {
        0..=2 => Ask::Put { key: key(rng, shape), value },
        3 | 4 => Ask::Get { key: key(rng, shape) },
        5 => Ask::Cas { key: key(rng, shape), expect: rng.below(model.revision as u64 + 1) as i64, value },
        6 => Ask::Delete { key: key(rng, shape) },
        7 => Ask::Do(step(rng, shape, value)),
        _ => {
            // Puts of one transaction are of different keys, and nothing else of it touches them: as the store demands.
            let read = |rng: &mut Rng| {
                let (key, end) = range(rng, shape);
                Step::Range(RangeAsk { key, end, ..RangeAsk::default() })
            };
            let puts: Vec<Step> = (0..rng.below(3))
                .map(|i| Step::Put { key: format!("k{i}"), value: format!("v{n}.{i}"), lease: 0, prev: rng.chance(30) })
                .collect();
            let mut success = vec![read(rng)];
            success.extend(puts);
            success.push(read(rng));
            let failure = vec![step(rng, shape, format!("v{n}.f"))];
            Ask::Txn { compare: (0..rng.below(3)).map(|_| compare(rng, shape, model)).collect(), success, failure }
        }
    }
}

/// A history that is linearizable: clients ask one after the other, and every operation takes effect at some moment between question and
/// answer; those of unknown outcome at any later moment, or never.
pub(super) fn good(rng: &mut Rng, shape: &Shape) -> History {
    let mut history = History { header: Header { observes_all: true, ..Header::default() }, ..History::default() };
    let mut model = Model::default();
    let mut free = vec![0; shape.clients as usize];
    let mut pending: Vec<(u64, Op, bool)> = Vec::new();
    for n in 0..shape.ops {
        // The client that has been free longest asks next.
        let client = (0..free.len()).min_by_key(|c| free[*c]).expect("there are clients");
        let call = free[client] + 1 + rng.below(5);
        // Everything whose moment lies before this call happens now: what is asked may depend on it.
        pending.sort_by_key(|(at, ..)| *at);
        while pending.first().is_some_and(|(at, ..)| *at < call) {
            let (_, op, unknown) = pending.remove(0);
            happen(&mut history, &mut model, op, unknown);
        }
        let unknown = rng.chance(shape.unknown);
        let moment = call + 1 + rng.below(30);
        let ret = moment + 1 + rng.below(30);
        free[client] = ret;
        let ask = ask(rng, shape, n, &model);
        let op = Op { client: client as u16, member: client % 3, call, ret, ask, answer: Answer::Unknown { why: "lost".into() } };
        if unknown && rng.chance(40) {
            history.ops.push(op);
        } else {
            let moment = if unknown { call + 1 + rng.below(120) } else { moment };
            pending.push((moment, op, unknown));
        }
    }
    pending.sort_by_key(|(at, ..)| *at);
    for (_, op, unknown) in pending {
        happen(&mut history, &mut model, op, unknown);
    }
    history.ops.sort_by_key(|op| op.call);
    history
}

fn happen(history: &mut History, model: &mut Model, mut op: Op, unknown: bool) {
    let (answer, changes) = model.run(&op.ask);
    history.changes.extend(changes);
    if !unknown {
        op.answer = answer;
    }
    history.ops.push(op);
}

/// Changes something. `false`: this history has nothing of the kind that was chosen.
pub(super) fn corrupt(history: &mut History, rng: &mut Rng) -> bool {
    let (ops, changes) = (&mut history.ops, &mut history.changes);
    let i = rng.below(ops.len() as u64) as usize;
    let j = rng.below(changes.len().max(1) as u64) as usize;
    match rng.below(9) {
        // An answer of another moment.
        0 => {
            let revision = rng.below(changes.last().map_or(1, |c| c.revision) as u64) as i64 + 1;
            if let Answer::Read { revision: r, .. } | Answer::Did { revision: r, .. } | Answer::Written { revision: r } = &mut ops[i].answer
            {
                *r = revision;
                return true;
            }
            false
        }
        // Another value.
        1 => match &mut ops[i].answer {
            Answer::Read { found: Some((value, _)), .. } => {
                value.push('x');
                true
            }
            Answer::Txn { succeeded, .. } => {
                *succeeded = !*succeeded;
                true
            }
            Answer::Did { step: StepAnswer::Range { count, .. }, .. } => {
                *count += 1;
                true
            }
            _ => false,
        },
        // Nothing there.
        2 => match &mut ops[i].answer {
            Answer::Read { found, .. } => found.take().is_some(),
            Answer::Did { step: StepAnswer::Range { kvs, .. }, .. } => kvs.pop().is_some(),
            Answer::Did { step: StepAnswer::Put { prev }, .. } => prev.take().is_some(),
            _ => false,
        },
        // A change is lost.
        3 if !changes.is_empty() => {
            changes.remove(j);
            true
        }
        // A change is not what was asked for.
        4 if !changes.is_empty() => match &mut changes[j].value {
            Some(value) => {
                value.push('y');
                true
            }
            None => false,
        },
        // It was carried out twice.
        5 if !changes.is_empty() => {
            let last = changes.last().map_or(1, |c| c.revision);
            let again = Change { revision: last + 1, ..changes[j].clone() };
            changes.push(again);
            true
        }
        // Asked for and answered later than it was.
        6 => {
            let length = ops[i].ret - ops[i].call;
            ops[i].call += 200;
            ops[i].ret = ops[i].call + length;
            true
        }
        // Answered earlier.
        7 => {
            let length = ops[i].ret - ops[i].call;
            ops[i].call = ops[i].call.saturating_sub(200);
            ops[i].ret = ops[i].call + length;
            true
        }
        // What was done is denied.
        8 => {
            ops[i].answer = Answer::Refused { why: "no".into() };
            true
        }
        _ => false,
    }
}
