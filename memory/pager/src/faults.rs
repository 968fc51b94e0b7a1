//! Answering faults. The crate's documentation says why nobody waits for ever.

use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_frames::{Fault, WriteFault};
use plimsoll_uffd::{Event, Events, FaultKind};
use plimsoll_units::PAGES_PER_FRAME;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::file::Pages;
use crate::mapping::Unfilled;
use crate::shared::{FIRST_BACK_OFF, LONGEST_BACK_OFF, Shared, State, after, bump};
use crate::status::PagerEvent;

/// Events read at once. Few, so that one thread does not take all while another has nothing to do.
const BATCH: usize = 8;

/// What is to be done about a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Put memory behind these pages.
    Populate(Pages),
    /// It is there: wake.
    Wake,
    /// Another thread has it in hand, and wakes.
    InHand,
    /// There is no room.
    Full,
    /// The kernel has refused memory a moment ago.
    Refused,
    /// It is not the guest's.
    Odd,
}

/// What became ready.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    faults: bool,
    nudge: bool,
    hints: bool,
}

impl<W: AsRef<[AtomicU64]>> Shared<W> {
    /// One of the threads that answer faults, until the pager or the VMM ends.
    pub(crate) fn fault_thread(&self) {
        let mut events = Events::with_room_for(BATCH);
        while !self.is_stopping() && !self.gone.load(Ordering::Acquire) {
            if let Err(reason) = self.fault_round(&mut events) {
                return (self.tell)(PagerEvent::Failed { reason });
            }
        }
    }

    fn fault_round(&self, events: &mut Events) -> Result<(), String> {
        let ready = self.poll().map_err(|errno| format!("wait for faults: {errno}"))?;
        // Who has waited before goes first.
        if ready.nudge && self.nudge.take() {
            self.retry();
        }
        if ready.hints {
            self.hear();
        }
        if ready.faults {
            for event in self.mapping.uffd.read(events).map_err(|error| error.to_string())? {
                self.handle(event)?;
            }
        }
        Ok(())
    }

