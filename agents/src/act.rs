//! Carries a plan out: one action after the other, pods in batches that grow (1, 2, 4, … as Kubernetes' controllers do), under the
//! fence of the term in which the plan was made.

use futures::future::join_all;
use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Revision, Uid};
use kontiki_control::kind::Keep;
use kontiki_control::plan::{Action, Guard, Plan};
use kontiki_control::world::ObjectId;
use kontiki_control::{Kind, meta};
use serde_json::Value;

use crate::api::{Client, DeleteOptions, Object, key_of};
use crate::error::ApiError;
use crate::events::Recorder;
use crate::informer::Written;
use crate::metrics::{Metrics, WriteLabels};

/// The largest batch of creations or deletions that are under way at once.
const BATCH_MAX: usize = 64;

/// Why a plan was not carried out to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// An action failed.
    Failed {
        /// How.
        error: ApiError,
        /// The object that it was about.
        object: ObjectKey,
    },
    /// A deletion of a whole collection found something: look again.
    Again,
}

/// What came of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What was written.
    pub written: Vec<Written>,
    /// Why it stopped, if it did.
    pub stopped: Option<Stopped>,
}

/// The hands of a controller.
pub struct Hands<'a> {
    /// The client, fenced and named.
    pub client: Client,
    /// Where events go.
    pub recorder: &'a Recorder,
    /// Name of the controller.
    pub source: &'static str,
    /// Counters.
    pub metrics: &'a Metrics,
}

impl std::fmt::Debug for Hands<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").field("source", &self.source).finish_non_exhaustive()
    }
}

/// An action with the events that tell of it.
type Step<'p> = (&'p Action, Vec<&'p Action>);

