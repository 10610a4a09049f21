//! Faults of disks: all but power-loss need the lossy file system under the server's data.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Miss, Proof, Stage, Victims};
use crate::fault::Unsynced;
use crate::plan::Dice;
use crate::real::lossy::{Bites, LossyFs, Switches};

impl Stage {
    fn lossy(&self, victims: &Victims) -> Result<(usize, Arc<LossyFs>), Miss> {
        let [server] = victims.servers.as_slice() else { return Err(Miss::Skipped("one server at a time".into())) };
        let why = || self.world.lacks.disk.clone().unwrap_or_else(|| "its disk is not the lossy file system (topology.disk: fuse)".into());
        let fs = self.world.servers[*server].disk.lossy().cloned().ok_or_else(|| Miss::Skipped(why()))?;
        Ok((*server, fs))
    }

    /// Sets a switch for a while, and says how often it bit.
    async fn bite(&self, fs: &LossyFs, set: impl FnOnce(&mut Switches), bites: fn(&Bites) -> &AtomicU64, hold: Duration) -> u64 {
        let before = bites(fs.bites()).load(Ordering::Relaxed);
        fs.set(set);
        self.run.env.sleep(hold).await;
        fs.set(|s| *s = Switches::default());
        bites(fs.bites()).load(Ordering::Relaxed).saturating_sub(before)
    }

    pub(super) async fn fsync_eio(&self, victims: &Victims, hold: Duration) -> Proof {
        let (_, fs) = self.lossy(victims)?;
        let failed = self.bite(&fs, |s| s.fsync_eio = true, |b| &b.fsync_eio, hold).await;
        if failed > 0 { Ok(format!("{failed} syncs failed with EIO")) } else { Err(Miss::Unproved("nobody synced".into())) }
    }

    pub(super) async fn disk_full(&self, victims: &Victims, hold: Duration) -> Proof {
        let (server, fs) = self.lossy(victims)?;
        fs.set(|s| s.full = true);
        let sentinel = self.world.servers[server].disk.probe(self.run.env.as_ref(), Duration::from_secs(2)).await;
        let refused = self.bite(&fs, |_| {}, |b| &b.full, hold).await;
        match sentinel {
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull => {
                Ok(format!("a sentinel was refused with ENOSPC, and {refused} other writes"))
            }
            other => Err(Miss::Unproved(format!("the sentinel's write gave {other:?}"))),
        }
    }

    pub(super) async fn disk_slow(&self, victims: &Victims, by: Duration, hold: Duration) -> Proof {
        let (server, fs) = self.lossy(victims)?;
        fs.set(|s| s.slow = by);
        let took = self.world.servers[server].disk.probe(self.run.env.as_ref(), by * 20).await;
        let slowed = self.bite(&fs, |_| {}, |b| &b.slow, hold).await;
        match took {
            Ok(Some(took)) if took >= by => Ok(format!("a sentinel's sync took {} ms; {slowed} others were slowed", took.as_millis())),
            other => Err(Miss::Unproved(format!("the sentinel's sync gave {other:?}"))),
        }
    }

    pub(super) async fn disk_stall(&self, victims: &Victims, hold: Duration) -> Proof {
        let (server, fs) = self.lossy(victims)?;
        fs.set(|s| s.stall = true);
        let patience = (hold / 2).min(Duration::from_secs(1));
        let took = self.world.servers[server].disk.probe(self.run.env.as_ref(), patience).await;
        let waited = self.bite(&fs, |_| {}, |b| &b.stalled, hold.saturating_sub(patience)).await;
        match took {
            Ok(None) => Ok(format!("a sentinel waited for more than {} ms, and {waited} other requests", patience.as_millis())),
            other => Err(Miss::Unproved(format!("the sentinel's write gave {other:?}"))),
        }
    }

    /// The disk lies for a while, and then loses power: what it had said was safe is gone.
    pub(super) async fn lying_fsync(&self, victims: &Victims, hold: Duration, dice: &mut Dice) -> Proof {
        use nix::sys::signal::Signal;
        let (server, fs) = self.lossy(victims)?;
        let before = fs.bites().lies.load(Ordering::Relaxed);
        fs.set(|s| s.lie = true);
        self.run.env.sleep(hold).await;
        let proc = &self.world.servers[server].proc;
        let ended = proc.end(Signal::SIGKILL, Duration::from_secs(30)).await;
        let (lost, _) = fs.lose_power(Unsynced::Drop, dice);
        fs.set(|s| *s = Switches::default());
        proc.up();
        ended?;
        let lies = fs.bites().lies.load(Ordering::Relaxed) - before;
        if lies > 0 {
            Ok(format!("{lies} syncs were lies; {lost} bytes were lost"))
        } else {
            Err(Miss::Skipped("nobody synced meanwhile: there was nothing to lie about".into()))
        }
    }
}
