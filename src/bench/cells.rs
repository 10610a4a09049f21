//! The cells of the table: which workload, how many callers, how large values.

use std::fmt;
use std::str::FromStr;

/// What callers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// Puts at any of the keys.
    Put,
    /// Linearizable reads of one key.
    Get,
    /// Reads of one key as the member has it.
    Serializable,
    /// Linearizable reads of any of the keys.
    GetAny,
    /// Four linearizable reads for each put.
    Mixed,
    /// kube-apiserver's update of an object.
    Cas,
    /// Reads of 10,000 keys at once.
    Range,
    /// Watchers of one key, one writer.
    Watch,
    /// Leases that are kept alive.
    Lease,
    /// So many keys, then a restart.
    Restart,
}

/// Name, workload, callers and bytes of a value unless said otherwise, and what it is.
pub(super) const WORKLOADS: &[(&str, Workload, u32, usize, &str)] = &[
    ("put", Workload::Put, 100, 256, "puts at random keys"),
    ("get", Workload::Get, 100, 256, "linearizable reads of one key"),
    ("getany", Workload::GetAny, 100, 256, "linearizable reads of random keys, which are there"),
    ("serializable", Workload::Serializable, 100, 256, "reads of one key as the member has it"),
    ("mixed", Workload::Mixed, 100, 256, "four linearizable reads of random keys for each put"),
    ("cas", Workload::Cas, 100, 1024, "kube-apiserver's update of an object: put if at the revision seen, else read"),
    ("range", Workload::Range, 4, 256, "linearizable reads of 10,000 keys at once"),
    ("watch", Workload::Watch, 1000, 256, "watchers of one key, 100 on a stream, and one writer: events and their delay"),
    ("lease", Workload::Lease, 100, 0, "leases kept alive, each on a stream of its own"),
    (
        "restart",
        Workload::Restart,
        1_000_000,
        256,
        "so many keys; then memory, and the time from a restart to the first read (needs --start)",
    ),
];

/// One cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// What callers do.
    pub(super) workload: Workload,
    /// How many there are; for `restart`, how many keys.
    pub(super) callers: u32,
    /// Bytes of a value.
    pub(super) value: usize,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = WORKLOADS.iter().find(|row| row.1 == *self);
        f.write_str(row.map_or("?", |row| row.0))
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.workload, self.callers, self.value)
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let Some((_, workload, callers, value, _)) = WORKLOADS.iter().find(|row| row.0 == name) else {
            let names: Vec<&str> = WORKLOADS.iter().map(|row| row.0).collect();
            return Err(format!("{name:?} is no workload: {}", names.join(", ")));
        };
        let mut number = |usual: usize| match parts.next() {
            None => Ok(usual),
            Some(digits) => digits.parse().map_err(|_| format!("{digits:?} in {text:?} is not a number")),
        };
        let callers = u32::try_from(number(*callers as usize)?).map_err(|_| format!("{text:?}: too many callers"))?;
        let value = number(*value)?;
        match parts.next() {
            Some(rest) => Err(format!("{rest:?} after {text:?}: it is WORKLOAD[:CALLERS[:VALUE_BYTES]]")),
            None if callers == 0 => Err(format!("{text:?} has no callers")),
            None => Ok(Self { workload: *workload, callers, value }),
        }
    }
}

/// The cells that are measured when none are named.
pub(super) const USUAL: &[&str] = &[
    "put:1",
    "put:100",
    "put:1000",
    "put:16000",
    "put:100:4096",
    "get:1",
    "get:1000",
    "serializable:1000",
    "mixed:100",
    "cas:100",
    "range:4",
    "watch:1000",
    "lease:100",
];

/// Fewer of them.
pub(super) const QUICK: &[&str] = &["put:1", "put:100", "put:1000", "get:1", "get:1000", "cas:100", "watch:1000"];

/// For `--help`: what there is.
pub(super) fn help() -> String {
    let rows = WORKLOADS.iter().map(|(name, _, callers, value, about)| format!("  {name:<13} {about} [{callers}:{value}]\n"));
    format!("Workloads, with the callers and the bytes of a value when they are not said:\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_read_as_it_is_written() {
        let cell: Cell = "put".parse().unwrap();
        assert_eq!(cell, Cell { workload: Workload::Put, callers: 100, value: 256 });
        assert_eq!("cas:7:10".parse::<Cell>().unwrap().to_string(), "cas:7:10");
        for (bad, why) in
            [("puts", "workload"), ("put:x", "number"), ("put:0", "callers"), ("put:1:2:3", "after"), ("put:99999999999", "many")]
        {
            assert!(bad.parse::<Cell>().unwrap_err().contains(why), "{bad}");
        }
        for text in USUAL.iter().chain(QUICK) {
            text.parse::<Cell>().unwrap();
        }
        assert!(WORKLOADS.iter().all(|row| help().contains(row.4)));
    }
}
