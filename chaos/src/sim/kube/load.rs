//! Clients of the simulated API: operators who create, scale, change and delete Deployments and pods, and informers who list and watch and
//! take down every frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kontiki_agents::api::{DeleteOptions, Object, Scope, WatchEvent};
use kontiki_agents::{ApiError, Client};
use kontiki_base::code::Code;
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use kontiki_control::plan::PatchType;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::net::Net;
use super::super::rng::Stream;
use super::super::rt::Proc;
use super::super::trace::{Event, Node};
use super::door;
use crate::history::{ApiFrame, ApiWatch, Record, Recorder};

/// Clients of the API are on these nodes of the world.
pub const FIRST_CLIENT: Node = 300;

/// Deployments that the operators share.
const DEPLOYMENTS: u64 = 2;

/// The most replicas of one.
const REPLICAS: u64 = 5;

/// Operators.
const OPERATORS: u16 = 2;

/// Informers.
const INFORMERS: u16 = 2;

/// How many nodes of clients there are.
pub const CLIENTS: u16 = OPERATORS + INFORMERS;

/// What the clients of the API share.
pub struct Load {
    /// True: operators stop.
    pub stop: AtomicBool,
    /// True: informers stop, too.
    pub stop_watching: AtomicBool,
    recorder: Recorder,
    /// Answered requests of operators, and those that failed.
    answered: AtomicU64,
    failed: AtomicU64,
}

/// The clients at work.
pub struct Running {
    /// Operators: they end by [`Load::stop`].
    pub operators: Vec<tokio::task::JoinHandle<()>>,
    /// Informers: they end by [`Load::stop_watching`].
    pub informers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// A load that has not begun.
    pub fn new(recorder: Recorder) -> Arc<Self> {
        Arc::new(Self {
            stop: AtomicBool::new(false),
            stop_watching: AtomicBool::new(false),
            recorder,
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Requests of operators that were answered, and those that failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// Starts all clients.
pub fn start(seed: u64, members: u8, net: &Arc<Net>, load: &Arc<Load>) -> Running {
    let process = |number: u16| {
        let process = Proc::new(seed, FIRST_CLIENT + number, 0, 0, Arc::clone(net.trace()));
        net.join(&process);
        process
    };
    let client = |process: &Arc<Proc>, number: u16| {
        Client::new(&door::config(process, net, members, usize::from(number), None), process.env()).expect("the world has servers")
    };
    let operators = (0..OPERATORS).map(|number| {
        let process = process(number);
        let random = Stream::new(seed, "operator", number.into());
        let operator = Operator { client: client(&process, number), load: Arc::clone(load), random, number, changes: 0 };
        process.run(operator.work(Arc::clone(&process), Arc::clone(net)))
    });
    let operators = operators.collect();
    let informers = (0..INFORMERS).map(|number| {
        let process = process(OPERATORS + number);
        let random = Stream::new(seed, "informer", number.into());
        let informer =
            Informer { client: client(&process, number + 1), load: Arc::clone(load), random, session: number.into(), net: Arc::clone(net) };
        process.run(informer.follow())
    });
    Running { operators, informers: informers.collect() }
}

struct Operator {
    client: Client,
    load: Arc<Load>,
    random: Stream,
    number: u16,
    changes: u64,
}

fn name(slot: u64) -> String {
    format!("web-{slot}")
}

fn deployment(slot: u64, replicas: u64, version: &str) -> Value {
    let name = name(slot);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name }, "annotations": { "version": version } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    // Nodes that fall silent are given up soon, so that replacements are part of a run.
                    "tolerations": [
                        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2 },
                        { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2 },
                    ],
                    "containers": [{
                        "name": "main", "image": "kontiki.dev/demo:1",
                        "resources": { "requests": { "cpu": "150m", "memory": "64Mi" } },
                    }],
                },
            },
        },
    })
}

impl Operator {
    async fn work(mut self, process: Arc<Proc>, net: Arc<Net>) {
        while !self.load.stop.load(Ordering::Relaxed) {
            let slot = self.random.below(DEPLOYMENTS);
            self.changes += 1;
            let outcome = self.change(slot).await;
            let count = if outcome.is_ok() { &self.load.answered } else { &self.load.failed };
            count.fetch_add(1, Ordering::Relaxed);
            let told = outcome.err().map_or_else(String::new, |error| error.to_string());
            net.trace().say(
                process.node(),
                Event::Answer,
                slot,
                self.changes,
                format_args!("change {} of {}: {told}", self.changes, name(slot)),
            );
            tokio::time::sleep(Duration::from_millis(self.random.between(200, 3_000))).await;
        }
    }

