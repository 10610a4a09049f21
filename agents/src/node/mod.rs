//! The node agent: takes the node's pods from a session with the servers, makes the runtime run them, and reports what became of them.

pub mod runtime;
pub mod time;
