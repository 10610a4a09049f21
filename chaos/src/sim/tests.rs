//! The simulation held to its own promises.

use std::process::Command;
use std::time::Duration;

use super::run::{Outcome, run};
use super::schedule::{Entry, Fault, Schedule, Torn, Trigger, Who};

const TIME: Duration = Duration::from_secs(3);

fn short(seed: u64) -> Outcome {
    run(&Schedule::from_seed(seed, TIME), false).unwrap()
}

/// In a process of its own, for [`the_same_seed_is_the_same_run_in_any_process`].
#[test]
#[ignore = "the half of another test"]
fn prints_a_hash() {
    let seed = std::env::var("KONTIKI_SIM_SEED").unwrap().parse().unwrap();
    // Another run before it: nothing of it may be left.
    short(seed + 1);
    println!("hash {:032x}", short(seed).hash);
}

#[test]
fn the_same_seed_is_the_same_run_in_any_process() {
    let seed = 11;
    let here = format!("hash {:032x}", short(seed).hash);
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", "sim::tests::prints_a_hash", "--ignored", "--nocapture"]).env("KONTIKI_SIM_SEED", seed.to_string());
    let there = String::from_utf8(other.output().unwrap().stdout).unwrap();
    assert!(there.contains(&here), "{here} here, and there:\n{there}");
    assert_ne!(short(seed + 2).hash, short(seed).hash);
}

#[test]
fn seeds_hold() {
    for seed in 0..2 {
        let outcome = short(seed);
        assert_eq!(outcome.violations, [], "kontiki chaos replay {seed} --time {}s", TIME.as_secs());
        assert!(outcome.ops["answered"] > 20 && outcome.seen.committed > 20, "seed {seed} saw next to nothing: {:?}", outcome.ops);
    }
}

/// `chaos/seeds`: what was found once stays found.
#[test]
fn schedules_of_bugs_that_were_found_hold() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let schedules: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
    assert!(!schedules.is_empty());
    for path in schedules {
        let schedule: Schedule = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(run(&schedule, false).unwrap().violations, [], "kontiki chaos replay {}", path.display());
    }
}

/// A disk that says that it has synced, and has not.
#[test]
fn a_store_that_does_not_keep_what_it_acknowledges_is_caught() {
    let mut schedule = Schedule::from_seed(5, TIME);
    schedule.knobs.members = 1;
    schedule.faults =
        vec![Entry { at_ms: 2_000, on: Trigger::Now, fault: Fault::LyingDisk { who: Who::Member(0), torn: Torn::Nothing }, for_ms: 500 }];
    schedule.beyond_model = true;
    let outcome = run(&schedule, false).unwrap();
    assert!(!outcome.violations.is_empty(), "acknowledged writes are gone, and nobody says so");
}

#[derive(Debug, clap::Parser)]
enum Line {
    Sim(super::cli::SimArgs),
    Replay(super::cli::ReplayArgs),
}

/// The commands without the rest of the program, which takes longer to build: `KONTIKI_CHAOS="sim --seeds 5" cargo test -p kontiki-chaos
/// -- --ignored --nocapture a_command_line`.
#[test]
#[ignore = "takes as long as the command"]
fn a_command_line() {
    use clap::Parser as _;
    let line = std::env::var("KONTIKI_CHAOS").unwrap_or_default();
    let held = match Line::parse_from(std::iter::once("chaos").chain(line.split_whitespace())) {
        Line::Sim(args) => super::cli::sim(&args),
        Line::Replay(args) => super::cli::replay(&args),
    };
    assert!(held.unwrap(), "something was violated");
}

/// The whole control plane, twice: API servers, controllers, scheduler, agents and their clients do the same.
#[test]
fn the_control_plane_is_the_same_twice_and_works() {
    let schedule = Schedule::with_nodes(3, Duration::from_secs(4), 3);
    let (one, two) = (run(&schedule, false).unwrap(), run(&schedule, false).unwrap());
    assert_eq!((one.hash, one.events), (two.hash, two.events));
    assert_eq!(one.violations, [], "kontiki chaos replay 3 --time 4s --nodes 3");
    assert!(one.ops["answered by the API"] > 0, "{:?}", one.ops);
    // Pods were bound, ran, were told of, and converged.
    for check in ["K1", "K2", "K4", "K9", "K11"] {
        assert!(one.checks[check], "{check} saw nothing: {:?}", one.checks);
    }
}
