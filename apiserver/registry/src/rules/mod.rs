//! What is special about each kind: name rule, defaults, validation, what an update may change, how it is deleted.
//!
//! Most kinds need nothing of their own: [`PLAIN`]. A kind that does names its functions in [`table`].

pub mod batch;
pub mod cluster;
pub mod config;
pub mod convert;
pub mod event;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod service;
pub mod table;
pub mod workload;

use serde_json::Value;

use crate::field::Errors;
use crate::validate::names::NameRule;

/// When `metadata.generation` moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Never set by the server; what a client gives on creation is stored.
    Untracked,
    /// 1 on creation, never changed.
    Fixed,
    /// One more whenever `spec` changes.
    Spec,
    /// One more whenever `spec` or the annotations change.
    SpecAndAnnotations,
    /// One more whenever anything outside `metadata` changes, `status` excepted where it has its own subresource.
    Content,
    /// As `Content`, and for labels and annotations as well.
    ContentAndLabels,
}

/// What of `metadata` a write of `status` leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusMeta {
    /// Nothing: labels, annotations, finalizers and owners can be written.
    Open,
    /// The labels.
    KeepsLabels,
    /// The owners.
    KeepsOwners,
    /// Labels, annotations, finalizers and owners.
    Keeps,
}

/// What a deletion without a policy does about dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultGc {
    /// Dependents are deleted later.
    Background,
    /// Dependents stay.
    Orphan,
    /// The kind never gets garbage collection finalizers.
    Unsupported,
}

/// A field that selectors may name beside `metadata.name` and `metadata.namespace`, and how to read it.
pub type SelectableField = (&'static str, fn(&Value) -> String);

/// The behaviour of a kind. All functions are pure.
#[derive(Debug)]
pub struct Rules {
    /// What a name may look like.
    pub name: NameRule,
    /// When `metadata.generation` moves.
    pub generation: Generation,
    /// What of `metadata` a write of `status` leaves alone.
    pub status_meta: StatusMeta,
    /// Whether a creation may bring a status.
    pub status_on_create: bool,
    /// Fills in what a client may leave out. Runs after every decode; must be idempotent.
    pub defaults: fn(&mut Value),
    /// After defaults, before validation, on creation only.
    pub prepare_create: fn(&mut Value),
    /// New and old, before validation of an update of the main resource: what is copied from old.
    pub prepare_update: fn(&mut Value, &Value),
    /// As `prepare_update`, for the `status` subresource, after the split of spec and status.
    pub prepare_status: fn(&mut Value, &Value),
    /// What must hold of every object.
    pub validate: fn(&Value, &mut Errors),
    /// What must hold of a new object besides.
    pub validate_create: fn(&Value, &mut Errors),
    /// What must hold of a change: new, old.
    pub validate_update: fn(&Value, &Value, &mut Errors),
    /// As `validate_update`, for a write through a subresource other than `status`, which is named first.
    pub validate_sub: fn(&str, &Value, &Value, &mut Errors),
    /// How long a deletion takes by default, in seconds, for kinds that are deleted gracefully: object, what the client asked for.
    pub grace: Option<fn(&Value, Option<i64>) -> i64>,
    /// Whether a deletion answers with the object even when it is gone.
    pub delete_returns_object: bool,
    /// Whether a PUT creates what is not there.
    pub create_on_update: bool,
    /// Whether a PUT may leave out the resource version.
    pub unconditional_update: bool,
    /// Dependents at a deletion without a policy.
    pub default_gc: DefaultGc,
    /// Fields that selectors may name.
    pub fields: &'static [SelectableField],
    /// Whether objects of the kind have a time to live in the store, in seconds.
    pub ttl_seconds: Option<u32>,
    /// From this version to the version in storage, where the two differ.
    pub to_stored: Option<fn(Value) -> Value>,
    /// From the version in storage to this one.
    pub from_stored: Option<fn(Value) -> Value>,
}

fn nothing(_: &mut Value) {}
fn nothing_of(_: &mut Value, _: &Value) {}
fn valid(_: &Value, _: &mut Errors) {}
fn valid_sub(_: &str, _: &Value, _: &Value, _: &mut Errors) {}
fn valid_change(_: &Value, _: &Value, _: &mut Errors) {}

/// A kind without behaviour of its own: stored as given.
pub const PLAIN: Rules = Rules {
    name: NameRule::Subdomain,
    generation: Generation::Untracked,
    status_meta: StatusMeta::Keeps,
    status_on_create: false,
    defaults: nothing,
    prepare_create: nothing,
    prepare_update: nothing_of,
    prepare_status: nothing_of,
    validate: valid,
    validate_create: valid,
    validate_update: valid_change,
    validate_sub: valid_sub,
    grace: None,
    delete_returns_object: false,
    create_on_update: false,
    unconditional_update: true,
    default_gc: DefaultGc::Background,
    fields: &[],
    ttl_seconds: None,
    to_stored: None,
    from_stored: None,
};

/// A kind whose only peculiarity is a generation that follows its spec.
pub const WITH_SPEC: Rules = Rules { generation: Generation::Spec, ..PLAIN };

/// Custom resources: a resource version is required on update, any change moves the generation.
pub const CUSTOM: Rules = Rules { generation: Generation::Content, unconditional_update: false, ..PLAIN };

/// [`PLAIN`] as a static, for rows that name nothing.
pub static PLAIN_RULES: Rules = PLAIN;
/// [`CUSTOM`] as a static, for rows of custom resources.
pub static CUSTOM_RULES: Rules = CUSTOM;
