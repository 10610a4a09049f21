//! What happens to a world: its tunables and its faults, as data. Comes from a seed, or from a file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rng::Stream;

/// Whom a fault strikes: decided when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// The member that leads; if none does, as `member: 0`.
    Leader,
    /// The n-th of those that do not lead.
    Follower(u8),
    /// The n-th of all.
    Member(u8),
}

/// How much of what was not synced survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Torn {
    /// Nothing.
    Nothing,
    /// Any sectors of 512 bytes.
    Sectors,
    /// The first writes and not the last.
    Prefix,
}

/// Who cannot reach whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One member and everybody else, both ways.
    Alone(Who),
    /// One member hears nobody.
    Deaf(Who),
    /// Nobody hears one member.
    Mute(Who),
    /// The leader with as many as are not a majority, and the rest.
    LeaderInMinority,
    /// Two halves, and one member between them that sees both.
    Bridge,
    /// Every member reaches its neighbours only.
    Ring,
    /// Every link in one direction by chance.
    Random,
    /// Clients do not reach a member, its peers do.
    ClientsOf(Who),
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The process is killed; it is started again when the fault ends.
    Kill(Who),
    /// The machine loses power.
    Power {
        /// Which.
        who: Who,
        /// What its disk keeps.
        torn: Torn,
    },
    /// All machines lose power at once.
    PowerAll {
        /// What their disks keep.
        torn: Torn,
    },
    /// The process is told to stop, and is started again.
    Stop(Who),
    /// The process stands still.
    Pause(Who),
    /// Links are cut.
    Partition(Shape),
    /// Links are cut and mended in turn.
    Flapping {
        /// Which.
        shape: Shape,
        /// Half of a turn.
        every_ms: u32,
    },
    /// Messages take longer, everywhere.
    Slow {
        /// Up to this.
        most_us: u32,
    },
    /// Messages from and to one member take longer.
    SlowMember {
        /// Which.
        who: Who,
        /// Up to this.
        most_us: u32,
    },
    /// Packets are lost, and calls come twice.
    Lossy {
        /// Lost, in a million.
        loss: u32,
        /// Twice, in a million.
        duplicate: u32,
    },
    /// Packets from and to one member are lost, and calls come twice.
    LossyMember {
        /// Which.
        who: Who,
        /// Lost, in a million.
        loss: u32,
        /// Twice, in a million.
        duplicate: u32,
    },
    /// Messages from and to one member take so long.
    DelayedMember {
        /// Which.
        who: Who,
        /// At least.
        least_us: u32,
        /// At most.
        most_us: u32,
    },
    /// All connections of a member break.
    Reset(Who),
    /// A disk is slow.
    SlowDisk {
        /// Whose.
        who: Who,
        /// By so much, for every group of writes.
        by_us: u32,
    },
    /// The next sync of a disk fails, and what it should have written is lost. The member is started again when the fault ends.
    SyncError(Who),
    /// A disk is full.
    DiskFull(Who),
    /// A member's state is flushed in the middle of everything.
    Flush(Who),
    /// The wall clock of a member jumps.
    WallJump {
        /// Whose.
        who: Who,
        /// By how much.
        by_ms: i64,
    },
    /// The clock of a member goes fast or slow.
    Drift {
        /// Whose.
        who: Who,
        /// Millionths that it gains.
        ppm: i32,
    },
    /// Leadership is handed to a member.
    Transfer(Who),
    /// A byte of a log changes at rest: the member loses power first. One that finds its log damaged stays down, as it should.
    BitRot(Who),
    /// History is compacted.
    Compact,
    /// The agent of the n-th node is killed, and started again when the fault ends; its pods run on.
    AgentKill(u8),
    /// The machine of the n-th node stands still, with its pods.
    NodeFreeze(u8),
    /// The machine of the n-th node loses power; it comes back empty when the fault ends.
    NodeLoss(u8),
    /// Nobody and the n-th node reach each other.
    NodeCut(u8),
    /// A disk says that it has synced, and has not; when the fault ends its machine loses power. No store survives that: it is here to see
    /// that it is noticed, and never comes from a seed.
    LyingDisk {
        /// Whose.
        who: Who,
        /// What it keeps.
        torn: Torn,
    },
}

impl Fault {
    /// Its kind, for tables.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Power { .. } => "power",
            Self::PowerAll { .. } => "power-all",
            Self::Stop(_) => "stop",
            Self::Pause(_) => "pause",
            Self::Partition(_) => "partition",
            Self::Flapping { .. } => "flapping",
            Self::Slow { .. } => "slow",
            Self::SlowMember { .. } => "slow-member",
            Self::Lossy { .. } => "lossy",
            Self::LossyMember { .. } => "lossy-member",
            Self::DelayedMember { .. } => "delayed-member",
            Self::Reset(_) => "reset",
            Self::SlowDisk { .. } => "slow-disk",
            Self::SyncError(_) => "disk-sync-error",
            Self::DiskFull(_) => "disk-full",
            Self::Flush(_) => "flush",
            Self::WallJump { .. } => "wall-jump",
            Self::Drift { .. } => "drift",
            Self::Transfer(_) => "transfer",
            Self::BitRot(_) => "disk-bit-rot",
            Self::Compact => "compact",
            Self::AgentKill(_) => "agent-kill",
            Self::NodeFreeze(_) => "node-freeze",
            Self::NodeLoss(_) => "node-loss",
            Self::NodeCut(_) => "node-cut",
            Self::LyingDisk { .. } => "power-lying-disk",
        }
    }
}

