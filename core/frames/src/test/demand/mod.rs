//! Spaces that are populated on demand: the ledger beside a kernel, a guest, a device and a pager of a few lines each.

mod cases;
mod crash;
mod damage;
mod machine;
mod model;
mod ops;
mod steps;
mod sweeping;
mod world;
