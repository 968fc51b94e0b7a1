//! Front ends and guests that do what none may. Neither the keeper nor anybody else's VM suffers.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;
use plimsoll_vhost_user::wire::{Code, flag};

use crate::common::{Keeper, LIMIT, open_files};
use crate::driver::{Front, GUEST, LENGTH, SIZE, USER, eventfd, longs, memfd, ring_at, table, words};

const MEM: Bytes = Bytes(LENGTH);

fn wait(what: &str, mut look: impl FnMut() -> bool) {
    poll_until(LIMIT, what, || look().then_some(()).ok_or_else(|| "not yet".to_owned())).unwrap();
}

/// A VM that does nothing wrong, beside those that do.
struct Neighbour {
    keeper: Keeper,
    front: Front,
}

impl Neighbour {
    fn start() -> Self {
        let keeper = Keeper::start("neighbour", MEM, &[]);
        let mut front = Front::connect(&keeper);
        front.start();
        Self { keeper, front }
    }

    fn is_unharmed(&mut self) {
        let used = self.front.used(0);
        self.front.inflate(&[600]);
        wait("the neighbour's inflation", || self.front.used(0) == used + 1);
        let status = self.keeper.status();
        assert_eq!((status.epoch, status.generation, status.counters.bad_buffers), (1, 1, 0));
    }
}

/// The victim still serves a front end that does everything right.
fn serves(keeper: &Keeper) {
    let mut front = Front::connect(keeper);
    front.start();
    front.fill(512..1024);
    // The first one also touches the pages of the ring.
    front.inflate(&[600]);
    wait("an inflation", || front.used(0) == 1);
    let before = front.resident();
    front.inflate(&[700, 701, 702]);
    wait("another", || front.used(0) == 2);
    assert_eq!(front.lost(512..1024), [600, 700, 701, 702], "what was named, and nothing else");
    assert_eq!(before - front.resident(), 3 * 4096);
}

#[test]
fn streams_that_are_no_messages_end_their_connection_only() {
    let mut neighbour = Neighbour::start();
    let keeper = Keeper::start("streams", MEM, &[]);
    let header = |code: u32, flags: u32, length: u32| words(&[code, flags, length]);
    for bytes in [
        header(1, 2, 0),
        header(1, 1 | flag::REPLY, 0),
        header(1, 0xf1, 0),
        header(5, 1, u32::MAX),
        header(5, 1, 4097),
        header(31, 1, 0),
        header(2, 1, 4).into_iter().chain([0; 4]).collect(),
        b"GET / HTTP/1.1\r\nHost: keeper\r\n\r\n".to_vec(),
        vec![0xff; 5000],
    ] {
        let mut front = Front::connect(&keeper);
        (&front.socket).write_all(&bytes).unwrap();
        assert!(front.is_hung_up_on(), "{bytes:?}");
    }
    // Half a header, half a payload, and gone.
    for bytes in [&header(5, 1, 40)[..7], &header(5, 1, 40)[..], &[]] {
        let front = Front::connect(&keeper);
        (&front.socket).write_all(bytes).unwrap();
    }
    serves(&keeper);
    neighbour.is_unharmed();
}

#[test]
fn a_front_end_that_stops_in_the_middle_of_a_message_is_hung_up_on_and_does_not_hold_anybody_up() {
    let keeper = Keeper::start("halves", MEM, &[]);
    let mut front = Front::connect(&keeper);
    (&front.socket).write_all(&[1, 0]).unwrap();
    let begin = Instant::now();
    assert!(keeper.status().connected || keeper.status().generation <= 1, "the back end answers meanwhile");
    assert!(front.is_hung_up_on());
    assert!(begin.elapsed() > Duration::from_secs(5), "it had some time");
    serves(&keeper);
}