impl Hands<'_> {
    /// Carries a plan out.
    pub async fn carry_out(&self, plan: &Plan) -> Done {
        let mut done = Done::default();
        let steps = self.steps(plan);
        let mut at = 0;
        while at < steps.len() {
            let run = run_length(&steps[at..], plan.independent);
            let mut size = if plan.independent { BATCH_MAX } else { 1 };
            let end = at + run;
            while at < end {
                let batch = &steps[at..end.min(at + size)];
                let results = join_all(batch.iter().map(|step| self.step(step))).await;
                at += batch.len();
                size = (size * 2).min(BATCH_MAX);
                for result in results {
                    match result {
                        Ok(written) => done.written.extend(written),
                        Err(stopped) => {
                            done.stopped.get_or_insert(stopped);
                        }
                    }
                }
                if done.stopped.is_some() && !plan.independent {
                    return done;
                }
            }
        }
        done
    }

    /// Pairs actions with the events behind them. Events at the front are told at once.
    fn steps<'p>(&self, plan: &'p Plan) -> Vec<Step<'p>> {
        let mut steps: Vec<Step<'p>> = Vec::new();
        for action in &plan.actions {
            match (action, steps.last_mut()) {
                (Action::Event { .. }, Some((_, events))) => events.push(action),
                (Action::Event { .. }, None) => self.tell(action),
                _ => steps.push((action, Vec::new())),
            }
        }
        steps
    }

    fn tell(&self, event: &Action) {
        if let Action::Event { regarding, event_type, reason, message } = event {
            self.recorder.record(self.source, regarding.clone(), *event_type, reason, message.clone());
        }
    }

    async fn step(&self, (action, events): &Step<'_>) -> Result<Option<Written>, Stopped> {
        let result = self.perform(action).await;
        self.count(action, &result);
        match result {
            Ok(written) => {
                events.iter().for_each(|event| self.tell(event));
                Ok(written)
            }
            Err(stopped) => Err(stopped),
        }
    }

    fn count(&self, action: &Action, result: &Result<Option<Written>, Stopped>) {
        let verb = match action {
            Action::Create { .. } => "create",
            Action::Update { .. } => "update",
            Action::Patch { .. } => "patch",
            Action::Delete { .. } => "delete",
            Action::DeleteAll { .. } => "deletecollection",
            Action::Bind { .. } => "bind",
            Action::Event { .. } => "event",
        };
        let outcome = match result {
            Ok(_) | Err(Stopped::Again) => "ok",
            Err(Stopped::Failed { error, .. }) => error.code.reason(),
        };
        let kind = action.kind().map_or("events", Kind::plural);
        self.metrics.writes.get_or_create(&WriteLabels { verb, kind, outcome }).inc();
    }

    async fn perform(&self, action: &Action) -> Result<Option<Written>, Stopped> {
        let failed = |object: &ObjectKey| {
            let object = object.clone();
            move |error: ApiError| Stopped::Failed { error, object }
        };
        match action {
            Action::Create { kind, object, guards } => {
                let key = key_of(object);
                self.check(guards).await.map_err(failed(&key))?;
                self.create(*kind, object, &key).await.map_err(failed(&key))
            }
            Action::Update { kind, object, expect, subresource } => {
                let key = key_of(object);
                let mut object = object.clone();
                if *expect != Revision::ZERO {
                    object["metadata"]["resourceVersion"] = Value::String(expect.to_resource_version());
                }
                let answer = self.client.update(*kind, subresource, &object).await;
                missing_is_done(*kind, answer).map_err(failed(&key))
            }
            Action::Patch { kind, key, patch_type, patch, subresource, guards } => {
                self.check(guards).await.map_err(failed(key))?;
                let answer = self.client.patch(*kind, key, subresource, *patch_type, patch).await;
                missing_is_done(*kind, answer).map_err(failed(key))
            }
            Action::Delete { kind, key, uid, expect, grace, propagation, guards } => {
                self.check(guards).await.map_err(failed(key))?;
                let propagation = propagation.map_or("", |p| p.word());
                let options = DeleteOptions { uid: Some(uid.clone()), expect: *expect, grace: *grace, propagation };
                self.delete(*kind, key, uid, &options).await.map_err(failed(key))
            }
            Action::DeleteAll { kind, namespace } => match self.client.delete_collection(*kind, namespace).await {
                Ok(0) => Ok(None),
                Ok(_) => Err(Stopped::Again),
                // A kind that the server does not have holds nothing.
                Err(e) if matches!(e.code, Code::NotFound | Code::MethodNotAllowed | Code::Unimplemented) => Ok(None),
                Err(error) => Err(Stopped::Failed { error, object: ObjectKey::new("", namespace.clone()) }),
            },
            Action::Bind { pod, uid, node } => {
                let answer = self.client.transact(vec![self.client.bind_write(pod, uid, node)]).await;
                answer.map(|(revision, _)| seen(Kind::Pod, revision)).map_err(failed(pod))
            }
            Action::Event { .. } => {
                self.tell(action);
                Ok(None)
            }
        }
    }

    async fn create(&self, kind: Kind, object: &Value, key: &ObjectKey) -> Result<Option<Written>, ApiError> {
        let refused = match self.client.create(kind, object).await {
            Ok(created) => return Ok(seen(kind, created.revision)),
            Err(error) if error.code == Code::AlreadyExists => error,
            Err(error) => return Err(error),
        };
        // Names are decided by the plan: what has this name may be what an earlier attempt made.
        let present = match self.client.get(kind, key).await {
            Ok(present) => present,
            Err(error) if error.code == Code::NotFound => return Err(ApiError { code: Code::Conflict, ..refused }),
            Err(error) => return Err(error),
        };
        let parsed: Value = present.parse()?;
        if !parsed["metadata"]["deletionTimestamp"].is_null() {
            return Err(ApiError { code: Code::Conflict, ..refused });
        }
        let same_owner = controller_uid(&parsed) == controller_uid(object);
        if same_owner { Ok(seen(kind, present.revision)) } else { Err(refused) }
    }

    async fn delete(&self, kind: Kind, key: &ObjectKey, uid: &Uid, options: &DeleteOptions) -> Result<Option<Written>, ApiError> {
        let gone = Written::Gone(ObjectId { kind, key: key.clone() }, uid.clone());
        match self.client.delete(kind, key, options).await {
            Ok(answer) if answer.gone => Ok(followed(kind).then_some(gone)),
            Ok(answer) => Ok(answer.object.and_then(|o| seen(kind, o.revision))),
            Err(error) if error.code == Code::NotFound => Ok(followed(kind).then_some(gone)),
            // Another object has taken the name: the one that was meant is gone.
            Err(error) if options.expect.is_none() && matches!(error.code, Code::Conflict | Code::FailedPrecondition) => self
                .gone_by_uid(kind, key, uid)
                .await
                .and_then(|is_gone| if is_gone { Ok(followed(kind).then_some(gone)) } else { Err(error) }),
            Err(error) => Err(error),
        }
    }

    async fn gone_by_uid(&self, kind: Kind, key: &ObjectKey, uid: &Uid) -> Result<bool, ApiError> {
        match self.client.get(kind, key).await {
            Ok(object) => Ok(uid_of(&object)? != *uid),
            Err(error) if error.code == Code::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Asks the server whether what a plan takes for granted is so.
    async fn check(&self, guards: &[Guard]) -> Result<(), ApiError> {
        for guard in guards {
            let (kind, key) = match guard {
                Guard::Absent { kind, key, .. } | Guard::Alive { kind, key, .. } => (*kind, key),
            };
            let found = match self.client.get(kind, key).await {
                Ok(object) => Some(object.parse::<Value>()?),
                Err(error) if error.code == Code::NotFound => None,
                Err(error) => return Err(error),
            };
            let is = |uid: &Uid, object: &Value| uid.0.is_empty() || object["metadata"]["uid"].as_str() == Some(uid.0.as_str());
            let holds = match (guard, &found) {
                (Guard::Absent { .. }, None) => true,
                (Guard::Absent { uid, .. }, Some(object)) => !is(uid, object),
                (Guard::Alive { .. }, None) => false,
                (Guard::Alive { uid, .. }, Some(object)) => is(uid, object) && object["metadata"]["deletionTimestamp"].is_null(),
            };
            if !holds {
                return Err(ApiError::new(format!("check {kind} {key}"), Code::FailedPrecondition, "the cache was behind"));
            }
        }
        Ok(())
    }
}

/// How many steps may go in growing batches: creations of one kind, deletions of one kind, or anything if nothing depends on
/// anything.
fn run_length(steps: &[Step<'_>], independent: bool) -> usize {
    if independent {
        return steps.len();
    }
    let class = |step: &Step<'_>| match step.0 {
        Action::Create { kind, .. } => Some((0, *kind)),
        Action::Delete { kind, .. } => Some((1, *kind)),
        _ => None,
    };
    let first = class(&steps[0]);
    if first.is_none() {
        return 1;
    }
    steps.iter().take_while(|s| class(s) == first).count()
}

fn followed(kind: Kind) -> bool {
    kind.keep() != Keep::Nothing
}

fn seen(kind: Kind, revision: Revision) -> Option<Written> {
    followed(kind).then_some(Written::Object(kind, revision))
}

/// A change to an object that is gone needs no change.
fn missing_is_done(kind: Kind, answer: Result<Object, ApiError>) -> Result<Option<Written>, ApiError> {
    match answer {
        Ok(object) => Ok(seen(kind, object.revision)),
        Err(error) if error.code == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn controller_uid(object: &Value) -> Option<Uid> {
    let metadata = serde_json::from_value(object["metadata"].clone()).ok()?;
    meta::controller_uid(&metadata)
}

fn uid_of(object: &Object) -> Result<Uid, ApiError> {
    let parsed: Value = object.parse()?;
    Ok(Uid(parsed["metadata"]["uid"].as_str().unwrap_or_default().to_owned()))
}
