//! What simulated nodes really ran, from the ledgers that they keep: not what the API says of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::history::{At, NodeFact, NodeRecord};

/// The lines of a ledger that matter here. Times are milliseconds since the Unix epoch.
#[derive(Debug, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Line {
    Container {
        id: String,
        sandbox: String,
        uid: String,
        pod: String,
        name: String,
    },
    Started {
        id: String,
        at_ms: i64,
        end: Option<(i64, i32)>,
    },
    Ends {
        id: String,
        at_ms: i64,
    },
    /// A sandbox, and with it its containers.
    Stopped {
        id: String,
        at_ms: i64,
    },
    /// A sandbox or a container.
    Gone {
        id: String,
        at_ms: i64,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug)]
struct Container {
    sandbox: String,
    uid: String,
    pod: String,
    name: String,
    started: Option<i64>,
    ended: i64,
}

/// Clocks of a moment: the wall clock's milliseconds, and the run's nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Milliseconds since the Unix epoch.
    pub(crate) wall_ms: i64,
    /// Nanoseconds since the run began.
    pub(crate) at: At,
}

impl Clocks {
    /// A time of the wall clock on the run's; before the run is its beginning.
    fn on_run(self, wall_ms: i64) -> At {
        let ago = i128::from(self.wall_ms - wall_ms) * 1_000_000;
        u64::try_from(i128::from(self.at) - ago).unwrap_or(0)
    }
}

/// The facts in a node's ledger, in order of time, up to `now`. Times are exact to a millisecond; ends are taken a millisecond early, so
/// that nobody is accused of what rounding did.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read(path: &Path, node: &str, now: Clocks) -> std::io::Result<Vec<NodeRecord>> {
    let text = std::fs::read_to_string(path)?;
    let mut containers: BTreeMap<String, Container> = BTreeMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
        match line {
            Line::Container { id, sandbox, uid, pod, name } => {
                containers.insert(id, Container { sandbox, uid, pod, name, started: None, ended: i64::MAX });
            }
            Line::Started { id, at_ms, end } => {
                if let Some(container) = containers.get_mut(&id) {
                    container.started = Some(at_ms);
                    container.ended = container.ended.min(end.map_or(i64::MAX, |(at, _)| at));
                }
            }
            Line::Ends { id, at_ms } => containers.get_mut(&id).into_iter().for_each(|c| c.ended = c.ended.min(at_ms)),
            Line::Stopped { id, at_ms } | Line::Gone { id, at_ms } => {
                let hit = containers.iter_mut().filter(|(own, c)| **own == id || c.sandbox == id);
                hit.for_each(|(_, c)| c.ended = c.ended.min(at_ms));
            }
            Line::Other => {}
        }
    }
    let mut facts = Vec::new();
    let mut note = |at_ms, fact| facts.push(NodeRecord { at: now.on_run(at_ms), node: node.to_owned(), fact });
    for Container { uid, pod, name, started, ended, .. } in containers.into_values() {
        let Some(started) = started else { continue };
        note(started, NodeFact::Start { uid: uid.clone(), pod, container: name.clone() });
        if ended <= now.wall_ms {
            note((ended - 1).max(started), NodeFact::Exit { uid, container: name });
        }
    }
    facts.sort_by_key(|record| record.at);
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_says_what_ran_when() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let container = |id: &str| {
            format!(
                r#"{{"what":"container","id":"{id}","sandbox":"s{id}","config":"","createdMs":1,"uid":"u{id}","pod":"d/{id}","name":"main"}}"#
            )
        };
        let lines = [
            r#"{"what":"boot","id":"b","atMs":1000}"#.to_owned(),
            container("1"),
            container("2"),
            container("3"),
            r#"{"what":"started","id":"1","atMs":1010,"end":null}"#.into(),
            r#"{"what":"started","id":"2","atMs":1020,"end":[1500,0]}"#.into(),
            r#"{"what":"ends","id":"2","atMs":1100,"code":143}"#.into(),
            r#"{"what":"stopped","id":"s1","atMs":1200}"#.into(),
            r#"{"what":"gone","id":"s1","atMs":1300}"#.into(),
            r#"{"what":"started","id":"3","atMs":1400,"end":[9000,0]}"#.into(),
            r#"{"what":"sta"#.into(),
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let facts = read(&path, "n", Clocks { wall_ms: 2000, at: 1_000_000_000 }).unwrap();
        let facts: Vec<(u64, &str, bool)> = facts
            .iter()
            .map(|r| match &r.fact {
                NodeFact::Start { uid, .. } => (r.at / 1_000_000, uid.as_str(), true),
                NodeFact::Exit { uid, .. } => (r.at / 1_000_000, uid.as_str(), false),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(facts, [(10, "u1", true), (20, "u2", true), (99, "u2", false), (199, "u1", false), (400, "u3", true)]);
    }
}
