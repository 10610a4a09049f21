//! What members say of themselves, watched all the time: who leads, in which term, how far they are; and whether each of them serves.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use kontiki_proto::etcd::etcdserverpb::{RangeRequest, StatusRequest, kv_client::KvClient};
use tonic::transport::{Channel, Endpoint};

use crate::history::{At, Record, Recorder, Role, Sample};
use crate::load::kv::Run;

/// How often members are asked.
const POLL: Duration = Duration::from_millis(20);

/// Who does not answer in this time does not serve.
const PATIENCE: Duration = Duration::from_millis(400);

/// A member's state is recorded when it changes, and at least this often.
const AT_LEAST: At = 500_000_000;

/// Answers that are remembered for each member; older ones are forgotten in blocks.
const REMEMBERED: usize = 1 << 20;

/// What is known of leadership and service.
#[derive(Default)]
pub(crate) struct Views {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Terms, with who leads in each and when that was first seen.
    terms: BTreeMap<u64, (usize, At)>,
    /// When each member answered a linearizable read.
    served: BTreeMap<usize, Vec<At>>,
    /// The last state of each member.
    last: BTreeMap<usize, Sample>,
}

impl Views {
    /// Who leads in the highest term that a leader was seen in: member and term.
    pub(crate) fn leader(&self) -> Option<(usize, u64)> {
        let inner = self.inner.lock().expect("no holder of this lock panics");
        inner.terms.last_key_value().map(|(term, (member, _))| (*member, *term))
    }

    /// Changes of leader, with their times.
    pub(crate) fn elections(&self) -> Vec<(u64, usize, At)> {
        let inner = self.inner.lock().expect("no holder of this lock panics");
        inner.terms.iter().map(|(term, (member, at))| (*term, *member, *at)).collect()
    }

    /// When all these members had answered a linearizable read after `from`.
    pub(crate) fn all_served_after(&self, members: &[usize], from: At) -> Option<At> {
        let inner = self.inner.lock().expect("no holder of this lock panics");
        let first = |member: &usize| {
            let times = inner.served.get(member)?;
            times.get(times.partition_point(|at| *at <= from)).copied()
        };
        members.iter().map(first).try_fold(0, |latest, at| at.map(|at| latest.max(at)))
    }

    fn sampled(&self, sample: Sample, recorder: &Recorder) {
        let mut inner = self.inner.lock().expect("no holder of this lock panics");
        if sample.role == Role::Leader {
            inner.terms.entry(sample.term).or_insert((sample.member, sample.at));
        }
        let last = inner.last.get(&sample.member);
        let same = last.is_some_and(|l| l.role == sample.role && l.term == sample.term && sample.at < l.at + AT_LEAST);
        if !same {
            inner.last.insert(sample.member, sample.clone());
            recorder.record(Record::Sample(sample));
        }
    }

    fn answered(&self, member: usize, at: At) {
        let mut inner = self.inner.lock().expect("no holder of this lock panics");
        let times = inner.served.entry(member).or_default();
        times.push(at);
        if times.len() > REMEMBERED {
            times.drain(..REMEMBERED / 2);
        }
    }
}

fn channel(url: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).ok()?;
    Some(endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).tcp_nodelay(true).connect_lazy())
}

/// Asks one member for its state, and for a linearizable read, until the run stops. `life` counts its starts.
pub(crate) async fn watch(run: Arc<Run>, views: Arc<Views>, member: usize, url: String, life: Arc<dyn Fn() -> u32 + Send + Sync>) {
    let Some(mut link) = channel(&url) else { return };
    let mut silent = 0_u32;
    while !run.stop.load(Ordering::Relaxed) {
        let (status, read) = ask(&link).await;
        let at = run.now();
        let sample = Sample { at, member, life: life(), ..Sample::default() };
        let sample = match status {
            Some((leads, mut known)) => {
                silent = 0;
                known.role = if leads { Role::Leader } else { known.role };
                Sample { at, member, life: sample.life, ..known }
            }
            None => {
                silent += 1;
                sample
            }
        };
        views.sampled(sample, &run.recorder);
        if read {
            views.answered(member, at);
        }
        // A connection that was cut may take long to notice: a new one does not.
        if silent > 0
            && silent.is_multiple_of(2)
            && let Some(fresh) = channel(&url)
        {
            link = fresh;
        }
        run.env.sleep(POLL).await;
    }
}

async fn ask(link: &Channel) -> (Option<(bool, Sample)>, bool) {
    let mut maintenance = MaintenanceClient::new(link.clone());
    let mut kv = KvClient::new(link.clone());
    let range = RangeRequest { key: "chaos/served".into(), count_only: true, ..RangeRequest::default() };
    let (status, read) = tokio::join!(maintenance.status(StatusRequest {}), kv.range(range));
    let status = status.ok().map(tonic::Response::into_inner);
    let status = status.and_then(|s| {
        let header = s.header?;
        let role = if s.is_learner { Role::Learner } else { Role::Follower };
        let sample = Sample {
            role,
            id: header.member_id,
            term: s.raft_term,
            applied: s.raft_applied_index,
            committed: s.raft_index,
            revision: header.revision,
            ..Sample::default()
        };
        Some((s.leader == header.member_id && s.leader != 0, sample))
    });
    (status, read.is_ok())
}

/// Waits until a member answers a linearizable read that is asked from now on.
pub(crate) async fn serves(env: &dyn Env, run: &Run, views: &Views, member: usize, limit: Duration) -> bool {
    let from = run.now();
    let until = from + u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    while run.now() < until {
        if views.all_served_after(&[member], from).is_some() {
            return true;
        }
        env.sleep(POLL).await;
    }
    false
}
