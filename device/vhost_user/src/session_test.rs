//! A front end with a driver, and a device that notes what it is given.

use std::fs::File;
use std::io::{Read, Write};

use plimsoll_shm::SharedWords;
use proptest::prelude::*;
use rustix::event::EventfdFlags;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::layout::RING_WORDS;
use crate::wire::{Code, RingAddresses};
use crate::{Chain, MappedRegion};

const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const LENGTH: u64 = 0x1_0000;
const SIZE: u16 = 8;

#[derive(Debug, Default)]
struct Notes {
    handled: Vec<(u16, u64)>,
    started: Vec<(u16, bool)>,
    stopped: Vec<u16>,
    regions: usize,
    actual: u32,
}

/// Queue 0 completes, queue 1 holds.
impl Device for Notes {
    fn queues(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        0b10
    }

    fn set_features(&mut self, acked: u64) {
        assert_eq!(acked & !(0b10 | F_VERSION_1), 0);
    }

    fn read_config(&self, offset: u32, buffer: &mut [u8]) {
        buffer.fill(0);
        buffer
            .iter_mut()
            .zip(self.actual.to_le_bytes().iter().skip(offset as usize))
            .for_each(|(b, v)| *b = *v);
    }

    fn write_config(&mut self, _offset: u32, bytes: &[u8]) {
        self.actual = bytes.iter().map(|byte| u32::from(*byte)).sum();
    }

    fn set_memory(&mut self, regions: &[MappedRegion]) -> Result<(), String> {
        self.regions = regions.len();
        Ok(())
    }

    fn started(&mut self, queue: u16, anew: bool) {
        self.started.push((queue, anew));
    }

    fn stopped(&mut self, queue: u16) {
        self.stopped.push(queue);
    }

    fn handle(&mut self, queue: u16, chain: Chain<'_>) -> Outcome {
        let token = chain.into_iter().next().map_or(u64::MAX, |descriptor| descriptor.addr().0);
        self.handled.push((queue, token));
        if queue == 0 { Outcome::Complete { written: 0 } } else { Outcome::Hold }
    }
}

fn eventfd() -> Arc<OwnedFd> {
    Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap())
}

