//! Holds a VM's front-end sockets while its back end may come and go.

fn main() {}
