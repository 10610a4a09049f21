//! Consensus as a whole: elections, failover, restarts, snapshots, membership, and seeded chaos.

mod cases;
mod chaos;
mod real;
mod upkeep;
mod world;
