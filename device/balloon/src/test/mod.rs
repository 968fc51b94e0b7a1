//! The device as a driver sees it: real chains in real rings, guest memory in a real memfd.

mod discarders;
mod driver;
mod hostile;
mod random;
mod resume;
mod rig;
mod table;
