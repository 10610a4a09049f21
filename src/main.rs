//! `kontiki`: argument parsing and composition only.

fn main() {}
