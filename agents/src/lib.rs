//! Everything that acts: controllers, scheduler, node agents. All of it are clients of the API, like anyone else.
//!
//! | module | what it holds |
//! |---|---|
//! | [`transport`] | the seam to the servers: TLS, or a simulated network |
//! | [`api`] | the client: any of several servers, retries by outcome code, fenced writes |
//! | [`informer`] | [`Caches`]: list and watch of every kind, into one world per process |
//! | [`queue`] | keys to be looked at: never twice at once, never lost |
//! | [`runner`], [`act`] | from a key to a plan to its effects |
//! | [`schedule`] | the scheduler's loop: decisions, bound in batches |
//! | [`leader`] | [`Controllers`]: acts only while the local member leads, under its term |
//! | [`events`], [`metrics`] | what people and machines are told |
//! | [`session`] | the server's side of the node session |
//! | [`node`] | the node agent |
//!
//! A server starts three things that share two:
//! ```text
//! let caches   = Caches::new(&api, env, metrics, settings)?;      caches.run(shutdown)
//! let liveness = Arc::new(Liveness::new(env));
//! Controllers::run(ControllersConfig { caches, leadership, liveness, workers }, shutdown)
//! session::service(SessionConfig { caches, leadership, liveness, … })   // mounted on the API server's TLS port
//! ```

pub mod act;
pub mod api;
pub mod config;
pub mod error;
pub mod events;
pub mod informer;
pub mod leader;
pub mod metrics;
pub mod node;
pub mod queue;
pub mod runner;
pub mod schedule;
pub mod session;
pub mod transport;

pub use api::Client;
pub use config::{ApiConfig, ControllersConfig};
pub use error::{ApiError, ConfigError};
pub use informer::Caches;
pub use leader::Controllers;
