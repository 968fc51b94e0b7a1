//! Memory that is populated on demand: stock QEMU under software emulation, Debian's stock kernel, a guest that is told of
//! twice what it is granted.

mod boot;
mod kills;
mod kit;
mod mistakes;
mod reboot;
mod stalls;
mod sweeps;
