//! Loss of power: everything that was not synced is gone.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Miss, Proof, Stage, Victims};
use crate::fault::Unsynced;
use crate::plan::Dice;

/// A killed process is gone within this, even one that waits for its disk.
const END: Duration = Duration::from_secs(30);

impl Stage {
    /// The order is that of a real loss of power as seen from outside: nothing is sent any more, nothing runs any more, and then nothing
    /// reaches the disk any more. A process that saw its disk fail could still say something about it; this one is stopped before.
    pub(super) async fn power_loss(&self, victims: &Victims, unsynced: Unsynced, hold: Duration, dice: &mut Dice, id: u32) -> Proof {
        let servers: Vec<_> = victims.servers.iter().map(|s| &self.world.servers[*s]).collect();
        if let Some(server) = servers.iter().find(|s| !s.disk.can_lose_power()) {
            let why = self.world.lacks.disk.clone().unwrap_or_else(|| "its disk is a plain folder".into());
            return Err(Miss::Skipped(format!("{}: {why}", server.name)));
        }
        let others: Vec<String> =
            self.world.servers.iter().map(|s| s.short.clone()).chain([crate::real::net::CLIENTS.to_owned()]).collect();
        let links: Vec<(String, String)> =
            servers.iter().flat_map(|s| others.iter().map(|o| (s.short.clone(), o.clone()))).filter(|(a, b)| a != b).collect();
        if let Some(net) = &self.world.net {
            net.cut(&links, hold + END)?;
        }
        let mut sentinels = Vec::new();
        for server in &servers {
            server.proc.down();
            let pid = server.proc.signal(Signal::SIGSTOP).map_err(Miss::Skipped)?;
            sentinels.push(server.disk.write_sentinel(&id.to_string())?);
            server.disk.shut_down()?;
            server.proc.signal(Signal::SIGKILL)?;
            server.proc.gone(pid, END).await?;
        }
        let mut lost = (0, 0);
        for server in &servers {
            let disk = server.disk.clone();
            let mut own = Dice::new(dice.next_u64(), "power");
            let on = tokio::task::spawn_blocking(move || disk.power_on(unsynced, &mut own)).await??;
            lost = on.map_or(lost, |(l, k)| (lost.0 + l, lost.1 + k));
        }
        let proofs: Result<Vec<String>, String> = sentinels.iter().map(|s| s.prove()).collect();
        self.run.env.sleep(hold).await;
        if let Some(net) = &self.world.net {
            net.heal(&links)?;
        }
        servers.iter().for_each(|s| s.proc.up());
        proofs.map_err(Miss::Unproved)?;
        let bytes = if lost == (0, 0) { String::new() } else { format!("; {} bytes lost, {} unsynced ones kept", lost.0, lost.1) };
        Ok(format!("the synced sentinel is there, the unsynced one is gone{bytes}"))
    }
}
