//! A VM whose memory is populated on demand: its VMM hands over the faults of one file, a back end serves them.
//!
//! ```text
//! nobody -- a VMM hands over --> unanswered -- the back end serves --> mapped
//!    ^                            |      ^                               |
//!    `-- no back end can be had --'      `- it hung up, and hands over --'
//!        (the VMM is refused)               anew
//! ```
//!
//! Only a mapping of the whole of the one file that the keeper was given is taken, from one process, one at a time. That
//! process may map it anew once it has hung up, which its library does when all was unmapped; what is in the file
//! stays. No other process ever may: with the first one the VM ends.
//!
//! The keeper holds the userfaultfd and the VMM's connection, and reads neither. While no back end lives, the guest waits.

mod caller;
mod guest;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use plimsoll_uffd::handover::{HandedOver, PodListener, Refusal, ToVmm, VmmSocket};
use plimsoll_uffd::{Uffd, Woken};
use plimsoll_vhost_user::Polls;
use plimsoll_vhost_user::handover::{Mapping, Work};
use rustix::event::PollFlags;

use self::caller::{Caller, Callers, NotTaken, Said};
use self::guest::GuestMemory;
use crate::args::Args;
use crate::base::{Base, copy};
use crate::keeper;
use crate::sockets::{self, Place};

/// Where the library in the VMM connects.
const SOCKET: &str = "pod.sock";

/// How long a back end may take until it serves before it is taken for hung and killed.
const SERVING_DUE: Duration = Duration::from_secs(20);

/// How long there is no back end after too many have died in a row. The guest waits meanwhile, and its kernel takes a CPU that stands
/// still for 20 seconds for a fault of its own (kernel/watchdog.c: twice `watchdog_thresh`).
const REST: Duration = Duration::from_secs(5);

/// The shared memory is laid out for one device. Here that is the guest's memory.
const MEMORY: usize = 0;

/// A VM's memory.
pub(crate) struct Pod {
    guest: GuestMemory,
    listener: PodListener,
    _place: Place,
    callers: Callers,
    /// The process that handed over first.
    owner: Option<u32>,
    mapped: Option<Mapped>,
    /// When the back end must have said that it serves; none once it has, or while there is none.
    serving_by: Option<Instant>,
}

/// What the VMM has handed over.
struct Mapped {
    uffd: Uffd,
    connection: VmmSocket,
    address: u64,
    /// The VMM waits for its answer.
    unanswered: bool,
}

/// What became ready.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Connect,
    Caller(u64),
    Serving,
}

impl Pod {
    /// Takes the guest's memory from standard input, makes the socket and the shared memory.
    pub(crate) fn new(args: Args) -> anyhow::Result<(Base, Self)> {
        let guest = GuestMemory::new(sockets::standard_input()?, &args)?;
        let maxmem = args.maxmem;
        let base = Base::new(args, 1, maxmem, REST)?;
        let place = Place::clear(base.folder(), SOCKET)?;
        let listener = PodListener::bind(place.path())?;
        let pod = Self {
            guest,
            listener,
            _place: place,
            callers: Callers::default(),
            owner: None,
            mapped: None,
            serving_by: None,
        };
        Ok((base, pod))
    }

