//! SIGKILL, twenty times each, to every program of Plimsoll and to VMMs, while memory moves.

mod back_end;
mod daemon;
mod keeper;
mod kit;
mod probe;
mod ram;
mod reports;
mod rest;
mod vmm;