fn count(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(fd, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

struct Guest {
    file: Arc<OwnedFd>,
    memory: GuestMemoryMmap,
    words: SharedWords,
    kick: [Arc<OwnedFd>; 2],
    call: [Arc<OwnedFd>; 2],
    available: [u16; 2],
}

fn memfd(length: u64) -> Arc<OwnedFd> {
    let file = rustix::fs::memfd_create("plimsoll-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, length).unwrap();
    Arc::new(file)
}

fn whole(file: &Arc<OwnedFd>) -> Vec<(Region, Arc<OwnedFd>)> {
    vec![(Region { guest: GUEST, length: LENGTH, user: USER, offset: 0 }, Arc::clone(file))]
}

impl Guest {
    fn new() -> Self {
        let file = memfd(LENGTH);
        Self {
            memory: Memory::map(whole(&file), LENGTH).unwrap().map_of_guest().clone(),
            file,
            words: SharedWords::create("plimsoll-test", 2 * RING_WORDS).unwrap().0,
            kick: [eventfd(), eventfd()],
            call: [eventfd(), eventfd()],
            available: [0; 2],
        }
    }

    fn session(&self) -> Session<Notes> {
        let words = (0..2).map(|ring| self.words.piece(ring * RING_WORDS, RING_WORDS).unwrap());
        Session::new(Notes::default(), words, LENGTH)
    }

    fn ring_at(ring: u32) -> u64 {
        0x4000 * (u64::from(ring) + 1)
    }

    fn addresses(ring: u32) -> RingAddresses {
        let at = USER + Self::ring_at(ring);
        RingAddresses { descriptors: at, available: at + 0x1000, used: at + 0x2000 }
    }

    /// What the keeper says to a new back end.
    fn replay(&self, session: &mut Session<Notes>) {
        let mut say = |request| assert_eq!(session.request(request).unwrap(), Answer::Done);
        say(Request::SetProtocolFeatures(protocol::REPLY_ACK));
        say(Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES));
        say(Request::SetMemTable(whole(&self.file)));
        for ring in 0..2u32 {
            let index = usize::try_from(ring).unwrap();
            say(Request::SetVringNum { ring, num: u32::from(SIZE) });
            say(Request::SetVringAddr { ring, at: Self::addresses(ring) });
            for (which, fd) in [(Code::SetVringCall, &self.call), (Code::SetVringKick, &self.kick)] {
                say(Request::SetVringFd { which, ring, fd: Some(Arc::clone(&fd[index])) });
            }
            say(Request::SetVringEnable { ring, on: true });
        }
    }

    fn begin(&self, session: &mut Session<Notes>) {
        for ring in 0..2 {
            session.request(Request::SetVringBase { ring, base: 0 }).unwrap();
        }
        self.replay(session);
    }

    fn post(&mut self, ring: u32, token: u64) {
        let index = usize::try_from(ring).unwrap();
        let at = GUEST + Self::ring_at(ring);
        let next = self.available[index];
        let head = next % SIZE;
        self.memory.write_obj(token, GuestAddress(at + 16 * u64::from(head))).unwrap();
        self.memory.write_obj(4u64, GuestAddress(at + 16 * u64::from(head) + 8)).unwrap();
        self.memory.write_obj(head, GuestAddress(at + 0x1004 + 2 * u64::from(head))).unwrap();
        self.available[index] = next.wrapping_add(1);
        self.memory.write_obj(self.available[index], GuestAddress(at + 0x1002)).unwrap();
        rustix::io::write(&self.kick[index], &1u64.to_ne_bytes()).unwrap();
    }

    fn used(&self, ring: u32) -> u16 {
        self.memory.read_obj(GuestAddress(GUEST + Self::ring_at(ring) + 0x2002)).unwrap()
    }
}

#[test]
fn a_buffer_goes_to_the_device_and_back() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    assert_eq!(session.device().started, [(0, true), (1, true)]);
    assert_eq!((session.kicks().count(), session.device().regions), (2, 1));
    guest.post(0, 77);
    guest.post(1, 88);
    session.kicked(0);
    session.kicked(1);
    assert_eq!(session.device().handled, [(0, 77), (1, 88)]);
    assert_eq!((guest.used(0), guest.used(1)), (1, 0));
    assert_eq!((count(&guest.call[0]), count(&guest.call[1])), (1, 0));
    assert!(session.complete(1, 0, 0));
    assert!(!session.complete(1, 0, 0), "once only");
    assert_eq!((guest.used(1), count(&guest.call[1])), (1, 1));
}

#[test]
fn a_successor_goes_on_without_being_told_where() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    guest.post(1, 5);
    guest.post(0, 6);
    session.kicked(1);
    session.kicked(0);
    count(&guest.call[0]);
    drop(session); // as SIGKILL would: nothing is stopped
    guest.post(0, 7);
    count(&guest.kick[0]); // the dead process had taken the kick, and done nothing

    let mut session = guest.session();
    guest.replay(&mut session);
    assert_eq!(session.device().started, [(0, false), (1, false)]);
    assert_eq!(
        session.device().handled,
        [(0, 7), (1, 5)],
        "what was missed, what was held; not what was done"
    );
    assert_eq!(guest.used(0), 2);
    assert!(count(&guest.call[0]) > 0 && count(&guest.call[1]) > 0, "signalled, in case the other had not");
    assert!(session.complete(1, 0, 0));
    assert_eq!(guest.used(1), 1);
}

#[test]
fn rings_stop_by_disable_and_by_asking_where_they_stand() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    guest.post(0, 1);
    session.kicked(0);
    guest.post(1, 2);
    session.kicked(1);
    session.request(Request::SetVringEnable { ring: 0, on: false }).unwrap();
    assert!(!session.is_running(0) && session.is_running(1));
    guest.post(0, 3);
    session.work(0);
    assert_eq!(session.device().handled.len(), 2, "a stopped ring rests");
    let stand = |session: &mut Session<Notes>, ring| session.request(Request::GetVringBase { ring }).unwrap();
    assert_eq!(stand(&mut session, 0), Answer::Base { ring: 0, base: 1 });
    assert_eq!(stand(&mut session, 1), Answer::Base { ring: 1, base: 0 }, "the held buffer comes again");
    assert_eq!(stand(&mut session, 9), Answer::Base { ring: 9, base: 0 });
    assert_eq!(session.device().stopped, [0, 1]);
    session.request(Request::SetVringBase { ring: 1, base: 0 }).unwrap();
    guest.replay(&mut session);
    assert_eq!(session.device().started[2..], [(0, false), (1, true)]);
    assert_eq!(session.device().handled[2..], [(0, 3), (1, 2)]);
    assert!(matches!(
        session.request(Request::SetVringBase { ring: 1, base: 0 }),
        Err(SessionError::Running(1))
    ));
}

