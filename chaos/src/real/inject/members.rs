//! Faults of membership, and of bits at rest, which end with a replacement.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use kontiki_proto::etcd::etcdserverpb::{Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest};
use nix::sys::signal::Signal;

use super::{Miss, Proof, Stage, Victims, views};
use crate::load::kv::channel;
use crate::plan::Dice;
use crate::real::tool;

const END: Duration = Duration::from_secs(20);

/// A new member must serve within this.
const BACK: Duration = Duration::from_secs(60);

/// A server that is started on a damaged disk shows within this whether it serves.
const SHOWS: Duration = Duration::from_secs(10);

/// Changes of membership are tried again so often, twice a second: a leader may just have changed, a new member must first be as far as it.
const TRIES: u32 = 120;

impl Stage {
    /// Asks a living member that is not the victim.
    fn cluster(&self, not: usize) -> Result<ClusterClient<tonic::transport::Channel>, Miss> {
        let leader = self.leader().filter(|l| *l != not);
        let other = leader.or_else(|| (0..self.run.members.len()).find(|m| *m != not));
        let other = other.ok_or_else(|| Miss::Skipped("there is no other member".into()))?;
        Ok(ClusterClient::new(channel(&self.run.members[other])?))
    }

    async fn members(&self, not: usize) -> Result<Vec<Member>, Miss> {
        let list = MemberListRequest { linearizable: true };
        Ok(self.cluster(not)?.member_list(list).await?.into_inner().members)
    }

    async fn again<T, F: Future<Output = Result<T, Miss>>>(&self, what: &str, mut attempt: impl FnMut() -> F) -> Result<T, Miss> {
        let mut last = String::new();
        for _ in 0..TRIES {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(Miss::Skipped(why) | Miss::Unproved(why)) => last = why,
            }
            self.run.env.sleep(Duration::from_millis(500)).await;
        }
        Err(Miss::Unproved(format!("{what}: {last}")))
    }

    /// Removes a member, wipes its disk, and adds it again as a new one.
    pub(super) async fn replace_member(&self, victims: &Victims) -> Proof {
        let [victim] = victims.servers.as_slice() else { return Err(Miss::Skipped("one server at a time".into())) };
        let victim = *victim;
        let server = &self.world.servers[victim];
        let url = server.peer_url();
        let own = |members: &[Member]| members.iter().find(|m| m.peer_ur_ls.contains(&url)).map(|m| m.id);
        let members = self.again("MemberList", || self.members(victim)).await?;
        let old = own(&members).ok_or_else(|| Miss::Skipped(format!("no member has the URL {url}")))?;
        if server.proc.state().pid.is_some() {
            server.proc.end(Signal::SIGKILL, END).await?;
        }
        server.proc.down();
        let remove = || async {
            self.cluster(victim)?.member_remove(MemberRemoveRequest { id: old }).await?;
            Ok(())
        };
        let replaced = match self.again("MemberRemove", remove).await {
            Ok(()) => self.join_again(victim, old).await,
            Err(e) => Err(e),
        };
        server.proc.up();
        let id = replaced?;
        if !views::serves(self.run.env.as_ref(), &self.run, &self.views, victim, BACK).await {
            return Err(Miss::Unproved(format!("{} does not serve {} s after it was replaced", server.name, BACK.as_secs())));
        }
        Ok(format!("member {old:x} is gone, {id:x} is in its place"))
    }

    async fn join_again(&self, victim: usize, old: u64) -> Result<u64, Miss> {
        let server = &self.world.servers[victim];
        let disk = server.disk.clone();
        tokio::task::spawn_blocking(move || disk.wipe()).await??;
        let url = server.become_another();
        let add = || async {
            let request = MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: true };
            match self.cluster(victim)?.member_add(request).await {
                Ok(answer) => answer.into_inner().member.map(|m| m.id).ok_or_else(|| Miss::Unproved("no member in the answer".into())),
                Err(status) => {
                    // An answer that was lost: it may have been done.
                    let members = self.members(victim).await?;
                    members.iter().find(|m| m.peer_ur_ls.contains(&url)).map(|m| m.id).ok_or_else(|| status.into())
                }
            }
        };
        let id = self.again("MemberAdd", add).await?;
        if id == old {
            return Err(Miss::Unproved("the new member has the id of the old one".into()));
        }
        server.proc.up();
        let promote = || async {
            self.cluster(victim)?.member_promote(MemberPromoteRequest { id }).await?;
            Ok(())
        };
        self.again("MemberPromote", promote).await?;
        Ok(id)
    }

    /// The newest segment of a server's log that holds something: segments are made ahead, full of zeros, under other names.
    fn newest_segment(&self, server: usize) -> Result<PathBuf, Miss> {
        let dir = self.world.servers[server].disk.path().join("data/store/log");
        let entries = tool::at(&dir, std::fs::read_dir(&dir))?.flatten().map(|e| e.path());
        let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
        files.sort();
        let used = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| bytes.iter().any(|b| *b != 0));
        files.into_iter().rev().find(used).ok_or_else(|| Miss::Skipped("there is no log segment".into()))
    }

    /// Flips a bit of the log while its server is down. A server that notices and refuses is replaced, as an operator would do.
    pub(super) async fn bit_rot(&self, victims: &Victims, hold: Duration, dice: &mut Dice) -> Proof {
        let [victim] = victims.servers.as_slice() else { return Err(Miss::Skipped("one server at a time".into())) };
        let server = &self.world.servers[*victim];
        server.proc.end(Signal::SIGKILL, END).await?;
        let flipped = self.newest_segment(*victim).and_then(|path| flip(&path, dice));
        self.run.env.sleep(hold).await;
        server.proc.up();
        let flipped = flipped?;
        let starts = server.proc.state().starts;
        if views::serves(self.run.env.as_ref(), &self.run, &self.views, *victim, SHOWS).await {
            return Ok(format!("{flipped}; the server serves: the bit was in what it need not have, or it had it sent again"));
        }
        let restarts = server.proc.state().starts - starts;
        let replaced = self.replace_member(victims).await?;
        Ok(format!("{flipped}; the server refused its disk ({restarts} starts); {replaced}"))
    }
}

/// Flips one bit among the bytes that are not zero: the rest of a segment is room.
fn flip(path: &std::path::Path, dice: &mut Dice) -> Result<String, Miss> {
    let bytes = tool::at(path, std::fs::read(path))?;
    let used: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b != 0).map(|(i, _)| i).collect();
    let at = *dice.pick(&used).ok_or_else(|| Miss::Skipped("the segment is empty".into()))?;
    let bit = 1_u8 << dice.below(8);
    let file = tool::at(path, std::fs::File::options().write(true).open(path))?;
    tool::at(path, file.write_all_at(&[bytes[at] ^ bit], at as u64).and_then(|()| file.sync_all()))?;
    let now = tool::at(path, std::fs::read(path))?;
    if now.get(at) == bytes.get(at) {
        return Err(Miss::Unproved("the byte is as it was".into()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(format!("byte {at} of {name} was {:#04x}, is {:#04x}", bytes[at], bytes[at] ^ bit))
}
