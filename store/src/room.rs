//! Room to write: the quota, the disk's free space, and the alarms as this member knows them.
//!
//! Two limits, and what each does:
//!
//! | limit | raises | goes |
//! |---|---|---|
//! | the quota, as in etcd | NOSPACE of the member that received the write | when somebody disarms it |
//! | the disk has less free space than the reserve | NOSPACE, automatic | by itself, when there is room again |
//!
//! Both are decided before a write is proposed: in the log there is only the alarm, and `apply` refuses by that alone, the same on every
//! member. While the disk is full the cluster can be read, compacted and deleted from, and a member that restarts comes back: there is a
//! reserve file, and the log has a segment ready ahead of need.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kontiki_base::env::{Env, Task};
use kontiki_base::ids::{MemberId, Revision};
use kontiki_base::kv::KvError;
use kontiki_mvcc::alarm::{self, Alarm, AlarmKind};
use kontiki_mvcc::{Command, View, ViewError};
use tokio::sync::watch;

use crate::propose::Proposer;
use crate::raft::{Consensus, RaftStatus, Role};
use crate::read::Views;

/// etcd's quota where none is given: 2 GiB (`DefaultQuotaBytes` in its `server/storage/quota.go`).
pub const DEFAULT_QUOTA: u64 = 2 << 30;

/// A disk with less free space than this is full: two segments of the log, and a flush of the engine.
pub const DISK_RESERVE: u64 = 256 << 20;

/// How often sizes and free space are measured.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The free space of the disk that holds a member's data.
pub trait FreeSpace: Send + Sync + 'static {
    /// Bytes that can still be written.
    ///
    /// # Errors
    /// What the operating system says.
    fn free(&self) -> std::io::Result<u64>;
}

/// The free space of the file system that holds a directory.
pub struct FsSpace(pub PathBuf);

impl FreeSpace for FsSpace {
    fn free(&self) -> std::io::Result<u64> {
        let found = nix::sys::statvfs::statvfs(&self.0).map_err(std::io::Error::from)?;
        Ok(found.blocks_available() * found.fragment_size())
    }
}

/// What a member is told by consensus: alarms, and how far compacted history has been removed. Filled on the apply thread.
pub struct Board {
    alarms: Mutex<Arc<[Alarm]>>,
    /// Whether there are any: what every request looks at.
    any: AtomicBool,
    swept: watch::Sender<Revision>,
}

impl Default for Board {
    fn default() -> Self {
        Self { alarms: Mutex::new(Arc::new([])), any: AtomicBool::new(false), swept: watch::Sender::new(kontiki_mvcc::NEVER_COMPACTED) }
    }
}

impl Board {
    /// The alarms.
    pub fn alarms(&self) -> Arc<[Alarm]> {
        Arc::clone(&self.alarms.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what consensus says.
    pub fn set(&self, now: &[Alarm]) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        *alarms = now.into();
        self.any.store(!now.is_empty(), Ordering::Release);
    }

    /// Reads the alarms of a state.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn prime(&self, view: &dyn View) -> Result<(), ViewError> {
        self.set(&alarm::list(view)?);
        Ok(())
    }

    /// History before this revision has been removed here.
    pub fn swept_to(&self, compact: Revision) {
        self.swept.send_if_modified(|known| {
            let moved = compact > *known;
            *known = (*known).max(compact);
            moved
        });
    }

    /// History before this revision has been removed here: behind the compact revision while that goes on.
    pub fn swept(&self) -> Revision {
        *self.swept.borrow()
    }

    /// Completes when history before this revision has been removed here.
    pub async fn wait_swept(&self, compact: Revision) -> Result<(), KvError> {
        self.swept.subscribe().wait_for(|swept| *swept >= compact).await.map(drop).map_err(|_| KvError::Stopped)
    }
}

/// Limits of a member.
pub struct RoomLimits {
    /// Bytes that the store may have; `None` for as many as the disk has.
    pub quota: Option<u64>,
    /// Free bytes that the disk must have for writes to go on.
    pub reserve: u64,
    /// The disk.
    pub disk: Arc<dyn FreeSpace>,
}

