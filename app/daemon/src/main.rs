//! The host's daemon: collect, decide, apply.

fn main() {}
