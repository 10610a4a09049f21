//! Faults of clocks and of clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb::PutRequest;
use kontiki_proto::etcd::etcdserverpb::kv_client::KvClient;

use super::{Miss, Proof, Stage, Victims};
use crate::load::kv::channel;

/// Keys of overload: not among those that are judged.
const PREFIX: &str = "overload/";

/// The keeper waits so much longer than the fault lasts before it undoes it.
const LEASE: Duration = Duration::from_secs(10);

impl Stage {
    pub(super) async fn clock_jump(&self, victims: &Victims, ms: i64, hold: Duration, id: u32) -> Proof {
        let mut pages = Vec::new();
        for server in &victims.servers {
            let server = &self.world.servers[*server];
            let why = self.world.lacks.clock.clone().unwrap_or_else(|| "its process was started without the shim".into());
            pages.push(server.clock.clone().ok_or(Miss::Skipped(why))?);
        }
        let mut proofs = Vec::new();
        let mut leases = Vec::new();
        for page in &pages {
            let path = format!("of={}", page.path().display());
            let words = ["dd", "if=/dev/zero", &path, "bs=8", "count=1", "conv=notrunc", "status=none"];
            leases.push(self.world.keeper.arm(&format!("clock-{id}-{}", proofs.len()), hold + LEASE, &words));
            proofs.push(page.shifted()?);
            page.set(ms)?;
        }
        self.run.env.sleep(hold).await;
        for page in &pages {
            page.set(0)?;
        }
        leases.into_iter().for_each(|lease| self.world.keeper.disarm(lease));
        let mut told = 0;
        for (page, before) in pages.iter().zip(proofs) {
            let shifted = page.shifted()?.saturating_sub(before);
            if shifted == 0 {
                return Err(Miss::Unproved("the process never asked for the time".into()));
            }
            told += shifted;
        }
        Ok(format!("told the time {told} times, wrong by {} s", ms as f64 / 1_000.0))
    }

    pub(super) async fn overload(&self, clients: u16, bytes: u32, hold: Duration, id: u32) -> Proof {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let refused = Arc::new(AtomicU64::new(0));
        let value = bytes::Bytes::from(vec![b'x'; usize::try_from(bytes).unwrap_or(0)]);
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let link = channel(&self.run.members[usize::from(client) % self.run.members.len()])?;
            let (stop, answered, refused, value) = (stop.clone(), answered.clone(), refused.clone(), value.clone());
            tasks.spawn(async move {
                let mut kv = KvClient::new(link);
                let key = format!("{PREFIX}{id}/{client}");
                while !stop.load(Ordering::Relaxed) {
                    let put = PutRequest { key: key.clone().into(), value: value.clone(), ..PutRequest::default() };
                    match kv.put(put).await {
                        Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(status) if status.code() == tonic::Code::ResourceExhausted => refused.fetch_add(1, Ordering::Relaxed),
                        // A client that is told to come later does so.
                        Err(_) => {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            0
                        }
                    };
                }
            });
        }
        self.run.env.sleep(hold).await;
        stop.store(true, Ordering::Relaxed);
        while tasks.join_next().await.is_some() {}
        let (answered, refused) = (answered.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
        if answered + refused > 0 {
            Ok(format!("{clients} clients more: {answered} writes of {bytes} bytes, {refused} refused"))
        } else {
            Err(Miss::Unproved("none of the clients was answered".into()))
        }
    }
}
