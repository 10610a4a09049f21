//! The simulated world as the place in which planted bugs are looked for.

use super::score::ScoreArgs;

/// Runs `kontiki chaos score`. `true`: all were caught.
///
/// # Errors
/// This build contains no planted bugs; a run without any was accused; the result cannot be written.
#[cfg(not(feature = "mutants"))]
pub fn run(_: &ScoreArgs) -> anyhow::Result<bool> {
    anyhow::bail!(
        "this build contains no planted bugs, and none that is released does. Build one that does, in a folder of its own:\n  \
         cargo run --release --features mutants --target-dir target/mutants -- chaos score"
    )
}

#[cfg(feature = "mutants")]
pub use with_bugs::run;

#[cfg(feature = "mutants")]
mod with_bugs {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use anyhow::{Context as _, Result};
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;

    use super::ScoreArgs;
    use crate::mutants::score::{Arena, Row, Trial, say, score};
    use crate::sim::run::run as simulate;
    use crate::sim::schedule::Schedule;

    /// Seeds of the simulation.
    struct Sim {
        time: Duration,
    }

    fn cpu() -> Duration {
        getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
            let micros = (usage.user_time() + usage.system_time()).num_microseconds();
            Duration::from_micros(u64::try_from(micros).unwrap_or(0))
        })
    }

    impl Arena for Sim {
        fn plant(&mut self, number: u32) {
            kontiki_base::mutant::set(number);
        }

        fn trial(&mut self, seed: u64) -> Result<Trial> {
            let before = cpu();
            let outcome = simulate(&Schedule::from_seed(seed, self.time), false)?;
            let mut broken: BTreeMap<String, String> = BTreeMap::new();
            for violation in outcome.violations {
                broken.entry(violation.check.to_owned()).or_insert(violation.detail);
            }
            Ok(Trial { broken, cpu: cpu().saturating_sub(before) })
        }

        fn reached(&self) -> u64 {
            kontiki_base::mutant::reached()
        }
    }

    /// Runs `kontiki chaos score`. `true`: all were caught.
    ///
    /// # Errors
    /// A run without any planted bug was accused; the result cannot be written.
    pub fn run(args: &ScoreArgs) -> Result<bool> {
        let mut sim = Sim { time: args.time.0 };
        eprintln!("{} seeds without any planted bug, then each bug until it is caught", args.control);
        let score = score(args, &mut sim, |row: &Row| {
            say(row);
            if !row.seen.is_empty() {
                println!("     {}", row.seen.chars().take(160).collect::<String>());
            }
        })?;
        println!("\n{}", score.table());
        let (caught, all) = (score.caught(), score.rows.len());
        println!("score: {caught} of {all} planted bugs caught ({} %)", 100 * caught / all.max(1));
        if let Some(path) = &args.json {
            std::fs::write(path, serde_json::to_vec_pretty(&score)?).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(caught == all)
    }
}
#[cfg(all(test, feature = "mutants"))]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ScoreArgs,
    }

    /// The score without the rest of the program: `KONTIKI_SCORE="--only M08" cargo test -p kontiki-chaos --features mutants -- --ignored
    /// --nocapture planted`.
    #[test]
    #[ignore = "takes as long as the command"]
    fn planted_bugs_are_found() {
        let line = std::env::var("KONTIKI_SCORE").unwrap_or_default();
        let line = Line::parse_from(std::iter::once("score").chain(line.split_whitespace()));
        assert!(run(&line.args).unwrap(), "some survived");
    }
}