#[test]
fn descriptors_beyond_measure_are_refused_and_do_not_pile_up() {
    let mut neighbour = Neighbour::start();
    let keeper = Keeper::start("descriptors", MEM, &[]);
    serves(&keeper);
    wait("quiet", || !keeper.status().connected);
    let before = open_files(keeper.pid());
    let memory = memfd(4096);
    for round in 0..50 {
        let mut front = Front::connect(&keeper);
        let fds = vec![memory.as_fd(); 8];
        // Eight where none belong; eight with a table of one; eight twice in one message, by its two halves.
        match round % 3 {
            0 => assert!(front.send(1, 1, Vec::new(), &fds)),
            1 => assert!(front.send(5, 1, table(&[[0, 4096, 0, 0]]), &fds)),
            _ => {
                let message = [words(&[5, 1, 40]), table(&[[0, 4096, 0, 0]])].concat();
                plimsoll_shm::send(&front.socket, &message[..12], &fds).unwrap();
                plimsoll_shm::send(&front.socket, &message[12..], &fds).unwrap();
            }
        }
        assert!(front.is_hung_up_on());
    }
    wait("the descriptors to be closed", || open_files(keeper.pid()) <= before);
    serves(&keeper);
    neighbour.is_unharmed();
}

#[test]
fn memory_tables_that_cannot_be_are_refused() {
    let mut neighbour = Neighbour::start();
    let keeper = Keeper::start("tables", MEM, &[]);
    let file = memfd(0x10_0000);
    let one = [0x1000, 0x1000, 0x1000, 0];
    // The keeper hangs up on what no front end may say.
    for (payload, fds) in [
        (table(&[]), 0),
        (table(&[one]), 2),
        (table(&[one, one]), 2),
        (table(&[[0, 0, 0, 0]]), 1),
        (table(&[[u64::MAX - 10, 4096, 0, 0]]), 1),
        (table(&[[0, 4096, 0, u64::MAX - 10]]), 1),
        (words(&[u32::MAX, 0]), 1),
    ] {
        let mut front = Front::connect(&keeper);
        front.negotiate();
        front.send(5, 9, payload.clone(), &vec![file.as_fd(); fds]);
        assert!(front.is_hung_up_on(), "{payload:?}");
    }
    // The back end refuses what this front end cannot have meant.
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let mut front = Front::connect(&keeper);
    front.negotiate();
    for (region, fd) in [
        ([0, 0x10_1000, 0, 0], file.as_fd()),      // longer than its file
        ([0, 0x1000, 0, 0x10_0000], file.as_fd()), // behind its end
        ([0, 0x1000, 0, 0x800], file.as_fd()),     // not at a page
        ([0, 0x1000, 0, 0], pipe.as_fd()),
        ([0, 0x1000, 0, 0], zero.as_fd()),
        ([0, 1 << 40, 0, 0], memfd(1 << 40).as_fd()), // more than it was said to have
    ] {
        assert_ne!(front.set(Code::SetMemTable, table(&[region]), &[fd]), Some(0), "{region:?}");
    }
    assert_eq!(front.show_memory(), Some(0), "the same connection goes on");
    drop(front);
    serves(&keeper);
    assert!(!keeper.log().contains("the back end died"), "{}", keeper.log());
    neighbour.is_unharmed();
}