impl RoomLimits {
    /// What etcd's flag `quota-backend-bytes` means: 0 is etcd's default, below is no quota.
    pub fn quota_of(flag: i64) -> Option<u64> {
        match flag {
            0 => Some(DEFAULT_QUOTA),
            _ => u64::try_from(flag).ok(),
        }
    }
}

/// Decides whether there is room for a command.
pub struct Room {
    board: Arc<Board>,
    limits: RoomLimits,
    views: Arc<dyn Views>,
    status: watch::Receiver<RaftStatus>,
    /// Bytes of the store when they were last measured, and what was let in since.
    measured: AtomicU64,
    added: AtomicU64,
    disk_full: AtomicBool,
}

/// Why a command is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What its client is told.
    pub(crate) error: KvError,
    /// The cluster is to be told first.
    pub(crate) raise: Option<Alarm>,
}

impl From<KvError> for Refusal {
    fn from(error: KvError) -> Self {
        Self { error, raise: None }
    }
}

impl Room {
    /// Room within limits.
    pub fn new(board: Arc<Board>, limits: RoomLimits, views: Arc<dyn Views>, status: watch::Receiver<RaftStatus>) -> Arc<Self> {
        let measured = AtomicU64::new(views.size());
        Arc::new(Self { board, limits, views, status, measured, added: AtomicU64::new(0), disk_full: AtomicBool::new(false) })
    }

    /// The alarms, as far as this member knows.
    pub fn alarms(&self) -> Arc<[Alarm]> {
        self.board.alarms()
    }

    /// What consensus says.
    pub const fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Bytes that the store may have, or 0 for as many as the disk has.
    pub fn quota(&self) -> u64 {
        self.limits.quota.unwrap_or(0)
    }

    fn me(&self) -> MemberId {
        self.status.borrow().id
    }

