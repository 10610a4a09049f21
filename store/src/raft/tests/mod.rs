//! Consensus as a whole: elections, failover, restarts, snapshots, membership, and seeded chaos.

mod cases;
mod chaos;
mod leadership;
mod real;
mod upkeep;
pub(super) mod world;