#[test]
fn rings_that_cannot_be_are_refused_or_rest() {
    let keeper = Keeper::start("rings", MEM, &[]);
    let mut front = Front::connect(&keeper);
    // Before anything was agreed on: nothing is acknowledged, nothing breaks.
    for (code, payload) in [
        (Code::SetVringNum, words(&[0, 64])),
        (Code::SetVringBase, words(&[0, 9])),
        (Code::SetVringEnable, words(&[0, 1])),
        (Code::SetVringAddr, [words(&[0, 0]), longs(&[0, 0, 0, 0])].concat()),
        (Code::SetFeatures, longs(&[u64::MAX])),
    ] {
        assert!(front.send(code.number(), flag::VERSION, payload, &[]));
    }
    assert_eq!(front.get(Code::GetVringBase, words(&[0, 0])).unwrap(), words(&[0, 9]));
    front.negotiate();
    let kick = eventfd();
    let fds = [kick.as_fd()];
    for (code, payload, fds) in [
        (Code::SetVringNum, words(&[u32::MAX, 64]), &fds[..0]),
        (Code::SetVringNum, words(&[0, 0]), &fds[..0]),
        (Code::SetVringNum, words(&[0, 257]), &fds[..0]),
        (Code::SetVringNum, words(&[0, u32::MAX]), &fds[..0]),
        (Code::SetVringBase, words(&[77, 0]), &fds[..0]),
        (Code::SetVringEnable, words(&[77, 1]), &fds[..0]),
        (Code::SetVringKick, longs(&[200]), &fds[..]),
        (Code::SetVringErr, longs(&[5]), &fds[..]),
        (Code::SetFeatures, longs(&[u64::MAX]), &fds[..0]),
        (Code::SetProtocolFeatures, longs(&[u64::MAX]), &fds[..0]),
    ] {
        assert_eq!(front.set(code, payload.clone(), fds), Some(1), "{code:?} {payload:?}");
    }
    assert_eq!(front.get(Code::GetVringBase, words(&[4000, 0])).unwrap(), words(&[4000, 0]));
    // A ring outside the memory: everything is taken, and it never runs.
    front.show_memory();
    let outside = [words(&[0, 0]), longs(&[USER + LENGTH, USER, USER + 0x1000, 0])].concat();
    front.set(Code::SetVringNum, words(&[0, 64]), &[]);
    front.set(Code::SetVringAddr, outside, &[]);
    front.set(Code::SetVringKick, longs(&[0]), &fds);
    front.set(Code::SetVringEnable, words(&[0, 1]), &[]);
    assert!(!keeper.status().driver_ready);
    front.start_ring(1);
    front.start_ring(0);
    assert!(keeper.status().driver_ready, "set up right it does");
}

#[test]
fn the_configuration_space_has_bounds_and_most_of_it_is_the_hosts() {
    let keeper = Keeper::start("config", MEM, &["--initial-balloon", "5"]);
    for (code, offset, length) in
        [(24, u32::MAX, 4), (24, 250, 8), (24, 0, u32::MAX), (25, 257, 0), (25, u32::MAX, 4)]
    {
        let mut front = Front::connect(&keeper);
        front.negotiate();
        front.send(code, 1, [words(&[offset, length, 0]), vec![0xff; 4]].concat(), &[]);
        assert!(front.is_hung_up_on(), "{code} {offset} {length}");
    }
    let mut front = Front::connect(&keeper);
    front.negotiate();
    let write = |offset: u32, bytes: &[u8]| {
        [words(&[offset, u32::try_from(bytes.len()).unwrap(), 0]), bytes.to_vec()].concat()
    };
    assert_eq!(front.set(Code::SetConfig, write(0, &[0xff; 4]), &[]), Some(0));
    assert_eq!(front.set(Code::SetConfig, write(3, &[0xff; 8]), &[]), Some(0));
    assert_eq!(front.set(Code::SetConfig, write(100, &[0xff; 100]), &[]), Some(0));
    let read = front.get(Code::GetConfig, words(&[0, 256, 0])).unwrap();
    assert_eq!(read[12..16], 5u32.to_le_bytes(), "num_pages is the host's");
    assert!(read.len() == 12 + 256 && read[12 + 16..].iter().all(|byte| *byte == 0));
    assert_eq!(keeper.status().num_pages.0.0, 5);
}

