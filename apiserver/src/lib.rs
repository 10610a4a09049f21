//! Kubernetes' grammar over [`Kv`](kontiki_base::kv::Kv): two doors (REST and gRPC, one TLS port) to seven verbs for every kind.
//!
//! | module | what it does |
//! |---|---|
//! | `server`, `tls` | the port: connections, certificates, the end |
//! | `stack` | what every request goes through: panics, spans, who asks, how many, may they |
//! | `path`, `query`, `negotiate`, `body` | the grammar of a request |
//! | `rest`, `grpc` | the doors: requests to verbs, results to answers |
//! | `verbs` | get, list, watch, create, update, patch, delete, several writes as one |
//! | `cache` | every object once, as bytes; a window of changes that all watchers share |
//! | `sub` | subresources, and kinds that are asked and not stored |
//! | `endpoints`, `health`, `metrics` | paths that are no resources |
//! | `crd` | kinds that definitions add at run time |
//! | `bootstrap` | what a new cluster has |
//!
//! What a kind is and which rules it has stands in `kontiki-registry`; nothing here knows a kind that the table could tell.

mod auth;
mod body;
mod bootstrap;
mod cache;
mod codec;
mod config;
mod core;
mod crd;
mod endpoints;
mod error;
mod grpc;
mod health;
mod metrics;
mod negotiate;
mod path;
mod query;
mod rest;
mod server;
mod stack;
mod sub;
mod tls;
mod verbs;

pub use auth::Caller;
pub use config::{ApiConfig, BadCidr, ClientIdentity, ExtraMetrics, ServiceCidr, StaticToken, TlsConfig};
pub use error::StartError;
pub use server::{ApiHandle, ApiInside, ApiServer};
