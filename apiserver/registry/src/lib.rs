//! The Kubernetes API surface as data and pure functions: no async, no clock, no randomness, no IO.
//!
//! | module | what it holds |
//! |---|---|
//! | [`row`], [`table`] | a kind is a row; the table of rows is what REST, gRPC, discovery, storage and tests read |
//! | [`rules`] | what is special about each kind: names, defaults, validation, immutability, deletion |
//! | [`defaults`], [`validate`] | what clients may leave out, and what must hold: called by the rules |
//! | [`schema`] | fields of the built-in kinds: decoding checks, unknown fields, pruning |
//! | [`meta`] | the road of an object from a request to the store |
//! | [`write_rules`], [`delete`] | preconditions as a decision table; deletion |
//! | [`admit`] | admission as functions of the object and a few facts |
//! | [`select`] | label and field selectors |
//! | [`status`], [`field`] | errors, to the letter |
//! | [`discovery`], [`openapi`] | what the server says about itself |
//! | [`rbac`] | who may do what |
//! | [`patch`], [`protobuf`], [`columns`], [`quantity`] | patches, the binary encoding, tables for people, quantities |
//!
//! An object is a [`serde_json::Value`] with an object at the top.

pub mod admit;
pub mod columns;
pub mod defaults;
pub mod delete;
pub mod discovery;
pub mod field;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod rbac;
pub mod row;
pub mod rules;
pub mod schema;
pub mod select;
pub mod status;
pub mod table;
pub mod time;
pub mod times;
pub mod val;
pub mod validate;
pub mod write_rules;
