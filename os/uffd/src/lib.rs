//! userfaultfd: seeing and answering the page faults of a mapping, also of another process's.
//!
//! Place in the map: `os/`. A pager uses it to serve the faults of a guest's memory; the memory itself is filled
//! with [`Uffd::zeropage`], or by whoever writes to the file (fallocate(2)) and then [`Uffd::wake`]s.
//! It knows nothing of guests, frames and targets, keeps no thread, and waits for nothing: the descriptor is
//! polled by its owner. There are no calls here that put bytes of the caller's choice into another's memory.
//!
//! * [`Uffd`] with [`Events`]: the kernel's interface (userfaultfd(2), ioctl_userfaultfd(2));
//! * [`handover`]: taking a userfaultfd over from a VMM, which is hostile;
//! * [`memfd_huge_pages`]: whether memory will come in huge pages.
//!
//! **User-mode faults are not enough.** A userfaultfd made with `UFFD_USER_MODE_ONLY` is allowed to everybody, but
//! a guest's memory is also touched from inside the kernel: by KVM, by vhost, by every read(2) of its VMM
//! into a guest's buffer. Those would get SIGBUS or EFAULT instead of waiting. Hence only full ones here.
//!
//! ```no_run
//! use plimsoll_uffd::{Event, Events, Features, HostRange, Uffd, Watch, Woken};
//! # fn main() -> Result<(), plimsoll_uffd::UffdError> {
//! let uffd = Uffd::open(Features::SHARED_GUEST)?;
//! let guest = HostRange::new(0x7f00_0000_0000, 1 << 30)?; // a shared mapping of a memfd, in this process
//! uffd.register(guest, Watch::MissingAndWrites)?;
//! // ... poll for POLLIN ...
//! let mut events = Events::with_room_for(64);
//! for event in uffd.read(&mut events)? {
//!     if let Event::Pagefault(fault) = event {
//!         let filled = uffd.zeropage(HostRange::new(fault.page(), 4096)?, Woken::Yes)?;
// `filled.stopped`: again later, or somebody else was first and the range wants waking.
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod event;
pub mod handover;
mod huge;
mod range;
mod sys;
mod uffd;

pub use error::UffdError;
pub use event::{Event, Events, Fault, FaultKind};
pub use huge::{HugePages, memfd_huge_pages};
pub use plimsoll_uffd_wire::abi::Features;
pub use plimsoll_uffd_wire::agreement;
pub use range::HostRange;
pub use uffd::{Filled, Protection, Stop, Uffd, Watch, Woken};
