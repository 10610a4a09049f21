//! `kontiki`: argument parsing and composition only.

mod agent;
mod bench;
mod cli;
mod image;
mod member;
mod pki;
mod server;
mod snapshot;
mod status;
mod store;
mod telemetry;
mod testbed;
mod up;
mod verify;
mod why;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command};

/// Many small allocations that travel between threads: the system's allocator fragments under them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse_from(store::args::command_line(std::env::args_os()));
    #[cfg(feature = "mutants")]
    if let Err(e) = kontiki_chaos::mutants::from_environment() {
        eprintln!("error: {e}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start threads: {e}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        let (service, instance) = identity(&cli.command)?;
        let _telemetry = telemetry::init(&log_filter(&cli)?, cli.otlp_endpoint.as_deref(), service, &instance)?;
        run(cli.command, cli.otlp_endpoint.as_deref()).await
    });
    // A blocking read of a terminal must not keep a finished program alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a process is called in traces.
fn identity(command: &Command) -> anyhow::Result<(&'static str, String)> {
    Ok(match command {
        Command::Server(args) => ("kontiki-server", args.member.name.clone()),
        Command::Store(args) => ("kontiki-store", args.serve.given()?.get("name").to_owned()),
        Command::Agent(args) => ("kontiki-agent", args.name.clone()),
        _ => ("kontiki", "cli".into()),
    })
}

/// What is logged: as --log says, or else as etcd's --log-level does.
fn log_filter(cli: &Cli) -> anyhow::Result<String> {
    match &cli.command {
        // Simulated members log into this very process; what matters stands in the report.
        Command::Chaos(_) if cli.log == cli::LOG => Ok("error,openraft=off".into()),
        Command::Store(args) if cli.log == cli::LOG => {
            Ok(cli.log.replacen("info", kontiki_store::flags::apply::level(&args.serve.given()?)?, 1))
        }
        _ => Ok(cli.log.clone()),
    }
}

/// The exit code. Not 0: it ran, and what it looked at does not hold.
async fn run(command: Command, otlp_endpoint: Option<&str>) -> anyhow::Result<u8> {
    match command {
        Command::Up(args) => up::run(&args, otlp_endpoint).await?,
        Command::Down(args) => up::down::run(&args).await?,
        Command::Status(args) => status::run(&args).await?,
        Command::Server(args) => server::run(*args).await?,
        Command::Agent(args) => agent::run(*args).await?,
        Command::Store(line) => match line.command {
            Some(cli::StoreCommand::Verify(args)) => return Ok(u8::from(!verify::run(&args)?)),
            None => store::run(&line.serve).await?,
        },
        Command::Why(args) => why::run(&args).await?,
        Command::Member(args) => member::run(&args).await?,
        Command::Chaos(args) => return Ok(kontiki_chaos::cli::run(&args, &tools()).await),
        Command::Bench(args) => bench::run(args).await?,
        Command::Image(args) => image::run(args).await?,
        Command::Snapshot(args) => snapshot::run(*args).await?,
    }
    Ok(0)
}

/// What the chaos harness gets from this program.
fn tools() -> kontiki_chaos::Tools {
    kontiki_chaos::Tools { certify, version: env!("CARGO_PKG_VERSION"), program: None }
}

fn certify(dir: &Path, name: &str, user: &str, group: &str, names: &[String]) -> anyhow::Result<(PathBuf, PathBuf)> {
    let subject = pki::Subject { user: user.to_owned(), groups: vec![group.to_owned()], names: names.to_vec() };
    let files = pki::Authority::open(dir)?.issue(name, &subject)?;
    Ok((files.cert, files.key))
}
