//! What programs say to one another: the HTTP API of the daemon and the control socket of a back end.
//!
//! Types only; who listens and who asks is up to the programs.
#![forbid(unsafe_code)]

pub mod control;
pub mod http;
