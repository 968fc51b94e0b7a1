//! The devices of one VM; may die at any instant.

fn main() {}
