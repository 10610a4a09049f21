//! A small cluster in memory for tests: an API that carries plans out, and kubelets that do what they are told when they are told.
//! Everything is a function of the seed.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use kontiki_base::Revision;
use kontiki_base::env::WallMs;
use kontiki_base::object::ObjectKey;
use kontiki_control::controllers::{ControllerId, Input};
use kontiki_control::plan::{Guard, Propagation};
use kontiki_control::world::{Change, Dirty, World};
use kontiki_control::{Action, Kind, Plan, meta};
use serde_json::{Value, json};

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

pub struct Cluster {
    pub world: World,
    pub objects: BTreeMap<(Kind, ObjectKey), Value>,
    pub now: WallMs,
    pub rng: Rng,
    pub queue: BTreeSet<Dirty>,
    pub alarms: BTreeMap<Dirty, WallMs>,
    pub writes: u64,
    pub events: Vec<String>,
    /// Every action in order: two runs of one seed must agree.
    pub log: Vec<String>,
    revision: i64,
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let map = target.as_object_mut().unwrap();
    for (k, v) in patch {
        if v.is_null() {
            map.remove(k);
        } else {
            merge(map.entry(k.clone()).or_insert(Value::Null), v);
        }
    }
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        let mut c = Self {
            world: World::default(),
            objects: BTreeMap::new(),
            now: WallMs(1_700_000_000_000),
            rng: Rng(seed),
            queue: BTreeSet::new(),
            alarms: BTreeMap::new(),
            writes: 0,
            events: Vec::new(),
            log: Vec::new(),
            revision: 1,
        };
        c.apply(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "d" }, "spec": { "finalizers": ["kubernetes"] } }));
        for name in ["n0", "n1", "n2"] {
            c.apply(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "podCIDR": format!("10.244.{}.0/24", &name[1..]) } }));
            let mut node = c.get(Kind::Node, name).unwrap().clone();
            node["status"] = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
            c.store(Kind::Node, node, "status");
        }
        c
    }

    pub fn get(&self, kind: Kind, name: &str) -> Option<&Value> {
        let namespace = if kind.namespaced() { "d" } else { "" };
        self.objects.get(&(kind, ObjectKey::new(namespace, name)))
    }

    /// Creates or replaces an object as a user would.
    pub fn apply(&mut self, mut object: Value) {
        let kind = Kind::of(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()).unwrap();
        if kind.namespaced() && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("d");
        }
        self.store(kind, object, "");
    }

    /// Writes an object's status as its owner would.
    pub fn set_status(&mut self, kind: Kind, object: Value) {
        self.store(kind, object, "status");
    }

    fn key(object: &Value) -> ObjectKey {
        let m = &object["metadata"];
        ObjectKey::new(m["namespace"].as_str().unwrap_or_default(), m["name"].as_str().unwrap())
    }

    fn store(&mut self, kind: Kind, mut object: Value, subresource: &str) {
        self.revision += 1;
        let key = Self::key(&object);
        let old = self.objects.get(&(kind, key.clone()));
        match old {
            None => {
                object["metadata"]["uid"] = json!(format!("uid-{}", self.revision));
                object["metadata"]["creationTimestamp"] = json!(meta::rfc3339(self.now));
                object["metadata"]["generation"] = json!(1);
            }
            Some(old) if subresource == "status" => {
                let status = object["status"].take();
                object = old.clone();
                object["status"] = status;
            }
            Some(old) => {
                object["metadata"]["uid"] = old["metadata"]["uid"].clone();
                object["metadata"]["creationTimestamp"] = old["metadata"]["creationTimestamp"].clone();
                let changed = i64::from(old["spec"] != object["spec"]);
                object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + changed);
                object["status"] = old["status"].clone();
            }
        }
        if let Some(map) = object.as_object_mut() {
            map.retain(|_, v| !v.is_null());
        }
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let pod_on_node = kind == Kind::Pod && !object["spec"]["nodeName"].is_null();
        let ns_finalizers = kind == Kind::Namespace && object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if !object["metadata"]["deletionTimestamp"].is_null() && !finalizers && !pod_on_node && !ns_finalizers {
            self.drop_object(kind, &key);
            return;
        }
        let dirty = self.world.apply(kind, Change::Upsert(object.to_string().as_bytes())).unwrap().dirty;
        self.objects.insert((kind, key), object);
        self.queue.extend(dirty);
    }

    pub fn drop_object(&mut self, kind: Kind, key: &ObjectKey) {
        self.objects.remove(&(kind, key.clone()));
        let dirty = self.world.apply(kind, Change::Remove(key)).unwrap().dirty;
        self.queue.extend(dirty);
    }

    /// Deletes as the API does: finalizers and grace keep the object for a while.
    pub fn delete(&mut self, kind: Kind, key: &ObjectKey, grace: Option<i64>, propagation: Option<Propagation>) {
        let Some(mut object) = self.objects.get(&(kind, key.clone())).cloned() else { return };
        let waits = kind == Kind::Pod && !object["spec"]["nodeName"].is_null() && grace != Some(0);
        let finalizer = match propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        if let Some(f) = finalizer {
            let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !list.contains(&json!(f)) {
                list.push(json!(f));
            }
            object["metadata"]["finalizers"] = json!(list);
        }
        let keeps = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) || kind == Kind::Namespace;
        if waits || keeps {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = json!(meta::rfc3339(self.now));
                self.store(kind, object, "");
            }
        } else {
            self.drop_object(kind, key);
        }
    }

    fn holds(&self, guard: &Guard) -> bool {
        let (Guard::Absent { kind, key, uid } | Guard::Alive { kind, key, uid }) = guard;
        let found = self.objects.get(&(*kind, key.clone()));
        let same = |o: &&Value| uid.0.is_empty() || o["metadata"]["uid"].as_str() == Some(&uid.0);
        match guard {
            Guard::Absent { .. } => found.filter(same).is_none(),
            Guard::Alive { .. } => found.filter(same).is_some_and(|o| o["metadata"]["deletionTimestamp"].is_null()),
        }
    }

    /// Carries out one action; false: it failed and the plan must stop.
    fn act(&mut self, action: &Action) -> bool {
        self.log.push(format!("{action:?}"));
        if !matches!(action, Action::Event { .. }) {
            self.writes += 1;
        }
        match action {
            Action::Create { kind, object, guards } => {
                if !guards.iter().all(|g| self.holds(g)) || self.objects.contains_key(&(*kind, Self::key(object))) {
                    return false;
                }
                self.store(*kind, object.clone(), "");
            }
            Action::Update { kind, object, expect, subresource } => {
                let Some(old) = self.objects.get(&(*kind, Self::key(object))) else { return true };
                let at = old["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                if *expect != Revision::ZERO && Revision::new(at) != *expect {
                    return false;
                }
                let mut object = object.clone();
                if *subresource == "finalize" {
                    let finalizers = object["spec"]["finalizers"].take();
                    object = old.clone();
                    object["spec"]["finalizers"] = finalizers;
                }
                self.store(*kind, object, subresource);
            }
            Action::Patch { kind, key, patch, subresource, guards, .. } => {
                let Some(old) = self.objects.get(&(*kind, key.clone())) else { return true };
                let rv = &patch["metadata"]["resourceVersion"];
                let stale = !rv.is_null() && *rv != old["metadata"]["resourceVersion"];
                let uid = &patch["metadata"]["uid"];
                if stale || (!uid.is_null() && *uid != old["metadata"]["uid"]) || !guards.iter().all(|g| self.holds(g)) {
                    return false;
                }
                let mut object = old.clone();
                merge(&mut object, patch);
                self.store(*kind, object, subresource);
            }
            Action::Delete { kind, key, uid, expect, grace, propagation, guards } => {
                let Some(old) = self.objects.get(&(*kind, key.clone())) else { return true };
                let at: i64 = old["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                let stale = expect.is_some_and(|e| e.get() != at);
                if old["metadata"]["uid"].as_str() != Some(&uid.0) {
                    return true;
                }
                if stale || !guards.iter().all(|g| self.holds(g)) {
                    return false;
                }
                self.delete(*kind, key, *grace, *propagation);
            }
            Action::DeleteAll { kind, namespace } => {
                let keys: Vec<ObjectKey> =
                    self.objects.keys().filter(|(k, key)| k == kind && key.namespace == *namespace).map(|(_, key)| key.clone()).collect();
                keys.iter().for_each(|key| self.delete(*kind, key, None, None));
                return keys.is_empty();
            }
            Action::Bind { pod, node, .. } => {
                if let Some(mut object) = self.objects.get(&(Kind::Pod, pod.clone())).cloned() {
                    object["spec"]["nodeName"] = json!(node);
                    self.store(Kind::Pod, object, "");
                }
            }
            Action::Event { reason, message, .. } => self.events.push(format!("{reason}: {message}")),
        }
        true
    }

    pub fn reconcile(&mut self, dirty: &Dirty) -> Plan {
        let input = Input { key: &dirty.key, world: &self.world, now: self.now, failure: None };
        (dirty.controller.row().reconcile)(&input)
    }

    /// One look at one of the keys that wait, chosen by the seed; false: none waits.
    pub fn step(&mut self) -> bool {
        let due: Vec<Dirty> = self.alarms.iter().filter(|(_, at)| **at <= self.now).map(|(d, _)| d.clone()).collect();
        for d in due {
            self.alarms.remove(&d);
            self.queue.insert(d);
        }
        if self.queue.is_empty() {
            return false;
        }
        let pick = self.rng.below(self.queue.len());
        let dirty = self.queue.iter().nth(pick).unwrap().clone();
        self.queue.remove(&dirty);
        let plan = self.reconcile(&dirty);
        if let Some(d) = plan.recheck {
            let at = WallMs(self.now.0 + i64::try_from(d.as_millis()).unwrap());
            self.alarms.insert(dirty.clone(), at);
        }
        for action in &plan.actions {
            if !self.act(action) && !plan.independent {
                self.queue.insert(dirty);
                break;
            }
        }
        true
    }

    /// One kubelet does one thing: a pod gets a node, runs, becomes ready, or ends. False: nothing to do for any of them.
    pub fn kubelet(&mut self, may_be_ready: impl Fn(&Value) -> bool) -> bool {
        let todo: Vec<ObjectKey> = self
            .objects
            .iter()
            .filter(|((kind, _), o)| *kind == Kind::Pod && (pod_step(o, &may_be_ready) != Step::Nothing))
            .map(|((_, key), _)| key.clone())
            .collect();
        if todo.is_empty() {
            return false;
        }
        let key = todo[self.rng.below(todo.len())].clone();
        let mut pod = self.objects[&(Kind::Pod, key.clone())].clone();
        match pod_step(&pod, &may_be_ready) {
            Step::End => self.drop_object(Kind::Pod, &key),
            Step::Bind => {
                pod["spec"]["nodeName"] = json!(format!("n{}", self.rng.below(3)));
                self.store(Kind::Pod, pod, "");
            }
            Step::Ready => {
                let n = self.rng.below(250);
                pod["status"] = json!({
                    "phase": "Running",
                    "podIP": format!("10.0.{}.{n}", self.revision % 250),
                    "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": meta::rfc3339(self.now) }],
                });
                self.store(Kind::Pod, pod, "status");
            }
            Step::Nothing => {}
        }
        true
    }

    /// Runs controllers and kubelets, in an order that the seed decides, until nobody has anything to do; `check` sees every state.
    pub fn settle(&mut self, may_be_ready: impl Fn(&Value) -> bool + Copy, mut check: impl FnMut(&Self)) {
        for _ in 0..20_000 {
            let controllers_first = self.rng.below(3) > 0;
            let moved = (controllers_first && self.step()) || self.kubelet(may_be_ready) || self.step();
            check(self);
            if moved {
                continue;
            }
            // Quiet now: does anything happen within the next minutes by itself?
            let soon = WallMs(self.now.0 + 120_000);
            match self.alarms.values().min().copied().filter(|at| *at <= soon) {
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("does not settle; last actions: {:#?}", &self.log[self.log.len().saturating_sub(12)..]);
    }

    /// Everything is looked at once more: nobody may want to write.
    pub fn assert_idle(&mut self) {
        for dirty in self.world.everything() {
            let plan = self.reconcile(&dirty);
            let writes: Vec<_> = plan.actions.iter().filter(|a| !matches!(a, Action::Event { .. })).collect();
            assert!(writes.is_empty(), "{dirty:?} is not at rest: {writes:#?}");
        }
    }

    pub fn pods(&self) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(|((kind, _), _)| *kind == Kind::Pod).map(|(_, o)| o)
    }

    pub fn run(&mut self, id: ControllerId, key: &ObjectKey) -> Plan {
        self.reconcile(&Dirty { controller: id, key: key.clone() })
    }
}

#[derive(PartialEq, Eq)]
enum Step {
    Nothing,
    Bind,
    Ready,
    End,
}

fn pod_step(pod: &Value, may_be_ready: &impl Fn(&Value) -> bool) -> Step {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        Step::End
    } else if pod["spec"]["nodeName"].is_null() {
        Step::Bind
    } else if pod["status"]["phase"].is_null() && may_be_ready(pod) {
        Step::Ready
    } else {
        Step::Nothing
    }
}

pub fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

pub fn is_active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && !matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
}

pub fn deployment(replicas: u32, surge: Value, unavailable: Value, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "d" },
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 2,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": image }] },
            },
        },
    })
}
