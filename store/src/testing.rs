//! Consensus for tests of everything above it: one member, no log, no network; the real state machine over memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::env::Env;
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Revision, Term};
use kontiki_base::kv::KvError;
use kontiki_mvcc::{Batch, Command, MemView, Outcome, Reply, View, apply, current};
use kontiki_proto::env::SystemEnv;
use kontiki_proto::store::{MemberObservations, Replaced, Silent};
use kontiki_proto::trace::TraceContext;
use tokio::sync::watch;

use crate::auth::{Keeper, Provider};
use crate::config::StoreConfig;
use crate::expiry::LeaseClock;
use crate::metrics::Metrics;
use crate::raft::{AppliedBatch, ApplySink, Consensus, LeaderDesk, Member, RaftStatus, Role};
use crate::read::{Views, Workers};
use crate::room::Board;
use crate::server::{Made, Parts, Sinks, compose};
use crate::service::{Roster, Service};
use crate::watch::Hub;
use crate::watch::hub::{HubLimits, Tip};

struct State {
    view: MemView,
    index: LogIndex,
}

/// One member that is always the leader, unless a test says otherwise.
pub(crate) struct Solo {
    state: Mutex<State>,
    status: watch::Sender<RaftStatus>,
    sink: Arc<dyn ApplySink>,
    desk: OnceLock<Arc<dyn LeaderDesk>>,
    /// Members that do not answer.
    pub(crate) silent: Mutex<Vec<MemberId>>,
    /// The next proposal or promotion is refused with this.
    refusal: Mutex<Option<KvError>>,
    /// While set, nobody gets an answer.
    pub(crate) cut_off: AtomicBool,
}

impl Solo {
    fn new(sink: Arc<dyn ApplySink>) -> Arc<Self> {
        let id = MemberId::new(0xa11);
        let member = Member {
            id,
            name: "solo".into(),
            peer_urls: vec!["http://127.0.0.1:2380".into()],
            client_urls: vec!["http://127.0.0.1:2379".into()],
            learner: false,
        };
        let status = RaftStatus {
            id,
            cluster_id: 0xc1,
            term: Term::new(1),
            role: Role::Leader,
            leader: Some(id),
            members: vec![member],
            ..RaftStatus::default()
        };
        Arc::new(Self {
            state: Mutex::new(State { view: MemView::new(), index: LogIndex::ZERO }),
            status: watch::Sender::new(status),
            sink,
            desk: OnceLock::new(),
            silent: Mutex::default(),
            refusal: Mutex::new(None),
            cut_off: AtomicBool::new(false),
        })
    }

    /// Changes what is said of the member.
    pub(crate) fn become_(&self, change: impl FnOnce(&mut RaftStatus)) {
        self.status.send_modify(change);
    }

    /// Refuses the next proposal or promotion.
    pub(crate) fn refuse_next(&self, error: KvError) {
        *self.refusal.lock().unwrap() = Some(error);
    }

    fn carry_out(&self, commands: &[Command]) -> Vec<Outcome> {
        let mut state = self.state.lock().unwrap();
        state.index = state.index.next();
        let at = LogPos { term: self.status.borrow().term, index: state.index };
        let mut batch = Batch::default();
        let (mut leases, mut auth) = (Vec::new(), Vec::new());
        let outcomes: Vec<Outcome> = commands
            .iter()
            .map(|command| {
                let outcome = apply(&state.view, at, command, &mut batch).unwrap();
                match (&outcome.reply, command.inner()) {
                    (Ok(Reply::LeaseGrant { id, ttl }), _) => leases.push((*id, Some(*ttl))),
                    (Ok(Reply::Auth(reply)), _) => auth.push(reply.clone()),
                    (Ok(Reply::LeaseRevoke), Command::LeaseRevoke { id } | Command::LeaseExpire { id, .. }) => leases.push((*id, None)),
                    _ => {}
                }
                outcome
            })
            .collect();
        state.view.commit(batch);
        let now = current(&state.view).unwrap();
        let events = outcomes.iter().flat_map(|o| o.events.clone()).collect();
        self.sink.alarms(&kontiki_mvcc::alarm::list(&state.view).unwrap());
        loop {
            let mut swept = Batch::default();
            let done = kontiki_mvcc::sweep(&state.view, 1_000, &mut swept).unwrap().done;
            state.view.commit(swept);
            if done {
                break;
            }
        }
        self.sink.swept(now.compact);
        self.sink.applied(AppliedBatch { index: state.index, revision: now.revision, compact: now.compact, events, leases, auth });
        self.status.send_modify(|s| {
            s.applied = at.index;
            s.committed = at.index;
            s.last_index = at.index;
        });
        outcomes
    }
}

impl Views for Solo {
    fn view(&self) -> Box<dyn View + Send> {
        Box::new(self.state.lock().unwrap().view.clone())
    }

    fn size(&self) -> u64 {
        4096
    }
}