    /// Whether this member may serve keys and leases at all.
    ///
    /// # Errors
    /// [`KvError::Corrupt`] while the cluster is known to be corrupt, or this member is, and is being rebuilt.
    pub fn serves(&self) -> Result<(), KvError> {
        if !self.board.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let (alarms, me) = (self.alarms(), self.me());
        let mine = alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt && alarm.member == me);
        if mine || alarm::corrupt(&alarms) { Err(KvError::Corrupt(alarm::CORRUPT.into())) } else { Ok(()) }
    }

    /// Whether a command may be proposed.
    pub(crate) fn admit(&self, command: &Command) -> Result<(), Refusal> {
        if matches!(command.inner(), Command::Alarm { .. }) {
            return Ok(());
        }
        self.serves()?;
        if self.board.any.load(Ordering::Acquire) {
            alarm::allows(&self.alarms(), command)?;
        }
        let cost = alarm::cost(command);
        if cost == 0 {
            return Ok(());
        }
        if self.disk_full.load(Ordering::Acquire) {
            return Err(Refusal { error: KvError::NoSpace, raise: Some(self.alarm(true)) });
        }
        let Some(quota) = self.limits.quota else { return Ok(()) };
        // etcd's rule: strictly less, and a request that is refused counts for nothing.
        let used = self.measured.load(Ordering::Acquire) + self.added.load(Ordering::Acquire);
        if used.saturating_add(cost) >= quota && self.measure().saturating_add(cost) >= quota {
            return Err(Refusal { error: KvError::NoSpace, raise: Some(self.alarm(false)) });
        }
        self.added.fetch_add(cost, Ordering::AcqRel);
        Ok(())
    }

    fn alarm(&self, automatic: bool) -> Alarm {
        Alarm { kind: AlarmKind::NoSpace, member: self.me(), automatic }
    }

    fn measure(&self) -> u64 {
        let size = self.views.size();
        self.measured.store(size, Ordering::Release);
        self.added.store(0, Ordering::Release);
        size
    }

    /// Starts the task that watches sizes, and keeps the member's automatic alarm true.
    pub fn run(self: &Arc<Self>, env: &Arc<dyn Env>, proposer: Proposer, consensus: Arc<dyn Consensus>) -> Task {
        let (room, clock) = (Arc::clone(self), Arc::clone(env));
        env.spawn(
            "store.room",
            Box::pin(async move {
                while consensus.status().borrow().fatal.is_none() {
                    room.look(&proposer).await;
                    clock.sleep(LOOK_EVERY).await;
                }
            }),
        )
    }

    /// Measures, and tells the cluster what has changed.
    async fn look(&self, proposer: &Proposer) {
        self.measure();
        match self.limits.disk.free() {
            Ok(free) => self.note_free(free),
            Err(error) => tracing::warn!(%error, "the disk's free space cannot be told"),
        }
        for (raise, alarm) in self.due() {
            // Without a quorum there is nobody to tell: the next look tries again.
            if let Err(error) = proposer.propose(Command::Alarm { raise, alarm }, 0).await {
                tracing::debug!(%error, ?alarm, raise, "an alarm could not be changed yet");
            }
        }
    }

    fn note_free(&self, free: u64) {
        let was = self.disk_full.load(Ordering::Acquire);
        // A little more than the reserve has to be free again, or the state would flap.
        let enough = if was { self.limits.reserve + self.limits.reserve / 4 } else { self.limits.reserve };
        let full = free < enough;
        self.disk_full.store(full, Ordering::Release);
        match (was, full) {
            (false, true) => tracing::error!(
                free,
                reserve = self.limits.reserve,
                "the disk is full: writes are refused until there is room; reads, deletions and compaction go on"
            ),
            (true, false) => tracing::info!(free, "there is room on the disk again: writes go on"),
            _ => {}
        }
    }

    /// Which automatic alarms are to be raised or taken back.
    fn due(&self) -> Vec<(bool, Alarm)> {
        let (alarms, mine) = (self.alarms(), self.alarm(true));
        let raised = alarms.iter().any(|alarm| (alarm.kind, alarm.member) == (mine.kind, mine.member));
        let full = self.disk_full.load(Ordering::Acquire);
        let mut due = Vec::new();
        if full != raised && (full || alarms.contains(&mine)) {
            due.push((full, mine));
        }
        let status = self.status.borrow();
        if status.role == Role::Leader {
            // A member that has been removed does not come back to take its alarms with it.
            let gone = |alarm: &&Alarm| alarm.automatic && !status.members.iter().any(|member| member.id == alarm.member);
            due.extend(alarms.iter().filter(gone).map(|alarm| (false, *alarm)));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use kontiki_base::key::KeyRange;
    use kontiki_base::kv::{DeleteReq, Op, PutReq, Txn};
    use kontiki_base::{LeaseId, kv};

    use super::*;
    use crate::raft::Member;

    struct Disk(AtomicU64);

    impl FreeSpace for Disk {
        fn free(&self) -> std::io::Result<u64> {
            Ok(self.0.load(Ordering::Relaxed))
        }
    }

    struct Size(AtomicU64);

    impl Views for Size {
        fn view(&self) -> Box<dyn View + Send> {
            Box::new(kontiki_mvcc::MemView::new())
        }

        fn size(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    const ME: MemberId = MemberId::new(7);

    fn room(quota: i64, size: u64) -> (Arc<Room>, Arc<Size>) {
        let views = Arc::new(Size(size.into()));
        let member = Member { id: ME, name: "me".into(), peer_urls: vec![], client_urls: vec![], learner: false };
        let status = RaftStatus { id: ME, role: Role::Leader, members: vec![member], ..RaftStatus::default() };
        let limits = RoomLimits { quota: RoomLimits::quota_of(quota), reserve: 100, disk: Arc::new(Disk(1_000.into())) };
        (Room::new(Arc::default(), limits, views.clone(), watch::channel(status).1), views)
    }

    fn put(value: usize) -> Command {
        Command::Put(PutReq { key: "k".into(), value: vec![0; value].into(), ..PutReq::default() })
    }

    fn delete() -> Command {
        Command::Delete(DeleteReq { range: KeyRange::single("k"), prev_kv: false })
    }

    #[test]
    fn the_quota_counts_what_was_let_in_and_is_etcds() {
        assert_eq!([0, -1, 5].map(RoomLimits::quota_of), [Some(2 << 30), None, Some(5)]);
        let (room, size) = room(1_000, 200);
        // 256 and the key: 257 with an empty value; strictly less than the quota.
        assert_eq!(room.admit(&put(543)).unwrap_err().raise, Some(Alarm { kind: AlarmKind::NoSpace, member: ME, automatic: false }));
        room.admit(&put(542)).unwrap();
        // It was let in, so it counts, until the store is measured, which it is before anybody is refused.
        size.0.store(1_000, Ordering::Relaxed);
        assert_eq!(room.admit(&put(0)).unwrap_err().error, KvError::NoSpace);
        room.admit(&delete()).unwrap();
        room.admit(&Command::LeaseRevoke { id: LeaseId::new(1) }).unwrap();
        size.0.store(900, Ordering::Relaxed);
        room.admit(&Command::LeaseGrant { id: LeaseId::new(1), ttl: 1 }).unwrap();
        let txn = |success, failure| Command::Txn { txn: Txn { success, failure, ..Txn::default() }, fence: None };
        let Command::Put(req) = put(0) else { unreachable!() };
        let puts = |n| vec![Op::Put(req.clone()); n];
        assert_eq!(alarm::cost(&txn(puts(2), puts(1))), 514, "the larger branch");
        assert_eq!(alarm::cost(&txn(vec![], vec![Op::Range(kv::RangeReq::new(KeyRange::single("k")))])), 0);
    }

    #[test]
    fn a_full_disk_stops_writes_and_room_lets_them_go_on() {
        let (room, _) = room(-1, 0);
        room.note_free(100);
        room.admit(&put(1)).unwrap();
        assert_eq!(room.due(), []);
        room.note_free(99);
        let mine = Alarm { kind: AlarmKind::NoSpace, member: ME, automatic: true };
        assert_eq!(room.admit(&put(1)), Err(Refusal { error: KvError::NoSpace, raise: Some(mine) }));
        room.admit(&delete()).unwrap();
        assert_eq!(room.due(), [(true, mine)]);
        room.board.set(&[mine]);
        assert_eq!(room.due(), []);
        room.note_free(110);
        assert!(room.admit(&put(1)).is_err(), "not enough yet");
        room.note_free(125);
        assert_eq!(room.due(), [(false, mine)]);
        assert_eq!(room.admit(&put(1)), Err(KvError::NoSpace.into()), "the cluster still says so");
        room.board.set(&[]);
        room.admit(&put(1)).unwrap();
        // What somebody raised by hand stays; what a removed member raised goes.
        let by_hand = Alarm { automatic: false, ..mine };
        let gone = Alarm { member: MemberId::new(9), ..mine };
        room.board.set(&[by_hand, gone]);
        assert_eq!(room.due(), [(false, gone)]);
    }

    #[test]
    fn a_corrupt_member_serves_nobody_and_the_others_go_on() {
        let (room, _) = room(-1, 0);
        let other = Alarm { kind: AlarmKind::Corrupt, member: MemberId::new(8), automatic: true };
        room.board.set(&[other]);
        room.serves().unwrap();
        room.admit(&put(1)).unwrap();
        for alarm in [Alarm { member: ME, ..other }, Alarm { automatic: false, ..other }] {
            room.board.set(&[alarm]);
            assert_eq!(room.serves(), Err(KvError::Corrupt("etcdserver: corrupt cluster".into())));
            assert!(room.admit(&delete()).is_err());
            room.admit(&Command::Alarm { raise: false, alarm }).unwrap();
        }
    }
}