#[test]
fn a_hostile_guest_discards_nothing_it_did_not_name() {
    let mut neighbour = Neighbour::start();
    let keeper = Keeper::start("guest", MEM, &["--give-up-after", "1000"]);
    let mut front = Front::connect(&keeper);
    front.start();
    front.fill(512..4096);
    // A chain that goes round in circles; one that points outside the table; a buffer outside the memory; one that
    // leaves it; an indirect table inside an indirect table; page numbers outside, and more of them than there are pages.
    front.describe(0, 0, (GUEST + 0x1000, 4), (1, 1));
    front.describe(0, 1, (GUEST + 0x1000, 4), (1, 0));
    front.describe(0, 2, (GUEST + 0x1000, 4), (1, 60_000));
    front.describe(0, 3, (u64::MAX - 2, 4096), (0, 0));
    front.describe(0, 4, (GUEST + LENGTH - 6, 4096), (0, 0));
    front.describe(0, 5, (GUEST + ring_at(0)[0] + 16 * 5, 16), (4, 0));
    front.write(0x1000, &[0xff; 4096]);
    front.describe(0, 6, (GUEST + 0x1000, 4096), (0, 0));
    front.describe(0, 7, (GUEST + 0x1000, u32::MAX), (0, 0));
    front.describe(0, 8, (GUEST + 0x1000, 4096), (2, 0));
    for head in [0, 2, 3, 4, 5, 6, 7, 8] {
        front.post(0, head);
    }
    wait("all of them to come back", || front.used(0) == 8);
    assert_eq!(front.lost(512..4096), [0u64; 0]);
    let status = keeper.status();
    assert!(status.counters.bad_buffers > 0 && status.counters.bad_pages > 0, "{status:?}");
    assert_eq!(status.ledger.ballooned.0, 0);

    // An available index that jumps: the ring rests, the others do not, and set up anew it runs.
    front.write(ring_at(0)[1] + 2, &(SIZE + 500).to_le_bytes());
    front.kick();
    wait("the ring to rest", || !keeper.status().driver_ready);
    assert_eq!(front.get(Code::GetVringBase, words(&[1, 0])).unwrap(), words(&[1, 0]));
    assert_eq!(front.lost(512..4096), [0u64; 0]);
    let epochs = keeper.status().epoch;
    drop(front);

    // A guest that takes its memory's file away from under the back end kills it, and it alone.
    let mut front = Front::connect(&keeper);
    front.start();
    front.memory.set_len(0).unwrap();
    front.kick();
    let begun = Instant::now();
    wait("the back end to die", || keeper.try_status().is_none_or(|now| now.epoch > epochs + 1));
    assert!(begun.elapsed() < LIMIT);
    drop(front);
    serves(&keeper);
    neighbour.is_unharmed();
}

/// A small generator of numbers (Knuth's linear congruential one), so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn a_storm_of_nonsense_leaves_everything_as_it_was() {
    let mut neighbour = Neighbour::start();
    let keeper = Keeper::start("storm", MEM, &["--give-up-after", "1000"]);
    let mut dice = Dice(42);
    let memory = memfd(LENGTH);
    for _ in 0..60 {
        let mut front = Front::connect(&keeper);
        if dice.roll(2) == 0 {
            front.negotiate();
        }
        for _ in 0..100 {
            let code = u32::try_from(dice.roll(46)).unwrap();
            let length =
                usize::try_from([0, 8, 40, 16, 72, dice.roll(300)][usize::try_from(dice.roll(6)).unwrap()])
                    .unwrap();
            let small = dice.roll(3) > 0;
            let payload = (0..length)
                .map(|at| {
                    if small && at % 4 != 0 {
                        0
                    } else {
                        u8::try_from(dice.roll(if small { 4 } else { 256 })).unwrap()
                    }
                })
                .collect();
            let fds = vec![memory.as_fd(); usize::try_from(dice.roll(8) / 6).unwrap()];
            let flags = if dice.roll(2) == 0 { 1 } else { 9 };
            if !front.send(code, flags, payload, &fds) {
                break;
            }
            // Sometimes it even listens.
            if dice.roll(3) == 0 {
                let _ = plimsoll_shm::receive(&front.socket, &mut [0; 4096]);
            }
        }
    }
    serves(&keeper);
    assert_eq!(keeper.log().matches("panicked").count(), 0, "{}", keeper.log());
    neighbour.is_unharmed();
}

#[test]
fn a_second_front_end_of_another_process_is_turned_away() {
    let keeper = Keeper::start("second", MEM, &[]);
    let mut front = Front::connect(&keeper);
    front.start();
    // This process may connect anew, which ends its first connection; another process may not.
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", "hostile::other_process", "--ignored"]).env(SOCKET, keeper.socket());
    let output = other.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    front.inflate(&[900]);
    wait("the first to be served as before", || front.used(0) == 1);
    let anew = Front::connect(&keeper);
    assert!(front.is_hung_up_on());
    drop(anew);
    serves(&keeper);
}

/// Tells [`other_process`] where to connect.
const SOCKET: &str = "PLIMSOLL_TEST_SOCKET";

#[test]
#[ignore = "not a test of its own: it is run in another process by a_second_front_end_of_another_process_is_turned_away"]
fn other_process() {
    let mut socket = UnixStream::connect(std::env::var_os(SOCKET).unwrap()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0, "it is hung up on at once");
}