    fn accept(&mut self, now: Instant) {
        match self.listener.accept() {
            Ok(Some(socket)) => {
                if let Some(pid) = sockets::trusted_peer(&socket) {
                    self.callers.add(socket, pid, now);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a VMM could not connect"),
        }
    }

    fn hear(&mut self, id: u64, base: &mut Base, now: Instant) {
        let (caller, error) = match self.callers.hear(id) {
            Said::Nothing => return,
            Said::Nonsense(caller, error) => (caller, error),
            Said::HandedOver(caller, taken) => match self.admit(&caller, &taken, base, now) {
                Ok(()) => return self.take(caller, *taken, base, now),
                Err(error) => (caller, error),
            },
        };
        if let Some(more) = base.log.pass(now) {
            tracing::warn!(pid = caller.pid, %error, more, "refused a VMM's memory");
        }
        answer(&caller.socket, ToVmm::Refused(error.refusal()));
    }

    /// Whether a mapping may be taken from who offers it; that process is watched from then on.
    fn admit(
        &self,
        caller: &Caller,
        taken: &HandedOver,
        base: &mut Base,
        now: Instant,
    ) -> Result<(), NotTaken> {
        taken.check(self.guest.id())?;
        if let Some(owner) = self.owner.filter(|owner| *owner != caller.pid) {
            return Err(NotTaken::Owned(owner));
        }
        if self.mapped.as_ref().is_some_and(|mapped| !plimsoll_shm::is_broken(&mapped.connection)) {
            return Err(NotTaken::Twice);
        }
        // A VMM may stop watching later too, but then it harms itself: what it gets is more than its guest was promised, from
        // what its control group lets it have.
        let _ = taken.uffd.lift_protection(taken.range, Woken::No).map_err(NotTaken::Unseen)?;
        base.connected(caller.pid).map_err(|error| {
            base.disconnected(now);
            NotTaken::Unwatched(error)
        })
    }

    /// Another back end takes the mapping over. The one before has an older one, or none.
    fn take(&mut self, caller: Caller, taken: HandedOver, base: &mut Base, now: Instant) {
        tracing::info!(pid = caller.pid, range = %taken.range, "a VMM hands its guest's memory over");
        base.layout.connected(MEMORY);
        self.owner = Some(caller.pid);
        self.mapped = Some(Mapped {
            uffd: taken.uffd,
            connection: caller.socket,
            address: taken.range.start(),
            unanswered: true,
        });
        self.serving_by = None;
        base.replace_back(now);
    }

    /// The back end has said something: that it serves.
    fn serving(&mut self, base: &mut Base) {
        if self.serving_by.is_none() {
            // It was replaced in this very moment: what it serves is not what was taken.
            return;
        }
        match base.hears_serving() {
            Ok(false) => return,
            Ok(true) => {
                if let Some(mapped) = self.mapped.as_mut().filter(|mapped| mapped.unanswered) {
                    mapped.unanswered = false;
                    answer(&mapped.connection, ToVmm::Accepted);
                }
            }
            Err(why) => {
                tracing::debug!(%why, "the back end is of no use");
                base.kill_back();
            }
        }
        self.serving_by = None;
    }
}

/// A VMM that does not take its answer has ended, which is seen, or waits in vain by its own will.
fn answer(vmm: &VmmSocket, answer: ToVmm) {
    if let Err(error) = vmm.answer(answer) {
        tracing::warn!(%error, ?answer, "a VMM was not answered");
    }
}

impl keeper::Kind for Pod {
    type Event = Event;

    const RESTING: &str =
        "the guest waits where it touches memory that it does not have, until there is another";

    fn watch<'a>(&'a self, base: &'a Base, polls: &mut Polls<'a, keeper::Event<Event>>) {
        if self.callers.have_room() {
            polls.add(self.listener.as_fd(), PollFlags::IN, keeper::Event::Own(Event::Connect));
        }
        for (id, socket) in self.callers.sockets() {
            polls.add(socket, PollFlags::IN, keeper::Event::Own(Event::Caller(id)));
        }
        if let Some(back_end) = base.serving_poll().filter(|_| self.serving_by.is_some()) {
            polls.add(back_end, PollFlags::IN, keeper::Event::Own(Event::Serving));
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.callers.deadline().into_iter().chain(self.serving_by).min()
    }

    fn happened(&mut self, event: Event, base: &mut Base, now: Instant) {
        match event {
            Event::Connect => self.accept(now),
            Event::Caller(id) => self.hear(id, base, now),
            Event::Serving => self.serving(base),
        }
    }

    fn expire(&mut self, base: &mut Base, now: Instant) {
        let silent = self.callers.expire(now);
        if silent > 0
            && let Some(more) = base.log.pass(now)
        {
            tracing::warn!(silent, more, "hung up on who connected and handed nothing over");
        }
        if self.serving_by.is_some_and(|by| now >= by) {
            tracing::error!("the back end does not come to serve and is killed");
            self.serving_by = None;
            base.kill_back();
        }
    }

    fn start(&mut self, base: &mut Base, now: Instant) -> anyhow::Result<()> {
        let vmm = match &self.mapped {
            Some(mapped) => Some(Mapping {
                uffd: copy(mapped.uffd.as_fd())?,
                connection: copy(mapped.connection.as_fd())?,
                address: mapped.address,
            }),
            None => None,
        };
        base.start_back(Work::OnDemand { guest: copy(self.guest.as_fd())?, vmm })?;
        self.serving_by = Some(now + SERVING_DUE);
        Ok(())
    }

    fn back_gone(&mut self, _: &mut Base, _: Instant) {
        self.serving_by = None;
    }

    fn rest(&mut self, _: &mut Base, _: Instant) -> bool {
        if let Some(mapped) = self.mapped.take_if(|mapped| mapped.unanswered) {
            answer(&mapped.connection, ToVmm::Refused(Refusal::Other));
        }
        self.mapped.is_some()
    }

    /// Its memory is of use to nobody, and others than this process may have it open.
    fn vmm_ended(&self, _: &Base) {
        self.guest.give_back();
    }
}
