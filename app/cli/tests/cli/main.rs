//! The built command: what it answers, what it refuses, and VMs that it starts and stops.
//!
//! Against a daemon that is none but has the real API behind a real socket; in [`real`] against the real one with
//! real guests.
#![expect(clippy::unwrap_used, reason = "these are tests: what fails must fail them")]

mod agents;
mod answers;
mod common;
mod mistakes;
mod real;
mod run;
