//! Whole circles: a state, a file, a directory, a state.