#[test]
fn rings_as_user_mode_linux_enables_and_disables_them() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    let both = F_VERSION_1 | F_PROTOCOL_FEATURES;
    guest.begin(&mut session);
    for ring in 0..2 {
        session.request(Request::SetVringEnable { ring, on: false }).unwrap();
    }
    // Its next driver: features twice, everything anew, and never an "enable".
    session.request(Request::SetFeatures(both)).unwrap();
    session.request(Request::SetFeatures(F_VERSION_1)).unwrap();
    assert!(!session.is_running(0), "the last driver's ring is not started by the next one's features");
    session.request(Request::SetVringBase { ring: 0, base: 0 }).unwrap();
    let kick = |ring: usize| Request::SetVringFd {
        which: Code::SetVringKick,
        ring: u32::try_from(ring).unwrap(),
        fd: Some(Arc::clone(&guest.kick[ring])),
    };
    session.request(kick(0)).unwrap();
    assert!(session.is_running(0) && !session.is_running(1));
    guest.post(0, 4);
    session.kicked(0);
    assert_eq!(session.device().handled, [(0, 4)]);
    // Its last driver is removed: it asks for the features, and frees the rings when it has them.
    session.request(Request::GetFeatures).unwrap();
    assert!(!session.is_running(0));
    guest.post(0, 5);
    session.work(0);
    assert_eq!(guest.used(0), 1, "not a byte is written any more");
}

#[test]
fn nothing_is_returned_to_a_driver_that_has_closed_its_call_pipe() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let call = Some(Arc::new(writer));
    session.request(Request::SetVringFd { which: Code::SetVringCall, ring: 1, fd: call }).unwrap();
    guest.post(1, 8);
    session.kicked(1);
    drop(reader);
    assert!(!session.complete(1, 0, 0));
    assert!(guest.used(1) == 0 && !session.is_running(1));
}

#[test]
fn memory_may_move_under_a_running_ring() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    guest.post(1, 9);
    session.kicked(1);
    // The same file at other addresses of the guest's and the front end's: ring addresses stay the front end's.
    let moved = Region { guest: 0x4000_0000, length: LENGTH, user: USER, offset: 0 };
    session.request(Request::SetMemTable(vec![(moved, Arc::clone(&guest.file))])).unwrap();
    guest.post(0, 1);
    session.kicked(0);
    assert_eq!(guest.used(0), 1);
    assert!(session.complete(1, 0, 0));
    assert_eq!((guest.used(1), session.breaks()), (1, 0));
    // And away: the rings are no longer inside.
    let away = Region { guest: 0, length: LENGTH, user: 0, offset: 0 };
    session.request(Request::SetMemTable(vec![(away, Arc::clone(&guest.file))])).unwrap();
    assert!(!session.is_running(0) && !session.is_running(1));
    assert_eq!((session.breaks(), session.take_faults().len(), session.take_faults().len()), (2, 2, 0));
    // A table that cannot be used leaves no memory at all.
    let short = Region { guest: 0, length: LENGTH + 1, user: 0, offset: 0 };
    let refused = session.request(Request::SetMemTable(vec![(short, Arc::clone(&guest.file))]));
    assert!(matches!(refused, Err(SessionError::Memory(_))));
    assert!(session.memory().is_none() && session.device().regions == 0);
}

#[test]
fn a_guest_that_breaks_its_ring_rests_until_it_sets_it_up_anew() {
    let mut guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    let index = GuestAddress(GUEST + Guest::ring_at(0) + 0x1002);
    guest.memory.write_obj(5000u16, index).unwrap();
    session.work(0);
    assert!(!session.is_running(0) && session.is_running(1));
    assert!(session.kicks().all(|(ring, _)| ring != 0), "its kicks are not listened to");
    session.request(Request::SetFeatures(F_VERSION_1)).unwrap();
    assert!(!session.is_running(0), "nothing else wakes it");
    guest.memory.write_obj(0u16, index).unwrap();
    session.request(Request::SetVringBase { ring: 0, base: 0 }).unwrap();
    assert!(session.is_running(0));
    guest.post(0, 1);
    session.kicked(0);
    assert_eq!(guest.used(0), 1);
}

