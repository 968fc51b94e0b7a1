//! The agent in real guests: what arrives on the host is what the guest's kernel says, at once when it matters.

mod host;
mod qemu;
mod uml;