    /// One change of a Deployment. That it does not exist, or exists already, is an answer.
    async fn change(&mut self, slot: u64) -> Result<(), ApiError> {
        let key = ObjectKey::new("default", name(slot));
        let version = format!("{}-{}", self.number, self.changes);
        let replicas = self.random.below(REPLICAS + 1);
        let patch = match self.random.below(10) {
            0..=2 => {
                let created = self.client.create(Kind::Deployment, &deployment(slot, replicas, &version)).await;
                return answered(created.map(drop));
            }
            3..=5 => json!({ "spec": { "replicas": replicas } }),
            6..=7 => json!({ "spec": { "template": { "metadata": { "annotations": { "version": version } } } } }),
            8 => return self.delete_a_pod(slot).await,
            _ => {
                let options = DeleteOptions { propagation: "Background", ..DeleteOptions::default() };
                return answered(self.client.delete(Kind::Deployment, &key, &options).await.map(drop));
            }
        };
        answered(self.client.patch(Kind::Deployment, &key, "", PatchType::Merge, &patch).await.map(drop))
    }

    async fn delete_a_pod(&mut self, slot: u64) -> Result<(), ApiError> {
        let scope = Scope { namespace: "default".into(), label_selector: format!("app={}", name(slot)), ..Scope::default() };
        let (_, pods) = self.client.list(Kind::Pod, &scope).await?;
        if pods.is_empty() {
            return Ok(());
        }
        let pod = key(self.random.pick(&pods));
        answered(self.client.delete(Kind::Pod, &pod, &DeleteOptions::default()).await.map(drop))
    }
}

fn answered(outcome: Result<(), ApiError>) -> Result<(), ApiError> {
    match outcome {
        Err(error) if matches!(error.code, Code::NotFound | Code::AlreadyExists | Code::Conflict) => Ok(()),
        outcome => outcome,
    }
}

fn key(object: &Object) -> ObjectKey {
    let value: Value = serde_json::from_slice(&object.raw).unwrap_or_default();
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(text("namespace"), text("name"))
}

/// The store's key of a pod.
fn stored(object: &Object) -> String {
    let key = key(object);
    format!("{PREFIX}{}/{}", key.namespace, key.name)
}

const PREFIX: &str = "/registry/pods/";

/// Lists and watches pods, as informers do.
struct Informer {
    client: Client,
    load: Arc<Load>,
    random: Stream,
    session: u64,
    net: Arc<Net>,
}

impl Informer {
    fn note(&self, frame: ApiFrame) {
        let at = self.net.trace().now();
        let member = self.client.server().bytes().find(u8::is_ascii_digit).map_or(0, |digit| usize::from(digit - b'0'));
        self.net.trace().add(FIRST_CLIENT, Event::Answer, self.session, 8);
        self.load.recorder.record(Record::Api(ApiWatch { session: self.session, member, at, frame }));
    }

    fn over(&self) -> bool {
        self.load.stop_watching.load(Ordering::Relaxed)
    }

    async fn follow(mut self) {
        while !self.over() {
            let Ok((revision, pods)) = self.client.list(Kind::Pod, &Scope::default()).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let items = pods.iter().map(|pod| (stored(pod), pod.revision.get())).collect();
            self.note(ApiFrame::List { prefix: PREFIX.into(), revision: revision.get(), items });
            let mut reached = revision;
            // Resumed as long as the history is there, and not for ever: lists are asked for, too.
            let until = Instant::now() + Duration::from_millis(self.random.between(4_000, 20_000));
            while !self.over() && Instant::now() < until {
                let Ok(mut watch) = self.client.watch(Kind::Pod, &Scope::default(), reached).await else { break };
                let patience = Instant::now() + Duration::from_millis(self.random.between(1_000, 8_000));
                let gone = self.hear(&mut watch, patience).await;
                reached = reached.max(watch.reached());
                if gone {
                    self.note(ApiFrame::Gone);
                    break;
                }
                self.note(ApiFrame::Closed);
                tokio::time::sleep(Duration::from_millis(self.random.between(1, 300))).await;
            }
        }
    }

    /// Hears a watch until it ends or `until`; whether its history is gone.
    async fn hear(&self, watch: &mut kontiki_agents::api::Watch, until: Instant) -> bool {
        while !self.over() {
            let Ok(next) = tokio::time::timeout_at(until, watch.next()).await else { return false };
            match next {
                Ok(Some(WatchEvent::Upsert(pod))) => self.note(ApiFrame::Put { key: stored(&pod), revision: pod.revision.get() }),
                Ok(Some(WatchEvent::Removed(pod))) => self.note(ApiFrame::Delete { key: stored(&pod), revision: pod.revision.get() }),
                Ok(Some(WatchEvent::Bookmark(revision))) => self.note(ApiFrame::Bookmark { revision: revision.get() }),
                Ok(None) => return false,
                Err(error) => return error.code == Code::Compacted,
            }
        }
        false
    }
}
