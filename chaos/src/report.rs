//! The table and the verdict.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::check::Violation;
use crate::cli::RealArgs;
use crate::history::{Answer, At, History};

/// A fault, and what was seen of it.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it was injected.
    pub at: At,
    /// On what.
    pub victim: String,
    /// More about it.
    pub detail: String,
    /// When a member was first seen to follow a new leader.
    pub leader_back: Option<At>,
}

/// What a run proved.
#[derive(Debug)]
pub struct Report {
    plan: String,
    seconds: f64,
    outcomes: BTreeMap<&'static str, usize>,
    changes: usize,
    rows: Vec<Row>,
    /// The longest time without an acknowledged write outside of faults.
    calm_gap: u64,
    converged: Option<Duration>,
    /// Everything that must not have happened.
    pub violations: Vec<Violation>,
}

#[derive(Debug)]
struct Row {
    fault: Fault,
    /// Longest time without an acknowledged write, from just before the fault to the next one.
    write_gap: u64,
}

impl Report {
    /// Computes the figures of a run.
    pub fn new(args: &RealArgs, history: &History, faults: Vec<Fault>, converged: Option<Duration>, violations: Vec<Violation>) -> Self {
        let mut outcomes: BTreeMap<&'static str, usize> = BTreeMap::new();
        for op in &history.ops {
            *outcomes.entry(name(&op.answer)).or_default() += 1;
        }
        let mut acks: Vec<At> = history.ops.iter().filter(|op| matches!(op.answer, Answer::Written { .. })).map(|op| op.ret).collect();
        acks.sort_unstable();
        let end = history.ops.iter().map(|op| op.ret).max().unwrap_or(0);
        let first = faults.first().map_or(end, |f| f.at);
        let until = faults.iter().skip(1).map(|f| f.at).chain([end]).collect::<Vec<_>>();
        let rows = faults.into_iter().zip(until);
        let rows = rows.map(|(fault, until)| Row { write_gap: longest_gap(&acks, fault.at, until), fault }).collect();
        Self {
            plan: format!("{:?}", args.plan),
            seconds: end as f64 / 1e9,
            outcomes,
            changes: history.changes.len(),
            rows,
            calm_gap: longest_gap(&acks, 0, first),
            converged,
            violations,
        }
    }

    /// Prints it for people.
    pub fn print(&self) {
        let ms = |ns: u64| ns / 1_000_000;
        println!("plan {}, {:.0} s", self.plan, self.seconds);
        println!("  at s     victim     no leader ms   no write ms");
        for row in &self.rows {
            let leader = row.fault.leader_back.map_or_else(|| "never".to_owned(), |back| ms(back - row.fault.at).to_string());
            println!("  {:<7.1}  {:<9}  {leader:>12}  {:>12}", row.fault.at as f64 / 1e9, row.fault.victim, ms(row.write_gap));
        }
        let mut leaders: Vec<u64> = self.rows.iter().filter_map(|r| r.fault.leader_back.map(|b| b - r.fault.at)).collect();
        let mut writes: Vec<u64> = self.rows.iter().map(|r| r.write_gap).collect();
        if let (Some((lm, lw)), Some((wm, ww))) = (median_and_worst(&mut leaders), median_and_worst(&mut writes)) {
            println!("  {} faults: without leader median {} ms, worst {} ms", self.rows.len(), ms(lm), ms(lw));
            println!(
                "  without a successful write: median {} ms, worst {} ms; {} ms before the first fault",
                ms(wm),
                ms(ww),
                ms(self.calm_gap)
            );
        }
        let total: usize = self.outcomes.values().sum();
        let outcomes: Vec<String> = self.outcomes.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("  {total} operations ({}), {} changes", outcomes.join(", "), self.changes);
        match self.converged {
            Some(took) => println!("  Deployment complete {:.1} s after the last fault", took.as_secs_f64()),
            None => println!("  Deployment NOT complete"),
        }
        for violation in self.violations.iter().take(20) {
            println!("  VIOLATION {violation}");
        }
        if self.violations.len() > 20 {
            println!("  … and {} more", self.violations.len() - 20);
        }
        println!("verdict: {}", self.verdict());
    }

    fn verdict(&self) -> String {
        let lost = self.violations.iter().filter(|v| v.check == "lost-write").count();
        let order = ["phantom", "twice", "stale-read", "wrong-compare", "real-time", "revision-order", "lost-write"];
        let linear = !self.violations.iter().any(|v| order.contains(&v.check));
        let word = if linear { "linearizable" } else { "NOT LINEARIZABLE" };
        let rest = self.violations.iter().filter(|v| !order.contains(&v.check)).count();
        let rest = if rest > 0 { format!(", {rest} other violations") } else { String::new() };
        format!("{word}, {lost} lost{rest}")
    }
}

fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Written { .. } => "written",
        Answer::Read { .. } => "read",
        Answer::CompareFailed { .. } => "compare false",
        Answer::NothingDeleted { .. } => "nothing deleted",
        Answer::Did { .. } => "done",
        Answer::Txn { .. } => "transaction",
        Answer::Lease { .. } => "lease",
        Answer::Compacted { .. } => "compacted",
        Answer::Unknown { .. } => "unknown",
        Answer::Refused { .. } => "refused",
    }
}

/// The longest time without an acknowledgement that touches `from..until`; the last one before `from` counts as its beginning.
fn longest_gap(acks: &[At], from: At, until: At) -> u64 {
    let begin = acks.partition_point(|at| *at < from);
    let mut last = if begin > 0 { acks[begin - 1] } else { from };
    let mut longest = 0;
    for at in acks[begin..].iter().copied().take_while(|at| *at < until).chain([until]) {
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    longest
}

fn median_and_worst(values: &mut [u64]) -> Option<(u64, u64)> {
    values.sort_unstable();
    Some((*values.get(values.len() / 2)?, *values.last()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_measured_across_the_fault() {
        let acks = [10, 20, 90, 95, 300];
        assert_eq!(longest_gap(&acks, 25, 100), 70, "from the last write before the fault");
        assert_eq!(longest_gap(&acks, 96, 400), 205);
        assert_eq!(longest_gap(&[], 5, 9), 4);
    }

    #[test]
    fn median_and_worst_of_nothing_is_nothing() {
        assert_eq!(median_and_worst(&mut []), None);
        assert_eq!(median_and_worst(&mut [3, 1, 2]), Some((2, 3)));
    }
}
