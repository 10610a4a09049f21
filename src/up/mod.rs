//! `kontiki up`: a whole cluster on this machine, for development.
//!
//! | file | what it does |
//! |---|---|
//! | `layout.rs` | paths, ports, and the state file |
//! | `plan.rs` | the command line of each process |
//! | `supervise.rs` | keeps them running |
//! | `forward.rs` | one address for all servers |
//! | `kubeconfig.rs` | credentials for kubectl |
//! | `ready.rs` | waits until the cluster serves, and says how far it is |
//! | `down.rs` | ends it, also when the supervisor has been killed |

pub(crate) mod down;
mod forward;
mod kubeconfig;
pub(crate) mod layout;
mod plan;
pub(crate) mod ready;
mod supervise;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::Flock;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Runtime, UpArgs};
use crate::testbed::{self, Testbed};
use layout::{Layout, State};
use plan::Identities;
use supervise::Book;

/// Set for the process that `--detach` leaves behind.
const DETACHED: &str = "KONTIKI_DETACHED";

/// Runs the command. All processes of the cluster send their traces to `otlp_endpoint`, if there is one.
pub(crate) async fn run(args: &UpArgs, otlp_endpoint: Option<&str>) -> Result<()> {
    let layout = Layout::open(&args.data_dir)?;
    if args.detach && std::env::var_os(DETACHED).is_none() {
        return detach(args, &layout).await;
    }
    let lock = layout.lock()?;
    let turn = layout::turn().await?;
    let state = prepare(args, &layout).await?;
    let outcome = supervise_all(args, &layout, state, otlp_endpoint, turn).await;
    drop(lock);
    outcome
}

/// Decides what the cluster is, ends what an earlier `up` left running, and writes down the result.
async fn prepare(args: &UpArgs, layout: &Layout) -> Result<State> {
    let previous = layout.load()?;
    if let Some(previous) = &previous {
        down::end_children(layout, previous).await?;
    }
    let runtime = choose_runtime(args.runtime)?;
    let mut state = match previous {
        // A member is a promise of a vote: a kept cluster keeps its members.
        Some(kept) if kept.servers.len() == usize::from(args.servers) => {
            let fresh = State::plan(0, usize::from(args.nodes), runtime)?;
            let nodes = if kept.runtime == runtime && kept.nodes.len() == fresh.nodes.len() { kept.nodes.clone() } else { fresh.nodes };
            State { nodes, runtime: runtime.into(), ..kept }
        }
        Some(kept) => bail!(
            "{} holds a cluster of {} servers, not {}: give --servers {0}, or start afresh with `kontiki down --purge`",
            layout.dir.display(),
            kept.servers.len(),
            args.servers
        ),
        None => State::plan(usize::from(args.servers), usize::from(args.nodes), runtime)?,
    };
    state.supervisor = i32::try_from(std::process::id()).context("a process id fits")?;
    layout.save(&state)?;
    Ok(state)
}

fn choose_runtime(wanted: Runtime) -> Result<&'static str> {
    match (wanted, testbed::preflight()) {
        (Runtime::Hollow, _) => Ok("hollow"),
        (_, Ok(())) => Ok("cri"),
        (Runtime::Cri, Err(missing)) => bail!("no real pods on this machine: {missing}"),
        (Runtime::Auto, Err(missing)) => {
            eprintln!("no real pods on this machine, running simulated nodes: {}", missing.to_string().replace('\n', "; "));
            Ok("hollow")
        }
    }
}

