//! Real nodes. Skipped, and saying so, where the machine has not what they need.
