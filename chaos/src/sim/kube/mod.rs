//! The control plane in the simulated world: on every member of the store the real API server, controllers and scheduler, composed as
//! `kontiki server` composes them; machines of nodes with the real agent on hollow pods; clients that create, scale, change and delete
//! Deployments, and clients that list and watch as informers do.
//!
//! | file | what it holds |
//! |---|---|
//! | [`server`] | what a member's process runs beside its store |
//! | [`door`] | how clients of the API reach it over the simulated network |
//! | [`node`] | machines with an agent and hollow pods; what really ran on them |
//! | [`load`] | clients of the API |

pub mod door;
pub mod load;
pub mod node;
pub mod server;