async fn supervise_all(args: &UpArgs, layout: &Layout, state: State, otlp: Option<&str>, turn: Flock<std::fs::File>) -> Result<()> {
    let identities = Identities::issue(layout, &state)?;
    kubeconfig::write(layout, &state, &identities.authority, &identities.admin)?;
    let testbed = match state.runtime.as_str() {
        "cri" => Some(testbed(layout, &state).await?),
        _ => None,
    };
    let specs = plan::specs(layout, &state, &identities, testbed.as_ref(), otlp)?;
    let book = Book::new(layout.clone(), state.clone());
    let (stop, stopped) = watch::channel(false);
    let (agents, servers): (Vec<_>, Vec<_>) = specs.into_iter().partition(|spec| spec.name.starts_with("node-"));
    let (stop_servers, servers_stopped) = watch::channel(false);
    let servers: Vec<_> = servers.into_iter().map(|s| tokio::spawn(supervise::keep(s, book.clone(), servers_stopped.clone()))).collect();
    let agents: Vec<_> = agents.into_iter().map(|s| tokio::spawn(supervise::keep(s, book.clone(), stopped.clone()))).collect();
    let targets = state.servers.iter().map(|s| SocketAddr::from((Ipv4Addr::LOCALHOST, s.api))).collect();
    let forwarder = tokio::spawn(forward::run(state.forward, targets));

    let mut signals = Signals::new(args.while_process)?;
    let mut failed = None;
    tokio::select! {
        ready = ready::wait(layout, &state, args.timeout) => match ready {
            Ok(report) => {
                drop(turn);
                report.print(layout, &state);
                tokio::select! {
                    () = signals.wait() => {}
                    broken = forwarder => failed = Some(broken.context("the forwarder panicked").and_then(|r| r)),
                }
            }
            Err(e) => failed = Some(Err(e)),
        },
        () = signals.wait() => {}
    }
    eprintln!("stopping {} agents and {} servers", agents.len(), servers.len());
    let _ = stop.send(true);
    join(agents).await;
    let _ = stop_servers.send(true);
    join(servers).await;
    if let Some(testbed) = testbed {
        tokio::task::spawn_blocking(move || testbed.down()).await.context("cleaning up panicked")??;
    }
    layout.forget_processes()?;
    failed.unwrap_or(Ok(()))
}

async fn testbed(layout: &Layout, state: &State) -> Result<Testbed> {
    let (dir, nodes) = (layout.dir.clone(), state.nodes.len());
    tokio::task::spawn_blocking(move || {
        let testbed = Testbed::plan(&dir, nodes)?;
        testbed.up()?;
        // Nodes need the pause image for every pod, and there may be no registry: both images come out of this binary.
        let archive = dir.join("images.tar");
        crate::image::command::write(&archive)?;
        testbed.import_image(&archive)?;
        Ok(testbed)
    })
    .await
    .context("setting up the nodes panicked")?
}

async fn join(tasks: Vec<tokio::task::JoinHandle<Result<()>>>) {
    for task in tasks {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(error = format!("{e:#}"), "a supervisor gave up"),
            Err(e) => tracing::error!(error = %e, "a supervisor panicked"),
        }
    }
}

/// Starts this very command again as a process of its own, and waits until it reports a cluster that is ready.
async fn detach(args: &UpArgs, layout: &Layout) -> Result<()> {
    layout.lock().context("is it running already? `kontiki status` shows it")?;
    // Says here, where somebody reads it, what the supervisor would say in its log.
    choose_runtime(args.runtime)?;
    let log_path = layout.log("up");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut child = tokio::process::Command::new(std::env::current_exe().context("cannot find this program")?)
        .args(std::env::args_os().skip(1))
        .env(DETACHED, "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share a log file")?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the supervisor")?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
    let started = async {
        loop {
            if let Some(state) = layout.load()?.filter(|s| s.supervisor == pid) {
                return anyhow::Ok(state);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        state = started => {
            let state = state?;
            tokio::select! {
                report = ready::wait(layout, &state, args.timeout) => report?.print(layout, &state),
                status = child.wait() => bail!("the supervisor ended ({}); see {}", status?, log_path.display()),
            }
            Ok(())
        }
        status = child.wait() => bail!("the supervisor ended ({}); see {}", status?, log_path.display()),
    }
}

/// Ctrl-C, what `down` sends, and the end of the process that the cluster is for.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    process: Option<i32>,
}

impl Signals {
    fn new(process: Option<i32>) -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            process,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = until_gone(self.process) => {}
        }
    }
}

async fn until_gone(process: Option<i32>) {
    while process.is_none_or(down::lives) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Addresses at which pods and agents reach the servers.
fn server_ip(testbed: Option<&Testbed>) -> IpAddr {
    testbed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |t| t.host_ip())
}