#[test]
fn descriptors_that_are_always_ready_are_given_up() {
    let guest = Guest::new();
    let mut session = guest.session();
    guest.begin(&mut session);
    let mut file = tempfile();
    file.write_all(b"xyz").unwrap();
    let kick = Some(Arc::new(OwnedFd::from(file)));
    session.request(Request::SetVringFd { which: Code::SetVringKick, ring: 0, fd: kick }).unwrap();
    assert!(session.is_running(0));
    session.kicked(0);
    assert!(!session.is_running(0));
    // A pipe that nobody reads, as User Mode Linux uses for calls, filled up: telling it never waits.
    let (mut reader, writer) = rustix::pipe::pipe().map(|(r, w)| (File::from(r), w)).unwrap();
    let call = Some(Arc::new(writer));
    session.request(Request::SetVringFd { which: Code::SetVringCall, ring: 1, fd: call.clone() }).unwrap();
    (0..20_000).for_each(|_| poke(call.as_ref()));
    let mut first = [0; 8];
    reader.read_exact(&mut first).unwrap();
    assert_eq!(u64::from_ne_bytes(first), 1);
    drop(reader);
    poke(call.as_ref());
}

fn tempfile() -> File {
    File::from(rustix::fs::memfd_create("plimsoll-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
}

/// Requests as a hostile front end makes them: anything that passes the parser.
fn any_request() -> impl Strategy<Value = Request> {
    let ring = || prop_oneof![4 => 0u32..2, 1 => any::<u32>()];
    let near = prop_oneof![
        (0u64..LENGTH).prop_map(|at| USER + (at & !15)),
        any::<u64>().prop_map(|at| at & !15),
        Just(!15),
    ];
    let near = near.boxed();
    prop_oneof![
        any::<u64>().prop_map(|bits| Request::SetFeatures(bits & (0b10 | F_VERSION_1 | F_PROTOCOL_FEATURES))),
        any::<u64>().prop_map(Request::SetFeatures),
        any::<u64>().prop_map(Request::SetProtocolFeatures),
        (ring(), prop_oneof![Just(8), Just(256), any::<u32>()])
            .prop_map(|(ring, num)| Request::SetVringNum { ring, num }),
        (ring(), near.clone(), near.clone(), near).prop_map(|(ring, descriptors, used, available)| {
            Request::SetVringAddr { ring, at: RingAddresses { descriptors, used, available } }
        }),
        (0u32..2).prop_map(|ring| Request::SetVringAddr { ring, at: Guest::addresses(ring) }),
        (ring(), any::<u16>()).prop_map(|(ring, base)| Request::SetVringBase { ring, base }),
        ring().prop_map(|ring| Request::GetVringBase { ring }),
        (ring(), 0..3usize, any::<bool>()).prop_map(|(ring, which, some)| Request::SetVringFd {
            which: [Code::SetVringKick, Code::SetVringCall, Code::SetVringErr][which],
            ring,
            fd: some.then(eventfd),
        }),
        (ring(), any::<bool>()).prop_map(|(ring, on)| Request::SetVringEnable { ring, on }),
        (0u64..3, 0u64..LENGTH * 2, any::<bool>()).prop_map(|(shift, length, same)| {
            let user = if same { USER } else { 0 };
            let region = Region { guest: GUEST, length: length.max(1), user, offset: shift * 2048 };
            Request::SetMemTable(vec![(region, memfd(LENGTH))])
        }),
        (0u32..256, 0u32..256).prop_map(|(offset, length)| Request::GetConfig { offset, length, flags: 0 }),
        any::<u32>().prop_map(Request::Unknown),
    ]
}

proptest! {
    #[test]
    fn no_front_end_and_no_guest_makes_it_panic(
        steps in prop::collection::vec(
            prop_oneof![
                3 => any_request().prop_map(Ok),
                2 => (0u64..LENGTH / 2, any::<u16>()).prop_map(Err),
            ],
            0..120,
        ),
    ) {
        let guest = Guest::new();
        let mut session = guest.session();
        guest.begin(&mut session);
        for step in steps {
            match step {
                Ok(request) => {
                    let content = request.code().is_some_and(Code::has_content);
                    let answer = session.request(request);
                    prop_assert!(!content || answer.is_ok(), "a question is always answered");
                }
                Err((at, value)) => guest.memory.write_obj(value, GuestAddress(GUEST + 2 * at)).unwrap(),
            }
            for ring in 0..3 {
                session.kicked(ring);
                session.work(ring);
                session.complete(ring, ring, 0);
            }
            session.take_faults();
            session.device_mut().handled.clear();
        }
    }
}
