//! Everything that acts: controllers, scheduler, node agents. All of it are clients of the API, like anyone else.

pub mod api;
pub mod config;
pub mod error;
pub mod metrics;
pub mod node;
pub mod session;

pub use api::Client;
pub use config::{ApiConfig, ControllersConfig};
pub use error::{ApiError, ConfigError};
