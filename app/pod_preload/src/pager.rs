//! Speaking with the pager.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::c_int;
use plimsoll_uffd_wire::agreement::{OnPagerLoss, exit};
use plimsoll_uffd_wire::handover::{self, Extent, Handover, ToPager, ToVmm};

use crate::calls::{self, Errno};
use crate::say::Line;
use crate::told::Told;

/// How long somebody who gives memory back waits for room in the socket, in milliseconds. A pager reads
/// hundreds of hints in one; one that has not read for so long is not waited for again before it does.
const ROOM_MS: u64 = 1000;
/// Between two attempts to connect to a pager whose queue of connections is full.
const AGAIN_MS: u64 = 10;

/// Hints that could not be sent and that the pager does not know of yet.
static LOST: AtomicU64 = AtomicU64::new(0);
/// The pager's end is closed, and this was said.
static GONE: AtomicBool = AtomicBool::new(false);

/// A point in time until which something may take.
#[derive(Clone, Copy)]
struct Deadline {
    at_ms: u64,
}

impl Deadline {
    fn after(milliseconds: u64) -> Self {
        Self { at_ms: calls::now_ms().saturating_add(milliseconds) }
    }

    /// Milliseconds left; `None` when there are none.
    fn left(self) -> Option<u64> {
        self.at_ms.checked_sub(calls::now_ms()).filter(|left| *left > 0)
    }
}

/// Hands the mapping over and waits until the pager accepts it; ends the process if it does not. Returns the socket.
pub(crate) fn hand_over(told: &Told, said: Handover, uffd: c_int, memory: c_int) -> c_int {
    let deadline = Deadline::after(told.deadline_ms);
    let socket = connect(told, deadline).unwrap_or_else(|errno| unreachable(told, errno));
    if let Err(errno) = calls::send(socket, &ToPager::Handover(said).encode(), Some([uffd, memory])) {
        unreachable(told, errno);
    }
    match answer(socket, deadline) {
        Ok(ToVmm::Accepted) => {
            // What an earlier mapping of this process left.
            LOST.store(0, Ordering::Relaxed);
            GONE.store(false, Ordering::Relaxed);
            socket
        }
        Ok(ToVmm::Refused(why)) => {
            let line = Line::new("the pager at ").bytes(told.path());
            line.and(" refuses this guest's memory: ").and(why.words()).end(exit::PAGER)
        }
        Err(Silence::Late) => {
            let line = Line::new("the pager at ").bytes(told.path()).and(" has not answered within ");
            line.number(told.deadline_ms).and(" ms; without it the guest must not run").end(exit::PAGER)
        }
        Err(Silence::Closed) => {
            let line = Line::new("the pager at ").bytes(told.path());
            line.and(" went away without an answer; without it the guest must not run").end(exit::PAGER)
        }
        Err(Silence::Strange) => {
            let line = Line::new("at ").bytes(told.path());
            line.and(" somebody answers who is no pager of this version").end(exit::PAGER)
        }
    }
}

fn unreachable(told: &Told, errno: Errno) -> ! {
    let line = Line::new("cannot hand the guest's memory over to its pager at ").bytes(told.path());
    line.errno(errno).and("; without it the guest must not run").end(exit::PAGER)
}

fn connect(told: &Told, deadline: Deadline) -> Result<c_int, Errno> {
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(0);
    let mut address = libc::sockaddr_un { sun_family: family, sun_path: [0; 108] };
    for (slot, byte) in address.sun_path.iter_mut().zip(told.path()) {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    let socket = calls::socket()?;
    loop {
        match calls::connect(socket, &address) {
            Ok(()) => return Ok(socket),
            // Its queue is full; nothing can be polled for.
            Err(libc::EAGAIN | libc::EINTR) => {
                let left = deadline.left().ok_or(libc::ETIMEDOUT)?;
                calls::wait(-1, 0, left.min(AGAIN_MS));
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Why there is no answer.
enum Silence {
    Late,
    Closed,
    Strange,
}

fn answer(socket: c_int, deadline: Deadline) -> Result<ToVmm, Silence> {
    // One byte more than a message has, so that a longer one is not mistaken for one.
    let mut packet = [0; handover::BYTES.saturating_add(1)];
    loop {
        match calls::receive(socket, &mut packet) {
            Ok(0) | Err(libc::ECONNRESET) => return Err(Silence::Closed),
            Ok(bytes) => {
                return ToVmm::decode(packet.get(..bytes).unwrap_or_default()).map_err(|_| Silence::Strange);
            }
            Err(libc::EAGAIN | libc::EINTR) => {
                calls::wait(socket, libc::POLLIN, deadline.left().ok_or(Silence::Late)?);
            }
            Err(_) => return Err(Silence::Strange),
        }
    }
}

/// Tells the pager that memory was given back: where, after it was.
pub(crate) fn punched(socket: c_int, loss: OnPagerLoss, extent: Extent) {
    if GONE.load(Ordering::Relaxed) {
        return;
    }
    let lost = LOST.swap(0, Ordering::Relaxed);
    let message = ToPager::Punched { extent, lost };
    if !tell(socket, loss, &message, lost == 0) {
        // With another thread between, the sum is still right.
        LOST.fetch_add(lost.saturating_add(1), Ordering::Relaxed);
    }
}

/// Tells the pager that a piece is no longer mapped.
pub(crate) fn unmapped(socket: c_int, loss: OnPagerLoss, extent: Extent) {
    if !GONE.load(Ordering::Relaxed) && !tell(socket, loss, &ToPager::Unmapped(extent), true) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends a hint; `false` when there is no room for it, after a while if `patient`.
fn tell(socket: c_int, loss: OnPagerLoss, message: &ToPager, patient: bool) -> bool {
    let packet = message.encode();
    let deadline = Deadline::after(if patient { ROOM_MS } else { 0 });
    loop {
        match calls::send(socket, &packet, None) {
            Ok(()) => return true,
            Err(libc::EAGAIN | libc::EINTR | libc::ENOBUFS) => match deadline.left() {
                Some(left) => calls::wait(socket, libc::POLLOUT, left),
                None => return false,
            },
            Err(_) => {
                gone(loss);
                return true;
            }
        }
    }
}

/// Says once that nobody listens any more.
fn gone(loss: OnPagerLoss) {
    if GONE.swap(true, Ordering::Relaxed) {
        return;
    }
    let line = Line::new("the pager is gone for good: ");
    match loss {
        OnPagerLoss::Stall => line
            .and("whoever touches guest memory that is not there now waits for ever; ")
            .and("this VM can only be stopped")
            .print(),
        OnPagerLoss::Open => line.and("this VM goes on, and nothing limits its memory any more").print(),
    }
}
