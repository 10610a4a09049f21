//! Faults of processes: crash, pause, stop, rolling restart, and the same for nodes.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Miss, Proof, Stage, Victims, views};
use crate::load::kv::channel;
use crate::real::procs::{Proc, how};

/// A process is given so long to end.
const END: Duration = Duration::from_secs(20);

/// The keeper waits so much longer than the fault lasts before it undoes it.
const LEASE: Duration = Duration::from_secs(10);

/// A server that was started again must serve within this.
const BACK: Duration = Duration::from_secs(60);

/// Kills, and says how that is known.
async fn kill(proc: &Proc) -> Proof {
    let pid = proc.state().pid.ok_or_else(|| Miss::Skipped(format!("{} does not run", proc.name())))?;
    let status = proc.end(Signal::SIGKILL, END).await?;
    if status.signal() == Some(9) {
        Ok(format!("pid {pid} ended by signal 9"))
    } else {
        Err(Miss::Unproved(format!("pid {pid} ended by {}", how(status))))
    }
}

/// Waits until the kernel says that a process is stopped.
async fn stopped(stage: &Stage, proc: &Proc) -> Result<i32, Miss> {
    let pid = proc.signal(Signal::SIGSTOP).map_err(Miss::Skipped)?;
    for _ in 0..200 {
        if proc.letter() == Some('T') {
            return Ok(pid);
        }
        stage.run.env.sleep(Duration::from_millis(5)).await;
    }
    Err(Miss::Unproved(format!("pid {pid} is not stopped, the kernel says {:?}", proc.letter())))
}

fn merge(proofs: Vec<Proof>) -> Proof {
    let all: Result<Vec<String>, Miss> = proofs.into_iter().collect();
    Ok(all?.join("; "))
}

impl Stage {
    fn procs(&self, victims: &Victims) -> Vec<Proc> {
        let servers = victims.servers.iter().map(|s| self.world.servers[*s].proc.clone());
        servers.chain(victims.nodes.iter().map(|n| self.world.nodes[*n].proc.clone())).collect()
    }

    pub(super) async fn crash(&self, victims: &Victims, hold: Duration) -> Proof {
        let procs = self.procs(victims);
        let proofs = futures::future::join_all(procs.iter().map(kill)).await;
        self.run.env.sleep(hold).await;
        procs.iter().for_each(Proc::up);
        merge(proofs)
    }

    pub(super) async fn agent_crash(&self, victims: &Victims, hold: Duration) -> Proof {
        self.crash(victims, hold).await
    }

    pub(super) async fn pause(&self, victims: &Victims, hold: Duration, id: u32) -> Proof {
        let mut proofs = Vec::new();
        let mut leases = Vec::new();
        for proc in self.procs(victims) {
            let Some(pid) = proc.state().pid else { continue };
            // The lease first: whoever dies between the two lines, the process goes on.
            let lease = self.world.keeper.arm(&format!("pause-{id}-{}", proc.name()), hold + LEASE, &["kill", "-CONT", &pid.to_string()]);
            let proof = stopped(self, &proc).await;
            leases.push((proc, lease));
            proofs.push(proof.map(|pid| format!("pid {pid} is in state T")));
        }
        for server in &victims.servers {
            proofs.push(self.silent(*server).await);
        }
        self.run.env.sleep(hold).await;
        for (proc, lease) in leases {
            let _ = proc.signal(Signal::SIGCONT);
            self.world.keeper.disarm(lease);
        }
        merge(proofs)
    }

    /// A server answers nothing.
    pub(super) async fn silent(&self, server: usize) -> Proof {
        use kontiki_proto::etcd::etcdserverpb::StatusRequest;
        use kontiki_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
        let link = channel(&self.run.members[server])?;
        let asked = MaintenanceClient::new(link);
        let mut asked = asked;
        match tokio::time::timeout(Duration::from_millis(300), asked.status(StatusRequest {})).await {
            Ok(Ok(_)) => Err(Miss::Unproved("it answers".into())),
            Ok(Err(_)) | Err(_) => Ok("it answers nothing".into()),
        }
    }

    pub(super) async fn stop(&self, victims: &Victims, hold: Duration) -> Proof {
        let procs = self.procs(victims);
        let env = self.run.env.as_ref();
        let stops = procs.iter().map(|proc| async move {
            let start = env.now_mono();
            let status = proc.end(Signal::SIGTERM, END).await?;
            let took = env.now_mono().since(start).as_millis();
            if status.code() == Some(0) {
                Ok(format!("{} ended with exit code 0 in {took} ms", proc.name()))
            } else {
                Err(Miss::Unproved(how(status)))
            }
        });
        let proofs = futures::future::join_all(stops).await;
        self.run.env.sleep(hold).await;
        procs.iter().for_each(Proc::up);
        merge(proofs)
    }

    pub(super) async fn rolling_restart(&self, victims: &Victims, hold: Duration) -> Proof {
        let mut proofs = Vec::new();
        for server in &victims.servers {
            let one = Victims { servers: vec![*server], nodes: vec![] };
            let before = self.world.servers[*server].proc.state().pid;
            proofs.push(self.stop(&one, hold).await);
            if !views::serves(self.run.env.as_ref(), &self.run, &self.views, *server, BACK).await {
                return Err(Miss::Unproved(format!(
                    "{} does not serve {} s after its restart",
                    self.world.servers[*server].name,
                    BACK.as_secs()
                )));
            }
            if self.world.servers[*server].proc.state().pid == before {
                return Err(Miss::Unproved("it is the same process as before".into()));
            }
        }
        merge(proofs)
    }

    pub(super) async fn node_freeze(&self, victims: &Victims, hold: Duration, id: u32) -> Proof {
        let links: Vec<(String, String)> = victims
            .nodes
            .iter()
            .flat_map(|n| self.world.servers.iter().map(|s| (self.world.nodes[*n].short.clone(), s.short.clone())))
            .flat_map(|(n, s)| [(n.clone(), s.clone()), (s, n)])
            .collect();
        if let Some(net) = &self.world.net {
            net.cut(&links, hold + LEASE)?;
        }
        let proof = self.pause(victims, hold, id).await;
        if let Some(net) = &self.world.net {
            net.heal(&links)?;
        }
        proof
    }
}
