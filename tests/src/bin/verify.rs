//! `cargo verify`: everything that must hold before a change lands. It never writes into the tree.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// What is run, in order; the first failure ends it.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--locked", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]),
    // The binary first: tests from outside start it.
    ("binary", &["build", "--locked", "--package", "kontiki", "--quiet"]),
    ("tests", TESTS),
    ("simulations", SIMULATIONS),
    ("clusters", CLUSTERS),
];

/// The schedules of bugs that were found once, then the first seeds, the same in every run: a change is judged by what it does, not by luck.
/// `kontiki chaos sim --fresh` looks for what nobody has seen yet.
const SIMULATIONS: &[&str] = &[
    "run",
    "--locked",
    "--quiet",
    "--package",
    "kontiki",
    "--",
    "chaos",
    "sim",
    "--regress",
    "chaos/seeds",
    "--from",
    "1",
    "--seeds",
    "24",
    "--time",
    "8s",
    "--out",
    "target",
];

/// The same for whole clusters: API servers, controllers, scheduler and nodes.
const CLUSTERS: &[&str] = &[
    "run",
    "--locked",
    "--quiet",
    "--package",
    "kontiki",
    "--",
    "chaos",
    "sim",
    "--nodes",
    "4",
    "--from",
    "1",
    "--seeds",
    "6",
    "--time",
    "8s",
    "--out",
    "target",
];

const TESTS: &[&str] = &["nextest", "run", "--locked", "--workspace", "--no-fail-fast"];
const TESTS_WITHOUT_NEXTEST: &[&str] = &["test", "--locked", "--workspace", "--no-fail-fast"];

fn main() -> ExitCode {
    let has_nextest = cargo(&["nextest", "--version"]).output().is_ok_and(|o| o.status.success());
    let mut times = Vec::new();
    for (name, args) in STEPS {
        let args = if *args == TESTS && !has_nextest { TESTS_WITHOUT_NEXTEST } else { args };
        eprintln!("verify: {name}: cargo {}", args.join(" "));
        let (ok, took) = timed(|| cargo(args).status().is_ok_and(|s| s.success()));
        times.push(format!("{name} {:.0} s", took.as_secs_f64()));
        if !ok {
            eprintln!("verify: {name} failed after {:.0} s", took.as_secs_f64());
            return ExitCode::FAILURE;
        }
    }
    eprintln!("verify: all good ({})", times.join(", "));
    ExitCode::SUCCESS
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

#[allow(clippy::disallowed_methods, reason = "a stopwatch for people")]
fn timed<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = f();
    (value, start.elapsed())
}
