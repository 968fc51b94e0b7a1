//! The daemon as a program: real sockets, real processes, back ends of straw.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod api;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod common;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod host;
#[cfg(test)]
mod journal;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod pod;
#[cfg(test)]
mod qemu;
#[cfg(test)]
mod restart;
