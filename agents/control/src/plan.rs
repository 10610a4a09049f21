//! What a reconcile wants done: effects as data. The shell carries a plan out under the fence of its term, in order, and stops at
//! the first action that fails for good; the key is then reconciled again from what is true by then.

use std::time::Duration;

use kontiki_base::object::ObjectKey;
use kontiki_base::{Revision, Uid};
use serde_json::Value;

use crate::kind::Kind;

/// The actions of one reconcile, and when to look again although nothing changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be carried out in this order.
    pub actions: Vec<Action>,
    /// Reconcile the key again after this long.
    pub recheck: Option<Duration>,
    /// The actions do not depend on each other: one that fails does not stop the others.
    pub independent: bool,
}

impl Plan {
    /// Nothing to do.
    pub fn nothing() -> Plan {
        Plan::default()
    }

    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Asks to be run again after `d`, or earlier if that was asked already.
    pub fn recheck_in(&mut self, d: Duration) {
        self.recheck = Some(self.recheck.map_or(d, |old| old.min(d)));
    }

    /// Whether carrying it out would write nothing.
    pub fn is_quiet(&self) -> bool {
        self.actions.is_empty()
    }
}

/// What must still be true, asked of the API server itself and not of a cache, right before an action is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// No object of this name and uid exists: it is not found, or another one has its name.
    Absent {
        /// Its kind.
        kind: Kind,
        /// Its name.
        key: ObjectKey,
        /// Its uid; empty: no object at all may have the name.
        uid: Uid,
    },
    /// The object exists with this uid and is not being deleted.
    Alive {
        /// Its kind.
        kind: Kind,
        /// Its name.
        key: ObjectKey,
        /// Its uid.
        uid: Uid,
    },
}

/// How a patch is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

/// What becomes of an object's dependents when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted after it.
    Background,
    /// They are deleted before it.
    Foreground,
    /// They stay, without an owner.
    Orphan,
}

impl Propagation {
    /// The word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// Normal or Warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// Something happened.
    Normal,
    /// Somebody may want to look.
    Warning,
}

impl EventType {
    /// The word in an Event's `type`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Regarding {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: Uid,
}

/// One effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates an object; its name is decided. `AlreadyExists` counts as done if the object that exists has the same controller
    /// owner (or the wanted one has none).
    Create {
        /// Its kind.
        kind: Kind,
        /// The object, as JSON.
        object: Value,
        /// What must hold first.
        guards: Vec<Guard>,
    },
    /// Replaces an object that has not changed since `expect`.
    Update {
        /// Its kind.
        kind: Kind,
        /// The object, as JSON.
        object: Value,
        /// Its revision when it was read.
        expect: Revision,
        /// Empty for the object itself; `status`, `finalize`…
        subresource: &'static str,
    },
    /// Changes parts of an object.
    Patch {
        /// Its kind.
        kind: Kind,
        /// Its name.
        key: ObjectKey,
        /// How `patch` is to be read.
        patch_type: PatchType,
        /// The patch, as JSON. Carries `metadata.uid` where it must hit one object only.
        patch: Value,
        /// Empty for the object itself; `status`…
        subresource: &'static str,
        /// What must hold first.
        guards: Vec<Guard>,
    },
    /// Deletes the object that has this uid; not found counts as done.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        key: ObjectKey,
        /// Its uid: another object under the same name is left alone.
        uid: Uid,
        /// Its revision when it was read, where the deletion depends on what it said.
        expect: Option<Revision>,
        /// Seconds; `None` is the object's own.
        grace: Option<i64>,
        /// What becomes of its dependents; `None` is the kind's default.
        propagation: Option<Propagation>,
        /// What must hold first.
        guards: Vec<Guard>,
    },
    /// Deletes all objects of a kind in a namespace. If there were any, the plan stops here and the key is reconciled again.
    DeleteAll {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
    },
    /// Binds a pod to a node.
    Bind {
        /// The pod.
        pod: ObjectKey,
        /// Its uid.
        uid: Uid,
        /// The node's name.
        node: String,
    },
    /// Tells people. Never fails a plan.
    Event {
        /// What it is about.
        regarding: Regarding,
        /// Normal or Warning.
        event_type: EventType,
        /// One word for machines: `SuccessfulCreate`.
        reason: &'static str,
        /// A sentence for people.
        message: String,
    },
}

impl Action {
    /// The kind that the action writes to; events have none.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Create { kind, .. }
            | Self::Update { kind, .. }
            | Self::Patch { kind, .. }
            | Self::Delete { kind, .. }
            | Self::DeleteAll { kind, .. } => Some(*kind),
            Self::Bind { .. } => Some(Kind::Pod),
            Self::Event { .. } => None,
        }
    }
}
