//! `kontiki chaos check`: judges a recorded history again. `kontiki chaos report`: makes its report again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{CHECKS, Judge, Outcome, Verdict, judge};
use crate::history::History;
use crate::report::files;

/// `kontiki chaos check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A run's folder, or its history
    #[arg(value_name = "DIR|FILE")]
    pub what: PathBuf,

    /// Write the report into this folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
}

/// `kontiki chaos report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A run's folder, or its history
    #[arg(value_name = "DIR|FILE")]
    pub what: PathBuf,

    /// Where the report goes: report.html, report.json and junit.xml
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Runs the command. `true`: everything held.
///
/// # Errors
/// There is no history there, or it is damaged.
pub fn check(args: &CheckArgs) -> Result<bool> {
    let (history, outcomes) = read(&args.what)?;
    print!("{}", table(&outcomes));
    if let Some(dir) = &args.report {
        write(dir, &history, &outcomes)?;
    }
    let failed = outcomes.iter().any(|o| !o.violations().is_empty());
    if history.ended.is_none() {
        println!("the harness was killed before the run ended: only what it had recorded was judged");
    }
    println!("verdict: {}", if failed { "VIOLATED" } else { "nothing was violated" });
    Ok(!failed)
}

/// Runs the command.
///
/// # Errors
/// There is no history there, it is damaged, or the report cannot be written.
pub fn report(args: &ReportArgs) -> Result<bool> {
    let (history, outcomes) = read(&args.what)?;
    let beside = if args.what.is_dir() { args.what.clone() } else { args.what.parent().unwrap_or(Path::new(".")).to_path_buf() };
    write(args.out.as_deref().unwrap_or(&beside), &history, &outcomes)?;
    Ok(true)
}

fn read(what: &Path) -> Result<(History, Vec<Outcome>)> {
    let history = History::read(what)?;
    let outcomes = judge(&history);
    Ok((history, outcomes))
}

fn write(dir: &Path, history: &History, outcomes: &[Outcome]) -> Result<()> {
    files::write(dir, history, outcomes).with_context(|| format!("cannot write the report into {}", dir.display()))?;
    println!("report: {}", dir.join(files::HTML).display());
    Ok(())
}

/// A line for each check, and the first violations of each.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    for outcome in outcomes {
        let counts: Vec<String> = outcome.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let word = match &outcome.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail(_) => "FAIL",
            Verdict::Vacuous(_) => "vacuous",
        };
        out += &format!("{word:<8} {:<18} {}\n", outcome.check, counts.join(", "));
        for violation in outcome.violations().iter().take(3) {
            out += &format!("         {violation}\n");
        }
        let more = outcome.violations().len().saturating_sub(3);
        if more > 0 {
            out += &format!("         … and {more} more\n");
        }
    }
    out
}

/// All checks with their predicates, and the planted bugs: for `chaos list`.
pub fn list() {
    println!("checks");
    for check in CHECKS {
        println!("  {:<18} {}", check.name, check.predicate);
        match check.judge {
            Judge::NotYet(why) => println!("  {:<18} NOT JUDGED: {why}", ""),
            Judge::World => println!("  {:<18} (seen by the world that runs the plan)", ""),
            Judge::History(_) => {}
        }
    }
    println!("rules within checks");
    for (name, rule) in super::Violation::CHECKS {
        println!("  {name:<18} {rule}");
    }
    println!("planted bugs (kontiki chaos score)");
    for mutant in crate::mutants::CATALOGUE {
        println!("  {:<5} {} ({}; {})", mutant.id, mutant.what, mutant.origin, mutant.site);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Answer, Ask, Change, Op};

    #[test]
    fn a_recorded_run_is_judged_again() {
        let dir = tempfile::tempdir().unwrap();
        let ask = Ask::Put { key: "k".into(), value: "v".into() };
        let op = Op { client: 0, member: 0, call: 1, ret: 2, ask, answer: Answer::Written { revision: 2 } };
        let good = History { ops: vec![op], changes: vec![Change::put(2, "k", "v")], ended: Some(3), ..History::default() };
        let bad = History { changes: vec![], ..good.clone() };
        for (history, holds) in [(good, true), (bad, false)] {
            history.write(dir.path()).unwrap();
            let args = CheckArgs { what: dir.path().into(), report: Some(dir.path().join("report")) };
            assert_eq!(check(&args).unwrap(), holds);
            assert!(dir.path().join("report").join(files::HTML).exists());
        }
        assert!(check(&CheckArgs { what: dir.path().join("none"), report: None }).is_err());
    }
}