impl Consensus for Solo {
    fn propose(&self, commands: Vec<Command>, _trace: Option<TraceContext>) -> BoxFuture<'static, Result<Vec<Outcome>, KvError>> {
        if self.cut_off.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        if let Some(error) = self.refusal.lock().unwrap().take() {
            return Box::pin(async { Err(error) });
        }
        let outcomes = self.carry_out(&commands);
        Box::pin(async move { Ok(outcomes) })
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), KvError>> {
        let cut_off = self.cut_off.load(Ordering::Relaxed);
        Box::pin(async move { if cut_off { Err(KvError::Timeout) } else { Ok(()) } })
    }

    fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.subscribe()
    }

    fn ask_leader(&self, question: Bytes) -> BoxFuture<'static, Result<Bytes, KvError>> {
        if self.status.borrow().leader.is_none() {
            return Box::pin(async { Err(KvError::NoLeader) });
        }
        self.desk.get().expect("a member is composed before it is asked").answer(question)
    }

    fn transfer_leader(&self, _to: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        Box::pin(async { Ok(()) })
    }

    fn add_learner(&self, mut member: Member) -> BoxFuture<'static, Result<(), KvError>> {
        self.status.send_modify(|s| {
            member.id = MemberId::new(0xb0b + u64::try_from(s.members.len()).unwrap());
            s.members.push(member);
        });
        Box::pin(async { Ok(()) })
    }

    fn set_voters(&self, voters: Vec<MemberId>) -> BoxFuture<'static, Result<(), KvError>> {
        self.status.send_modify(|s| {
            s.members.retain(|m| m.learner || voters.contains(&m.id));
            s.members.iter_mut().for_each(|m| m.learner = !voters.contains(&m.id));
        });
        Box::pin(async { Ok(()) })
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Roster for Solo {
    fn promote(&self, id: MemberId, _ready: bool) -> BoxFuture<'static, Result<(), KvError>> {
        if let Some(error) = self.refusal.lock().unwrap().take() {
            return Box::pin(async { Err(error) });
        }
        self.status.send_modify(|s| s.members.iter_mut().filter(|m| m.id == id).for_each(|m| m.learner = false));
        Box::pin(async { Ok(()) })
    }

    fn remove_voter(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        self.remove_learner(id)
    }

    fn reachable(&self) -> BoxFuture<'static, Vec<MemberId>> {
        let silent = self.silent.lock().unwrap().clone();
        let all: Vec<_> = self.status.borrow().members.iter().map(|m| m.id).filter(|id| !silent.contains(id)).collect();
        Box::pin(async move { all })
    }

    fn replace(&self, dead: MemberId, learner: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        self.status.send_modify(|s| {
            s.members.retain(|m| m.id != dead);
            s.members.iter_mut().filter(|m| m.id == learner).for_each(|m| m.learner = false);
        });
        Box::pin(async { Ok(()) })
    }

    fn replaced(&self, _what: Replaced) {}

    fn observations(&self, _everyone: bool) -> BoxFuture<'static, (Vec<MemberObservations>, Vec<Silent>)> {
        let told = MemberObservations { member_id: 0xa11, name: "solo".into(), observations: Vec::new() };
        Box::pin(async move { (vec![told], Vec::new()) })
    }

    fn remove_learner(&self, id: MemberId) -> BoxFuture<'static, Result<(), KvError>> {
        self.status.send_modify(|s| s.members.retain(|m| m.id != id));
        Box::pin(async { Ok(()) })
    }

    fn update(&self, member: Member) -> BoxFuture<'static, Result<(), KvError>> {
        self.status.send_modify(|s| s.members.iter_mut().filter(|m| m.id == member.id).for_each(|m| *m = member.clone()));
        Box::pin(async { Ok(()) })
    }
}

/// As little as bcrypt can do.
const BCRYPT_COST: u32 = 4;

/// The longest election timeout.
const ELECTION: Duration = Duration::from_millis(100);

/// A whole member over [`Solo`].
pub(crate) struct Bench {
    pub(crate) service: Arc<Service>,
    pub(crate) solo: Arc<Solo>,
}

/// A member with the usual bounds.
pub(crate) fn bench() -> Bench {
    bench_with(HubLimits::default(), Duration::from_secs(600))
}

/// A member with another kind of tokens.
pub(crate) fn bench_as(provider: Provider) -> Bench {
    assemble(HubLimits::default(), Duration::from_secs(600), provider)
}

/// A member with other bounds for watches, and another interval of progress notifications. Election timeout: 100 ms.
pub(crate) fn bench_with(limits: HubLimits, progress_every: Duration) -> Bench {
    assemble(limits, progress_every, Provider::Simple)
}

fn assemble(limits: HubLimits, progress_every: Duration, provider: Provider) -> Bench {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let mut config = StoreConfig { progress_every, ..StoreConfig::single("solo", "/".into(), Arc::clone(&env)) };
    config.timings.election = (ELECTION / 2, ELECTION);
    config.auth.bcrypt_cost = BCRYPT_COST;
    (config.quota_backend_bytes, config.disk_reserve_bytes) = (-1, 0);
    let metrics = Arc::new(Metrics::default());
    let tip = Tip { revision: Revision::new(1), compact: Revision::new(-1) };
    let hub = Hub::new(limits, tip, Arc::clone(&metrics));
    let clock = Arc::new(LeaseClock::default());
    let board = Arc::new(Board::default());
    let keeper = Arc::new(Keeper::new(config.auth.token_ttl));
    let sinks = Arc::new(Sinks {
        hub: Arc::clone(&hub),
        clock: Arc::clone(&clock),
        auth: Arc::clone(&keeper),
        env,
        board: Arc::clone(&board),
        observer: None,
    });
    let solo = Solo::new(sinks);
    let parts = Parts {
        consensus: Arc::clone(&solo) as Arc<dyn Consensus>,
        roster: Arc::clone(&solo) as Arc<dyn Roster>,
        views: Arc::clone(&solo) as Arc<dyn Views>,
        workers: Workers::threads(),
    };
    let (service, desk, _tasks) = compose(&config, parts, Made { hub, clock, metrics, board, keeper, provider });
    assert!(solo.desk.set(desk).is_ok(), "it has one desk");
    Bench { service, solo }
}
