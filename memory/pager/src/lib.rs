//! Populate-on-demand for one guest: its kernel is told of `maxmem`, memory is put behind its pages when they are first touched, and
//! never more than its target allows. When that is used up, pages that hold nothing but zeros are found and taken back; if there
//! are none, the guest waits. It is never killed for touching what it was promised.
//!
//! Place in the map: `memory/`, on top of the ledger (`core/frames`) and the kernel's userfaultfd (`os/uffd`). It lives in a
//! VM's back end, which a keeper starts again when it dies; what must outlive it is in the ledger's shared words, in the file that
//! is the guest's memory, and in the kernel. So it may be killed at any instant: [`Pager::start`] takes over.
//!
//! What it does not do: it decides nothing about targets and about what becomes of a guest that waits (it tells: [`PagerEvent`]);
//! it maps nothing, reads no file but the guest's memory, and knows no balloon, VMM or guest physical address.
//!
//! ```no_run
//! use plimsoll_frames::Ledger;
//! use plimsoll_pager::{Config, Pager, Parts};
//! use plimsoll_shm::SharedWords;
//! use plimsoll_uffd::handover::HandedOver;
//! use plimsoll_units::{Bytes, MemTarget};
//!
//! // What the VMM hands over: see plimsoll_uffd::handover.
//! fn serve(vmm: HandedOver) -> Result<Pager<SharedWords>, Box<dyn std::error::Error>> {
//!     let frames = Ledger::frames_for(Bytes(vmm.range.len()));
//!     let (words, _memfd) = SharedWords::create("ledger", Ledger::words_needed(frames, frames)?)?;
//!     let ledger = Ledger::format(words, frames, frames)?;
//!     let parts = Parts { memory: vmm.memory, uffd: vmm.uffd, range: vmm.range, ledger, hints: None };
//!     let pager = Pager::start(parts, &Config::for_memfd()?, |event| drop(event))?;
//!     pager.set_target(MemTarget(Bytes::mib(256)));
//!     Ok(pager)
//! }
//! ```
//!
//! # Threads
//! Some (2) answer faults, one sweeps, and while it sweeps it has a helper that punches. They share the ledger under one lock, which
//! is held to ask it and to answer it, never while memory is populated, read or discarded.
//!
//! # Nobody waits for ever
//! A thread of the VMM that touches a page without memory sleeps until the page is *woken*; then it tries again, and if the page is
//! still missing there is a new fault. So waking is always safe. The kernel tells each fault once, to one reader. For each that
//! is read, one of these holds:
//!
//! 1. *Populate*: the reader populates, answers the ledger, and then wakes.
//! 2. *Present*: the file is asked whether there is memory, under the lock. If so, the reader wakes. If not, the ledger is
//!    corrected and asked again.
//! 3. *Arriving, Leaving*, or a write to a page that is being discarded: another thread has told the ledger that it populates or
//!    discards the page and has not answered. **Whoever does either answers first and wakes the pages afterwards**, and it answers
//!    under the lock under which this fault was looked up: so its wake is still to come.
//! 4. *No room*: the page is put on a list, under the same lock as the ledger was asked. Whatever makes room changes the
//!    ledger under that lock, ends in one function (`settle`), and pokes the fault threads if there is room and the list is not empty.
//!    Either the page was on the list by then, or the ledger was asked afterwards. Each page taken from the list is asked for like
//!    a new fault.
//! 5. *The kernel has no memory*: on the same list, with a time after which it is tried again.
//! 6. *A write to a protected page*: protection is lifted and the page woken. A page whose protection cannot be lifted is
//!    woken all the same, and comes back.
//! 7. *The reader is killed*: the next pager wakes everything before it serves.
//! 8. *Not the guest's memory*: not ours to answer.
//!
//! Besides, once a second somebody looks whether anybody waits although there is room.
//!
//! # The limit is kept
//! The ledger counts a page as resident before memory is asked for, and until after it is gone. What the kernel gives is never more
//! than was asked for: frames are filled in one piece only if all of the frame is to be filled, everything else comes as single pages.
//! What was punched is looked for afterwards: the kernel says it punched also where it could not split a huge page, and then the
//! ledger hears that the memory is still there. Nothing is *reserved* (fallocate(2)): reserved pages look like holes to whoever
//! asks the file, and would be memory that nobody knows of.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

mod config;
mod error;
mod faults;
mod file;
mod fill;
mod look;
mod mapping;
mod pager;
mod pins;
mod punch;
mod recover;
mod scan;
mod shared;
mod status;
mod sweep;
mod tend;
mod waiting;

pub use config::{AroundDiscard, Config, Scrub};
pub use error::{PinError, ResetError, StartError};
pub use pager::{Pager, Parts};
pub use pins::Pinned;
pub use scan::{Scannable, Scanner};
pub use status::{FaultCounters, HintCounters, PagerEvent, PagerStatus, Stalled, SweepReport, SweepStatus};
