//! The catalogue of planted bugs. Numbers below 46 are those of bugs that other systems had; the rest is what our own design invites.

/// A planted bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Its id, as at its sites and in `KONTIKI_MUTANT`.
    pub id: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// Who had it, or why one could have it.
    pub origin: &'static str,
    /// The file of its first site.
    pub site: &'static str,
    /// The check that must notice, or its rule; several if it may show in several ways.
    pub killers: &'static [&'static str],
}

macro_rules! catalogue {
    ($($id:literal $site:literal $what:literal, $origin:literal => $($killer:literal)|+;)*) => {
        /// All planted bugs.
        pub const CATALOGUE: &[Mutant] = &[
            $(Mutant { id: $id, what: $what, origin: $origin, site: $site, killers: &[$($killer),+] },)*
        ];
    };
}

catalogue! {
    "M01" "store/src/log/writer.rs" "entries are acknowledged before they are synced", "etcd #14370" => "durable" | "lost-write" | "replicas-equal" | "committed-stays" | "leader-completeness" | "converge";
    "M02" "store/src/raft/storage.rs" "a vote is not written down", "Raft, figure 2" => "raft" | "election-safety" | "double-vote" | "term-forward" | "converge";
    "M03" "store/src/raft/storage.rs" "a vote is answered before it is synced", "Raft, figure 2" => "raft" | "election-safety" | "double-vote" | "term-forward" | "converge";
    "M07" "store/src/raft/machine.rs" "an installed snapshot does not bring its membership", "openraft, joint configuration lost" => "raft" | "converge" | "replicas-equal";
    "M08" "store/src/raft/node.rs" "a leader answers reads without asking whether it still leads", "RedisRaft, Consul" => "real-time";
    "M10" "store/src/raft/node.rs" "an old acknowledgement is good enough for a read", "etcd #20418" => "real-time";
    "M11" "store/src/raft/machine.rs" "the applied index on disk is that of the batch before", "etcd #13766" => "equal-hashes" | "replicas-equal" | "durable";
    "M14" "store/mvcc/src/compact.rs" "compaction at the revision of a deletion removes its tombstone", "etcd #18089, #19179" => "reliable" | "resumable" | "bookmarkable" | "delivered";
    "M15" "store/src/watch/session.rs" "progress is told before the events that it covers", "etcd #15220" => "bookmarkable";
    "M16" "store/src/watch/session.rs" "a watch that lost its place begins again at its start", "etcd #15271" => "ordered" | "unique";
    "M17" "store/src/watch/hub.rs" "the batch for which a slow watch had no room is forgotten", "etcd #17529" => "reliable" | "bookmarkable" | "delivered";
    "M18" "store/src/watch/hub.rs" "a watch with a start in the future gets what comes before it", "etcd #20221" => "resumable";
    "M19" "store/src/watch/session.rs" "the events of one transaction come in two responses", "etcd, atomic events" => "atomic";
    "M20" "store/src/raft/node.rs" "a proposal of unknown outcome is proposed again", "retry without a memory" => "twice" | "lost-write" | "phantom" | "wrong-compare";
    "M21" "store/mvcc/src/txn.rs" "a transaction that fails in the middle keeps what it had done", "etcd #18667" => "phantom";
    "M23" "store/mvcc/src/apply.rs" "a leader that was deposed ends a lease by its own clock", "etcd #15247" => "lease";
    "M24" "store/src/lease.rs" "a leader that was deposed renews leases", "etcd lessor" => "lease";
    "M28" "store/src/log/writer.rs" "a sync that fails is ignored", "fsyncgate" => "durable" | "lost-write" | "replicas-equal" | "converge" | "panic" | "committed-stays" | "leader-completeness";
    "M29" "store/src/log/record.rs" "checksums of the log are not verified: a torn record is accepted", "write-ahead logs, torn writes" => "panic" | "converge" | "durable" | "lost-write" | "replicas-equal" | "committed-stays" | "log-matching" | "leader-completeness" | "double-vote";
    "M30" "store/src/log/record.rs" "damage in the middle of the log is taken for its torn end", "corruption taken for a crash" => "panic" | "converge" | "durable" | "lost-write" | "replicas-equal" | "committed-stays" | "log-matching" | "leader-completeness" | "double-vote";
    "M46" "store/mvcc/src/txn.rs" "a comparison with the value of a missing key can hold", "etcd's rule" => "wrong-compare";
    "M47" "store/mvcc/src/history.rs" "what was before an event is read at its own revision", "prevKV at the wrong revision" => "prev";
    "M48" "store/src/watch/session.rs" "a watch from now on misses the next revision", "off by one" => "resumable" | "bookmarkable" | "delivered";
    "M49" "store/src/watch/ring.rs" "catching up from memory leaves the first batch out", "off by one" => "resumable" | "reliable" | "bookmarkable" | "delivered";
    "M50" "store/src/watch/hub.rs" "a watch from a compacted revision begins later and does not say so", "etcd's rule" => "resumable" | "bookmarkable";
    "M51" "store/src/watch/session.rs" "filters of a watch are ignored", "etcd's rule" => "filter";
    "M52" "store/src/raft/barrier.rs" "a follower reads before it has applied the read index", "Raft, section 6.4" => "real-time";
    "M53" "store/src/read.rs" "linearizable reads are local", "etcd v2, Consul's default" => "real-time";
    "M54" "store/src/raft/upkeep.rs" "the log is purged beyond what the engine has flushed", "write-ahead log, cut too early" => "invariant" | "panic" | "converge" | "durable";
    "M55" "store/src/log/writer.rs" "recycled segments of the log use one seed: remains of old records look whole", "recycled write-ahead logs" => "panic" | "converge" | "durable" | "replicas-equal" | "committed-stays";
    "M56" "store/src/log/writer.rs" "cutting the log back is not written down", "Raft, conflicting entries" => "panic" | "converge" | "replicas-equal";
    "M57" "store/src/raft/machine.rs" "watches are not told that a snapshot replaced the state", "etcd #15271's cousin" => "resumable" | "reliable" | "bookmarkable" | "delivered";
    "M58" "store/src/propose.rs" "the answers of a batch go to the wrong callers", "batching" => "lost-write" | "phantom" | "stale-read";
    "M59" "store/src/expiry.rs" "a new leader gives leases a quarter of their time", "etcd: leases must be extended" => "lease";
    "M60" "store/src/expiry.rs" "a renewal is acknowledged and not heeded", "etcd lessor" => "lease";
    "M61" "store/mvcc/src/lease.rs" "the end of a lease leaves one key behind", "etcd lessor" => "lease" | "phantom";
    "M62" "store/src/expiry.rs" "a lease that was revoked can be renewed", "etcd 3.6.5" => "lease";
    "M63" "store/mvcc/src/write.rs" "a key that moves to another lease still dies with the first", "etcd lessor" => "phantom" | "lease" | "panic";
    "M64" "store/mvcc/src/range.rs" "a range with a limit counts only what it returns", "etcd's rule" => "stale-read" | "serializable";
    "M65" "store/mvcc/src/range.rs" "a read as of an old revision shows the latest state", "etcd's rule" => "stale-read" | "serializable" | "panic";
    "M66" "store/mvcc/src/txn.rs" "a transaction answers with the revision before it", "off by one" => "lost-write" | "phantom" | "stale-read" | "real-time";
    "M67" "store/src/lease.rs" "a lease gets the shortest time although more was asked for", "etcd's rule" => "lease";
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};

    use super::*;

    fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() && entry.file_name().is_some_and(|n| n != "target" && !n.to_string_lossy().starts_with('.')) {
                sources(&entry, into);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                into.push(entry);
            }
        }
    }

    /// The bugs planted in the product: id to files.
    fn planted() -> BTreeMap<String, BTreeSet<String>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = Vec::new();
        for dir in ["store", "apiserver", "agents"] {
            sources(&root.join(dir), &mut files);
        }
        let mut planted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in files {
            let text = std::fs::read_to_string(&path).unwrap();
            // rustfmt may break the line after the bracket.
            for rest in text.split("mutant!(").skip(1) {
                if let Some(id) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                    let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                    planted.entry(id.to_owned()).or_default().insert(name);
                }
            }
        }
        planted
    }

    #[test]
    fn the_catalogue_and_the_sites_agree() {
        let mut planted = planted();
        for mutant in CATALOGUE {
            assert_ne!(kontiki_base::mutant::number(mutant.id), 0, "{}", mutant.id);
            let sites = planted.remove(mutant.id).unwrap_or_default();
            assert!(sites.contains(mutant.site), "{} is said to be in {}, it is in {sites:?}", mutant.id, mutant.site);
        }
        assert!(planted.is_empty(), "planted, but not in the catalogue: {planted:?}");
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|m| m.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len(), "an id is used twice");
        assert!(CATALOGUE.len() >= 30);
    }
}
