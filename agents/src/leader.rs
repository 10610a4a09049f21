//! Controllers and scheduler act only while the local member leads the store, and only under that term. Caches are warm on every
//! member, so that a new leader has nothing to load: it catches up with what the store holds at that moment, and acts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::Term;
use kontiki_base::env::Mono;
use kontiki_control::Kind;
use kontiki_control::world::NodeLiveness;
use tokio::sync::{mpsc, watch};

use crate::config::ControllersConfig;
use crate::error::ConfigError;
use crate::events::Recorder;
use crate::informer::{Caches, Owned};
use crate::runner::Runner;
use crate::session::Liveness;

/// How often the age of heartbeats is looked at.
const TICK: Duration = Duration::from_millis(500);

/// Everything that acts on the cluster from within a server.
#[derive(Debug)]
pub struct Controllers;

impl Controllers {
    /// Runs until `shutdown` completes. The caches must be running ([`Caches::run`]).
    pub async fn run(config: ControllersConfig, shutdown: impl Future<Output = ()>) -> Result<(), ConfigError> {
        config.validate()?;
        tokio::select! {
            () = lead(config) => {}
            () = shutdown => {}
        }
        Ok(())
    }
}

async fn lead(config: ControllersConfig) {
    let mut leadership = config.leadership.clone();
    loop {
        let term = *leadership.borrow_and_update();
        match term {
            Some(term) => {
                let (alive, mut all_ended) = mpsc::channel(1);
                let task = reign(config.caches.clone(), config.liveness.clone(), term, config.workers, alive);
                let reign = Owned::spawn(&config.caches.env, "reign", task);
                let changed = changes(&mut leadership, Some(term)).await;
                drop(reign);
                // A task ends at its next await: nothing of this reign may take a key or assume a binding in the next one.
                while all_ended.recv().await.is_some() {}
                config.caches.feed(false);
                tracing::info!(%term, "reign ends");
                if !changed {
                    return;
                }
            }
            None => {
                if !changes(&mut leadership, None).await {
                    return;
                }
            }
        }
    }
}

/// Completes when leadership is no longer `seen`; false when nobody will ever say so.
async fn changes(leadership: &mut watch::Receiver<Option<Term>>, seen: Option<Term>) -> bool {
    leadership.wait_for(|now| *now != seen).await.is_ok()
}

/// Held by every task that acts; when the last has ended, so has the reign.
pub(crate) type Alive = mpsc::Sender<()>;

async fn reign(caches: Arc<Caches>, liveness: Arc<Liveness>, term: Term, workers: usize, alive: Alive) {
    let since = caches.env.now_mono();
    caches.until(Caches::synced).await;
    // Whatever an earlier leader wrote is there before anything is decided: nobody acts under its term any more.
    let kinds: Vec<Kind> = Kind::watched().collect();
    let revision = loop {
        match caches.catch_up(&kinds).await {
            Ok(revision) => break revision,
            Err(error) => {
                tracing::warn!(%term, %error, "new leader cannot catch up yet");
                caches.env.sleep(Duration::from_millis(200)).await;
            }
        }
    };
    let client = caches.client.under(term).as_manager("kontiki-events");
    let (recorder, writer) = Recorder::new(client, caches.env.clone(), caches.metrics.clone());
    let _writer = Owned::spawn(&caches.env, "events", writer);
    caches.tick(ages(&caches, &liveness, since));
    caches.feed(true);
    let everything = caches.world().everything();
    tracing::info!(%term, %revision, keys = everything.len(), "reign begins");
    everything.into_iter().for_each(|dirty| caches.queue.add(dirty));
    let runner = Runner::new(caches.clone(), term, recorder.clone(), alive.clone());
    let _workers = runner.start(workers);
    let _scheduler = Owned::spawn(&caches.env, "scheduler", crate::schedule::run(caches.clone(), term, recorder, alive.clone()));
    loop {
        caches.env.sleep(TICK).await;
        caches.tick(ages(&caches, &liveness, since)).into_iter().for_each(|dirty| caches.queue.add(dirty));
        liveness.prune(Duration::from_secs(600), |node| caches.world().node(node).is_some());
    }
}

/// The heartbeats of all nodes that exist, as of now.
fn ages(caches: &Caches, liveness: &Liveness, since: Mono) -> BTreeMap<String, NodeLiveness> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let since_leader_ms = ms(caches.env.now_mono().since(since));
    let heard = liveness.ages();
    let world = caches.world();
    let names = world.nodes.all().filter_map(|n| n.metadata.name.clone());
    names
        .map(|name| {
            let last_beat_age_ms = heard.get(&name).map(|age| ms(*age));
            (name, NodeLiveness { last_beat_age_ms, since_leader_ms })
        })
        .collect()
}
