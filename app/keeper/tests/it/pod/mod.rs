//! Memory that is populated on demand: a real keeper and back end, real faults, and VMMs that may do anything.

mod ends;
mod guest;
mod hostile;
mod kills;
mod process;
mod qemu;
mod serving;
