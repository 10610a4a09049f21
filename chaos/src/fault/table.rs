//! The fault table: what is known of each fault apart from its parameters. `kontiki chaos list` and `explain` print it.

/// Whether a world has a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    /// It does.
    Yes,
    /// It has not, for this reason.
    No(&'static str),
}

impl In {
    /// Whether it does.
    pub const fn yes(self) -> bool {
        matches!(self, Self::Yes)
    }
}

/// What the machine must offer before the real world can have a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Root: network namespaces, a bridge and nft in one of them.
    Netns,
    /// `/dev/fuse`, and root to mount.
    Fuse,
    /// A loop device, ext4, and a C compiler for the one system call that cuts its power.
    LoopExt4,
    /// The packet queue of the kernel (iptables' NFQUEUE target).
    PacketQueue,
    /// A C compiler, for the shim that shifts a process's clock.
    Compiler,
}

impl Need {
    /// In words, for `explain` and `doctor`.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Netns => "root, network namespaces, a bridge, and nft on it",
            Self::Fuse => "root and /dev/fuse",
            Self::LoopExt4 => "root, a loop device, mkfs.ext4, and a C compiler",
            Self::PacketQueue => "root, and the kernel's NFQUEUE target with iptables",
            Self::Compiler => "a C compiler (cc), for a clock shim that is loaded into the process",
        }
    }
}

/// One row: a fault.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// In one line.
    pub about: &'static str,
    /// In the simulated world.
    pub sim: In,
    /// In the real world.
    pub real: In,
    /// How the real world does it.
    pub how: &'static str,
    /// How it heals, and what heals it if the one who did it dies.
    pub heals: &'static str,
    /// What proves that it took effect; without this proof a run is invalid.
    pub proof: &'static str,
    /// What the machine must offer.
    pub needs: &'static [Need],
}

const BY_KEEPER: &str = "started again when the time is over; if the harness dies, its keeper ends the whole cluster";

