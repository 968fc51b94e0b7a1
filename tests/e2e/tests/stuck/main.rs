//! Guests that are asked to give and do not, or slowly, or in part, while another is in distress.
//!
//! Whatever they do, no more is granted than was free and has been freed: at every look from outside, ten times a
//! second, by the kernel's count of the memory in use, and at every tick of the daemon's journal.

mod itself;
mod kit;
mod locked;
mod slow;
mod stopped;
mod unloaded;