/// What a fault waits for, after its time has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Nothing.
    #[default]
    Now,
    /// A vote was granted: the voter is struck, whoever the fault names.
    VoteGranted,
    /// A member has become leader.
    Elected,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds from the beginning.
    pub at_ms: u64,
    /// What it waits for then.
    #[serde(default)]
    pub on: Trigger,
    /// What.
    pub fault: Fault,
    /// How long.
    pub for_ms: u64,
}

/// How the members and their clients are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knobs {
    /// Members at the beginning.
    pub members: u8,
    /// Clients that read and write.
    pub clients: u8,
    /// Keys that they meet at.
    pub keys: u8,
    /// The longest pause of a client between two operations.
    pub think_ms: u16,
    /// Size of a log segment.
    pub segment_bytes: u32,
    /// Entries that the log keeps in memory, in bytes.
    pub tail_bytes: u32,
    /// Log kept behind the flushed state.
    pub keep_log_bytes: u32,
    /// The state is flushed after so many bytes of log…
    pub flush_bytes: u32,
    /// …and so often.
    pub flush_every_ms: u32,
    /// How often in a million a ready task has to wait for the others.
    pub shuffle: u32,
    /// Values are up to so long.
    pub value_bytes: u16,
    /// Nodes of the control plane; 0: the world is the store alone.
    #[serde(default, skip_serializing_if = "is_none")]
    pub nodes: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_none(nodes: &u8) -> bool {
    *nodes == 0
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Decides everything that the schedule leaves open.
    pub seed: u64,
    /// How the world is made.
    pub knobs: Knobs,
    /// Time with faults.
    pub run_ms: u64,
    /// More members may be impaired at once than the cluster can bear: only safety is asked for then.
    #[serde(default)]
    pub beyond_model: bool,
    /// In order of their time.
    pub faults: Vec<Entry>,
}

impl Schedule {
    /// The schedule of a seed: a random subset of the kinds of faults, each with its own intensity.
    pub fn from_seed(seed: u64, time: Duration) -> Self {
        let mut random = Stream::new(seed, "nemesis", 0);
        let run_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let knobs = knobs(&mut random);
        let kinds: Vec<u64> = (0..KINDS).filter(|_| random.chance(450_000)).collect();
        let mut faults = Vec::new();
        // Between one fault in three seconds and three in one.
        let gap = *random.pick(&[300, 700, 1_500, 3_000]);
        let mut at_ms = random.between(500, 2_500);
        while at_ms < run_ms && !kinds.is_empty() {
            // A lull now and then: some mistakes need an idle leader.
            if random.chance(60_000) {
                at_ms += random.between(2_000, 8_000);
                continue;
            }
            let fault = fault(*random.pick(&kinds), &mut random);
            let on = match fault {
                Fault::Kill(_) | Fault::Power { .. } | Fault::Pause(_) if random.chance(200_000) => Trigger::VoteGranted,
                Fault::Kill(_) | Fault::Power { .. } | Fault::Pause(_) | Fault::Partition(_) if random.chance(200_000) => Trigger::Elected,
                _ => Trigger::Now,
            };
            let for_ms = *random.pick(&[50, 400, 1_200, 2_500, 6_000, 9_000]);
            faults.push(Entry { at_ms, on, fault, for_ms: random.between(for_ms / 2, for_ms) });
            at_ms += random.between(gap / 4, gap * 2);
        }
        Self { seed, knobs, run_ms, beyond_model: random.chance(100_000), faults }
    }
}

impl Schedule {
    /// The schedule of a seed for a world with a control plane and so many nodes: the members' faults are fewer, since each now costs more
    /// than the store, and machines of nodes have faults of their own.
    pub fn with_nodes(seed: u64, time: Duration, nodes: u8) -> Self {
        let mut schedule = Self::from_seed(seed, time);
        let mut random = Stream::new(seed, "nodes", 0);
        schedule.knobs = Knobs { nodes, clients: 1, think_ms: 150, members: schedule.knobs.members.max(3), ..schedule.knobs };
        schedule.beyond_model = false;
        let kept = *random.pick(&[100_000, 300_000, 600_000]);
        schedule.faults.retain(|_| random.chance(kept));
        let mut at_ms = random.between(3_000, 6_000);
        while at_ms < schedule.run_ms && nodes > 0 {
            let node = u8::try_from(random.below(nodes.into())).unwrap_or(0);
            let fault = match random.below(5) {
                0 | 1 => Fault::AgentKill(node),
                2 => Fault::NodeFreeze(node),
                3 => Fault::NodeLoss(node),
                _ => Fault::NodeCut(node),
            };
            let for_ms = *random.pick(&[300, 2_000, 9_000, 14_000]);
            schedule.faults.push(Entry { at_ms, on: Trigger::Now, fault, for_ms: random.between(for_ms / 2, for_ms) });
            at_ms += random.between(1_000, 9_000);
        }
        schedule.faults.sort_by_key(|entry| entry.at_ms);
        schedule
    }
}