/// All faults.
pub const FAULTS: &[Row] = &[
    Row {
        name: "crash",
        about: "kill -9 a process; it is started again when the fault is over",
        sim: In::Yes,
        real: In::Yes,
        how: "SIGKILL to the process",
        heals: BY_KEEPER,
        proof: "the process's wait status says: ended by signal 9",
        needs: &[],
    },
    Row {
        name: "pause",
        about: "stop a process for a while: a suspended machine, a long pause of its memory manager",
        sim: In::Yes,
        real: In::Yes,
        how: "SIGSTOP, later SIGCONT",
        heals: "SIGCONT when the time is over; the keeper sends it if the harness does not",
        proof: "the kernel says the process is stopped (state T), and it answers no probe",
        needs: &[],
    },
    Row {
        name: "stop",
        about: "ask a process to end, and start it again",
        sim: In::Yes,
        real: In::Yes,
        how: "SIGTERM; the time until it is gone is measured",
        heals: BY_KEEPER,
        proof: "the process's exit code is 0",
        needs: &[],
    },
    Row {
        name: "rolling-restart",
        about: "stop and start the targets one after another, each when the one before it serves again",
        sim: In::Yes,
        real: In::Yes,
        how: "SIGTERM to one server, start it, wait until it answers reads, then the next",
        heals: BY_KEEPER,
        proof: "every target ended with exit code 0 and has another pid than before",
        needs: &[],
    },
    Row {
        name: "partition",
        about: "messages do not arrive: isolate, halves or bridge; both ways or one; all, between members, or from clients",
        sim: In::Yes,
        real: In::Yes,
        how: "addresses in a set of one nft table (family bridge) in the switch's namespace; one transaction cuts all links at once",
        heals: "set elements have a timeout of the kernel: the cut ends by itself, whoever lives",
        proof: "a probe on each cut link gets nothing, while links that stay get their answers",
        needs: &[Need::Netns],
    },
    Row {
        name: "loss",
        about: "a share of the packets of a server is lost, both ways",
        sim: In::Yes,
        real: In::Yes,
        how: "nft numgen in the switch's namespace drops at random",
        heals: "set elements have a timeout of the kernel",
        proof: "the rule's counter of dropped packets grew",
        needs: &[Need::Netns],
    },
    Row {
        name: "delay",
        about: "packets of a server arrive later; with jitter they overtake each other",
        sim: In::Yes,
        real: In::Yes,
        how: "this kernel family often lacks netem: the server's packets go through a queue (NFQUEUE) to a process that holds each for its time",
        heals: "the queue is bypassed by the kernel as soon as that process ends; it ends with its time or with the harness",
        proof: "the round trip of a probe grew by at least the delay",
        needs: &[Need::Netns, Need::PacketQueue],
    },
    Row {
        name: "duplicate",
        about: "some messages arrive twice",
        sim: In::Yes,
        real: In::No("TCP removes duplicates below everything that is ours: nothing would be tested"),
        how: "",
        heals: "",
        proof: "the network counted messages that it delivered twice",
        needs: &[],
    },
    Row {
        name: "bandwidth",
        about: "the link of a server carries little",
        sim: In::No("its links have delays and losses, not widths"),
        real: In::Yes,
        how: "nft limits the rate of the server's packets in the switch's namespace, and drops what is over it",
        heals: "set elements have a timeout of the kernel",
        proof: "the rule's counter of dropped packets grew",
        needs: &[Need::Netns],
    },
    Row {
        name: "power-loss",
        about: "a machine loses power: whatever was not synced is gone",
        sim: In::Yes,
        real: In::Yes,
        how: "`disk: ext4`: links are cut, the process is stopped, the loop-mounted file system gets the shutdown ioctl without a log flush, the \
              process is killed, the image is mounted again (its journal is replayed). `disk: fuse`: the file system drops, or tears, what was not synced",
        heals: BY_KEEPER,
        proof: "a sentinel file that was synced is there, one that was not is gone",
        needs: &[Need::LoopExt4],
    },
    Row {
        name: "fsync-eio",
        about: "syncing the disk fails with an I/O error",
        sim: In::Yes,
        real: In::Yes,
        how: "the FUSE file system under the data folder answers EIO to fsync, and loses those bytes as a kernel does",
        heals: "the file system stops doing it when the time is over; it ends with the harness",
        proof: "the file system's counter of failed syncs grew",
        needs: &[Need::Fuse],
    },
    Row {
        name: "lying-fsync",
        about: "the disk says it synced, and did not; ends with a loss of power. Beyond every model: acknowledged writes are lost",
        sim: In::Yes,
        real: In::Yes,
        how: "the FUSE file system answers success and keeps nothing; at the end it loses power",
        heals: BY_KEEPER,
        proof: "the file system's counter of lies grew",
        needs: &[Need::Fuse],
    },
    Row {
        name: "disk-full",
        about: "no space is left on the disk",
        sim: In::Yes,
        real: In::Yes,
        how: "the FUSE file system answers ENOSPC to every write that needs a new block",
        heals: "there is space again when the time is over; a server that stopped is started again",
        proof: "writing a sentinel file fails with ENOSPC",
        needs: &[Need::Fuse],
    },
    Row {
        name: "disk-slow",
        about: "every sync takes long",
        sim: In::Yes,
        real: In::Yes,
        how: "the FUSE file system sleeps in fsync",
        heals: "it stops doing so when the time is over; it ends with the harness",
        proof: "syncing a sentinel file takes at least that long",
        needs: &[Need::Fuse],
    },
    Row {
        name: "disk-stall",
        about: "the disk answers nothing until the fault is over",
        sim: In::No("a sync there takes a fixed time; `disk-slow` is what it has"),
        real: In::Yes,
        how: "the FUSE file system answers no write and no sync until the time is over",
        heals: "it answers when the time is over; it ends with the harness",
        proof: "syncing a sentinel file does not return before the fault is over",
        needs: &[Need::Fuse],
    },
    Row {
        name: "bit-rot",
        about: "a bit of a file flips while its server is down; the server must notice, not serve it",
        sim: In::Yes,
        real: In::Yes,
        how: "the server is killed, one bit of its newest log segment is flipped, the server is started again",
        heals: "if the server refuses its disk, as it should, it is replaced as by replace-member",
        proof: "the file's bytes differ",
        needs: &[],
    },
    Row {
        name: "clock-jump",
        about: "a server's wall clock jumps, and back; its timers go on",
        sim: In::Yes,
        real: In::Yes,
        how: "a shim loaded into the process adds an offset, kept in a mapped file, to CLOCK_REALTIME and to nothing else",
        heals: "the offset is set to zero; the keeper does so if the harness does not",
        proof: "the shim's counter of shifted answers grew",
        needs: &[Need::Compiler],
    },
    Row {
        name: "clock-drift",
        about: "a server's clocks, timers included, run faster or slower",
        sim: In::Yes,
        real: In::No("a shifted monotonic clock breaks every futex deadline of the process: it would test the shim"),
        how: "",
        heals: "",
        proof: "the server's clock moved away from the others'",
        needs: &[],
    },
    Row {
        name: "overload",
        about: "many clients write large values at once",
        sim: In::No("a queue that is full takes real time to show: run it on real processes"),
        real: In::Yes,
        how: "so many more clients, through all members, each as fast as it can",
        heals: "the clients end; they are part of the harness",
        proof: "the additional clients were answered, or refused with ResourceExhausted",
        needs: &[],
    },
    Row {
        name: "replace-member",
        about: "a server is removed, its disk wiped, and it joins as a new member",
        sim: In::No("its members have fixed disks"),
        real: In::Yes,
        how: "SIGKILL, MemberRemove, wipe, MemberAdd at the same address, start, MemberPromote",
        heals: "it is the healing",
        proof: "the member list has another id in its place, and the new member serves",
        needs: &[],
    },
    Row {
        name: "node-freeze",
        about: "everything on a node stops, and goes on after its pods were given to others",
        sim: In::Yes,
        real: In::Yes,
        how: "the node's agent, which holds its simulated pods, is stopped, and its links are cut",
        heals: "it goes on when the time is over; the keeper thaws it if the harness does not",
        proof: "the kernel says it is stopped, and no heartbeat arrives",
        needs: &[],
    },
    Row {
        name: "agent-crash",
        about: "kill -9 a node's agent; it is started again when the fault is over",
        sim: In::Yes,
        real: In::Yes,
        how: "SIGKILL to the agent",
        heals: BY_KEEPER,
        proof: "the process's wait status says: ended by signal 9",
        needs: &[],
    },
];

/// The row of this name.
pub fn row(name: &str) -> Option<&'static Row> {
    FAULTS.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole() {
        let mut names: Vec<_> = FAULTS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAULTS.len(), "names are unique");
        for row in FAULTS {
            assert!(!row.about.is_empty() && !row.proof.is_empty(), "{} says what it is and what proves it", row.name);
            assert!(row.sim.yes() || row.real.yes(), "{} works somewhere", row.name);
            assert_eq!(row.real.yes(), !row.how.is_empty() && !row.heals.is_empty(), "{} says how it is done and healed", row.name);
        }
        assert!(row("crash").is_some() && row("x").is_none());
    }
}