    fn poll(&self) -> Result<Ready, Errno> {
        let socket = self.socket.as_ref().filter(|_| !self.hints_ended.load(Ordering::Acquire));
        let mut fds = vec![
            PollFd::new(&self.mapping.uffd, PollFlags::IN),
            PollFd::new(&self.nudge, PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        fds.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let came = |at: usize| fds.get(at).map_or(PollFlags::empty(), PollFd::revents);
        // The kernel says this of a userfaultfd that can never have events.
        if came(0).intersects(PollFlags::ERR | PollFlags::NVAL) {
            return Err(Errno::BADF);
        }
        let some = |at| !came(at).is_empty();
        Ok(Ready { faults: some(0), nudge: some(1), hints: some(3) })
    }

    fn handle(&self, event: Event) -> Result<(), String> {
        match event {
            Event::Pagefault(fault) => match (self.mapping.page_at(fault.address), fault.kind) {
                (None, _) => self.odd(),
                (Some(page), FaultKind::WriteProtected) => self.serve_write(page),
                (Some(page), FaultKind::Missing | FaultKind::Minor) => {
                    bump(&mut self.lock().faults.missing);
                    self.serve(page);
                }
            },
            Event::Remove { start, end } => self.will_be_removed(start, end),
            Event::Unmap { .. } => (self.tell)(PagerEvent::Unmapped),
            Event::Remap { .. } | Event::Unknown { .. } => self.odd(),
            // It would leave a descriptor here with every fork, until there are none left.
            Event::Fork { .. } => return Err("the VMM's userfaultfd was made to tell of forks".to_owned()),
        }
        Ok(())
    }

    fn odd(&self) {
        bump(&mut self.lock().faults.odd);
    }

    /// Somebody waits for a page.
    pub(crate) fn serve(&self, page: u64) {
        let hints = self.socket.is_some() && !self.hints_ended.load(Ordering::Acquire);
        let mut answer = self.ask(page, !hints);
        if hints && answer == Answer::Full {
            // The VMM tells of a hole before the guest can touch anything because of it.
            self.hear();
            answer = self.ask(page, true);
        }
        match answer {
            Answer::Populate(pages) => self.populate(page, &pages),
            Answer::Wake => self.wake(&page_alone(page)),
            Answer::InHand | Answer::Full | Answer::Refused | Answer::Odd => {}
        }
    }

    /// Asks the ledger about a page. If it is to wait, then whoever makes room from now on will find it waiting.
    fn ask(&self, page: u64, to_wait: bool) -> Answer {
        let mut state = self.lock();
        let answer = self.ask_ledger(&mut state, page);
        match answer {
            Answer::Full if to_wait => {
                bump(&mut state.faults.exhausted);
                state.wait_for(page);
                self.work.notify_one();
            }
            Answer::Refused => state.wait_for(page),
            Answer::Wake => bump(&mut state.faults.present),
            Answer::Odd => bump(&mut state.faults.odd),
            Answer::Populate(_) | Answer::InHand | Answer::Full => {}
        }
        self.settle(state);
        answer
    }

    /// Asks the ledger, and the file where the ledger thinks that there is memory.
    pub(crate) fn ask_ledger(&self, state: &mut State<W>, page: u64) -> Answer {
        if !state.may_ask() && state.ledger.missing(self.extent(&page_alone(page))).is_some() {
            return Answer::Refused;
        }
        let mut fault = state.ledger.fault(self.space, page);
        // The lock is held: nobody populates the page between the file's answer and what is made of it.
        if fault == Fault::Present && self.file.has(page) == Ok(false) {
            bump(&mut state.faults.repaired);
            self.correct(state, &self.frame_of(page));
            fault = state.ledger.fault(self.space, page);
        }
        match fault {
            Fault::Populate(extent) => Answer::Populate(extent.first..extent.end()),
            Fault::Present => Answer::Wake,
            Fault::Arriving | Fault::Leaving => Answer::InHand,
            Fault::Exhausted(_) => Answer::Full,
            Fault::Unknown => Answer::Odd,
        }
    }

    fn frame_of(&self, page: u64) -> Pages {
        let start = (page / PAGES_PER_FRAME).saturating_mul(PAGES_PER_FRAME);
        start..start.saturating_add(PAGES_PER_FRAME).min(self.file.pages())
    }

    /// Puts memory behind pages of one frame, of which somebody waits for `page`.
    pub(crate) fn populate(&self, page: u64, pages: &Pages) {
        let filled = self.filler.fill(&self.file, &self.mapping, pages);
        let (good, bad) = (pages.start..filled.end, filled.end..pages.end);
        let mut discards = Vec::new();
        let mut state = self.lock();
        let reuse = state.reuse;
        state.ledger.populated(self.extent(&good), reuse, &mut discards);
        state.waiting.served(&good);
        let event = match filled.why {
            None => {
                state.refused_until = None;
                state.back_off = FIRST_BACK_OFF;
                None
            }
            Some(why) => self.not_filled(&mut state, page, &bad, why),
        };
        self.settle(state);
        self.carry_out(&discards);
        // Only now: whoever asked before `populated` was told that we would wake, whoever asks later sees the memory.
        self.wake(pages);
        if let Some(event) = event {
            (self.tell)(event);
        }
    }

    fn not_filled(&self, state: &mut State<W>, page: u64, bad: &Pages, why: Unfilled) -> Option<PagerEvent> {
        state.ledger.populate_failed(self.extent(bad));
        let errno = match why {
            Unfilled::Refused(errno) => Some(errno),
            Unfilled::Busy => None,
            Unfilled::Unmapped => return None,
            Unfilled::Gone => {
                self.gone.store(true, Ordering::Release);
                return Some(PagerEvent::VmmGone);
            }
        };
        bump(&mut state.faults.refused);
        state.refused_until = Some(after(state.back_off));
        state.back_off = state.back_off.saturating_mul(2).min(LONGEST_BACK_OFF);
        if bad.contains(&page) {
            state.wait_for(page);
        }
        self.work.notify_one();
        let errno = errno.filter(|_| !std::mem::replace(&mut state.told.refused, true))?;
        Some(PagerEvent::Refused { page, errno })
    }

    /// Somebody waits to write to a page that a sweep protected.
    fn serve_write(&self, page: u64) {
        let pages = page_alone(page);
        let mut state = self.lock();
        bump(&mut state.faults.protected);
        let answer = state.ledger.write_fault(self.extent(&pages));
        drop(state);
        if answer == WriteFault::Leaving {
            // Whoever discards it wakes.
            return;
        }
        match self.mapping.lift(&pages) {
            Ok(()) => {}
            Err(Unfilled::Gone) => self.vmm_gone(),
            // Comes back with a new fault, when the VMM has done whatever is in the way.
            Err(Unfilled::Busy | Unfilled::Refused(_) | Unfilled::Unmapped) => self.wake(&pages),
        }
    }

    /// Serves who waits, as long as there is room.
    fn retry(&self) {
        let most = self.lock().waiting.len();
        for _ in 0..most {
            let mut state = self.lock();
            let Some(page) = state.next_to_serve() else { return self.settle(state) };
            state.retrying = state.retrying.saturating_add(1);
            drop(state);
            self.serve(page);
            let mut state = self.lock();
            state.retrying = state.retrying.saturating_sub(1);
            self.settle(state);
        }
    }
}

pub(crate) fn page_alone(page: u64) -> Pages {
    page..page.saturating_add(1)
}
