//! The smallest schedule that still fails: delta debugging (Zeller, Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002)
//! over the faults, then a shorter run.
//!
//! Because every thing that draws random numbers has a stream of its own, what is left of a schedule does the same without the rest.

use super::schedule::{Entry, Schedule};

/// Runs that shrinking may cost.
pub const BUDGET: usize = 120;

/// Makes a failing schedule smaller while `fails` says so, asking at most [`BUDGET`] times. Returns it with the number of times asked.
pub fn shrink(schedule: &Schedule, mut fails: impl FnMut(&Schedule) -> bool) -> (Schedule, usize) {
    let mut asked = 0;
    let mut still = |candidate: &Schedule| {
        asked += 1;
        asked <= BUDGET && fails(candidate)
    };
    let mut best = ddmin(schedule, &mut still);
    // Nothing happens after the last fault: the run may end there.
    while best.run_ms > 1_000 {
        let shorter = Schedule { run_ms: best.run_ms * 2 / 3, ..best.clone() };
        if shorter.faults.iter().any(|entry| entry.at_ms >= shorter.run_ms) || !still(&shorter) {
            break;
        }
        best = shorter;
    }
    for clients in [1, 2, 3] {
        let mut fewer = best.clone();
        fewer.knobs.clients = clients;
        if clients < best.knobs.clients && still(&fewer) {
            best = fewer;
            break;
        }
    }
    (best, asked.min(BUDGET))
}

fn ddmin(schedule: &Schedule, still: &mut impl FnMut(&Schedule) -> bool) -> Schedule {
    let with = |faults: Vec<Entry>| Schedule { faults, ..schedule.clone() };
    let empty = with(Vec::new());
    if still(&empty) {
        return empty;
    }
    let mut faults = schedule.faults.clone();
    let mut parts = 2;
    while faults.len() > 1 {
        let size = faults.len().div_ceil(parts);
        let without =
            |at: usize| -> Vec<Entry> { faults.iter().enumerate().filter(|(i, _)| i / size != at).map(|(_, entry)| *entry).collect() };
        let chunks = faults.len().div_ceil(size);
        match (0..chunks).map(without).find(|rest| !rest.is_empty() && still(&with(rest.clone()))) {
            Some(rest) => {
                faults = rest;
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(faults.len()),
        }
    }
    with(faults)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_does_not_matter_goes() {
        let schedule = (0..100).map(|seed| Schedule::from_seed(seed, Duration::from_secs(60))).find(|s| s.faults.len() > 30).unwrap();
        let guilty = [schedule.faults[3], schedule.faults[17]];
        let fails = |s: &Schedule| guilty.iter().all(|entry| s.faults.contains(entry));
        let (small, asked) = shrink(&schedule, fails);
        assert_eq!(small.faults, guilty);
        assert!(small.run_ms < schedule.run_ms && small.knobs.clients <= schedule.knobs.clients && asked <= BUDGET);
    }

    #[test]
    fn a_failure_without_faults_has_none() {
        let schedule = Schedule::from_seed(1, Duration::from_secs(60));
        assert_eq!(shrink(&schedule, |_| true).0.faults, []);
        assert_eq!(shrink(&schedule, |_| false).0, schedule, "what does not fail again stays as it is");
    }
}