fn knobs(random: &mut Stream) -> Knobs {
    let segment_bytes = *random.pick(&[32 << 10, 64 << 10, 256 << 10]);
    Knobs {
        members: *random.pick(&[1, 3, 3, 3, 3, 5, 5]),
        clients: *random.pick(&[3, 5, 8]),
        keys: *random.pick(&[1, 3, 8]),
        think_ms: *random.pick(&[5, 40, 150]),
        segment_bytes,
        tail_bytes: *random.pick(&[1 << 10, 16 << 10, 1 << 20]),
        keep_log_bytes: *random.pick(&[0, 4 << 10, 64 << 10]),
        flush_bytes: *random.pick(&[4 << 10, 64 << 10, 1 << 30]),
        flush_every_ms: *random.pick(&[2_000, 5_000, 300_000]),
        shuffle: *random.pick(&[0, 0, 20_000, 300_000]),
        value_bytes: *random.pick(&[10, 200, 2_000]),
        nodes: 0,
    }
}

/// Kinds that [`fault`] knows.
const KINDS: u64 = 20;

fn who(random: &mut Stream) -> Who {
    match random.below(4) {
        0 | 1 => Who::Leader,
        2 => Who::Follower(u8::try_from(random.below(4)).unwrap_or(0)),
        _ => Who::Member(u8::try_from(random.below(5)).unwrap_or(0)),
    }
}

fn torn(random: &mut Stream) -> Torn {
    *random.pick(&[Torn::Nothing, Torn::Sectors, Torn::Sectors, Torn::Prefix])
}

fn shape(random: &mut Stream) -> Shape {
    match random.below(9) {
        0 | 1 => Shape::Alone(who(random)),
        2 => Shape::Deaf(who(random)),
        3 => Shape::Mute(who(random)),
        4 => Shape::LeaderInMinority,
        5 => Shape::Bridge,
        6 => Shape::Ring,
        7 => Shape::Random,
        _ => Shape::ClientsOf(who(random)),
    }
}

fn fault(kind: u64, random: &mut Stream) -> Fault {
    let micros = |random: &mut Stream| *random.pick(&[5_000, 50_000, 200_000, 600_000]);
    match kind {
        0 => Fault::Kill(who(random)),
        1 => Fault::Power { who: who(random), torn: torn(random) },
        2 => Fault::PowerAll { torn: torn(random) },
        3 => Fault::Stop(who(random)),
        4 => Fault::Pause(who(random)),
        5 => Fault::Partition(shape(random)),
        6 => Fault::Flapping { shape: shape(random), every_ms: *random.pick(&[80, 300, 900, 1_700]) },
        7 => Fault::Slow { most_us: micros(random) },
        8 => Fault::SlowMember { who: who(random), most_us: micros(random) },
        9 => Fault::Lossy { loss: *random.pick(&[1_000, 30_000, 200_000]), duplicate: *random.pick(&[0, 50_000, 300_000]) },
        10 => Fault::Reset(who(random)),
        11 => Fault::SlowDisk { who: who(random), by_us: micros(random) },
        12 => Fault::SyncError(who(random)),
        13 => Fault::DiskFull(who(random)),
        14 => Fault::Flush(who(random)),
        15 => {
            let by_ms = *random.pick(&[30_000, 3_600_000, 200]);
            Fault::WallJump { who: who(random), by_ms: if random.chance(500_000) { by_ms } else { -by_ms } }
        }
        16 => Fault::Drift { who: who(random), ppm: *random.pick(&[-200_000, -1_000, 1_000, 200_000]) },
        17 => Fault::Transfer(who(random)),
        18 => Fault::BitRot(who(random)),
        _ => Fault::Compact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_its_seeds_and_survives_a_file() {
        let time = Duration::from_secs(60);
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let schedule = Schedule::from_seed(seed, time);
            assert_eq!(schedule, Schedule::from_seed(seed, time));
            assert!(schedule.faults.is_sorted_by_key(|entry| entry.at_ms));
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
            kinds.extend(schedule.faults.iter().map(|entry| entry.fault.kind()));
        }
        assert_eq!(kinds.len() as u64, KINDS, "every kind comes up: {kinds:?}");
    }
}
