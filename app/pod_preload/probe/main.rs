//! A program for tests to preload the library into: it does, on demand, with its memory what a VMM might do.
//!
//! Its first argument is the number of an inherited descriptor, the "guest's memory". It reads commands from standard
//! input, one a line, and answers each with a line, after the call: what it returned, and errno if it failed.
#![expect(unsafe_code, reason = "it is about what these calls do")]
#![expect(clippy::print_stdout, reason = "its answers are what it is for")]

use std::ffi::{c_int, c_void};
use std::io::BufRead;
use std::process::Command;
use std::ptr;

const PAGE: usize = 4096;

fn main() {
    let fd = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(-1);
    let mut probe = Probe { fd, size: size_of_file(fd), start: ptr::null_mut() };
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        println!("{}", probe.obey(words.first().copied().unwrap_or_default(), number(1), number(2)));
    }
}

struct Probe {
    fd: c_int,
    size: usize,
    start: *mut c_void,
}

/// What a call returned, in words.
fn outcome(failed: bool) -> String {
    if failed { format!("error {}", errno()) } else { "ok".into() }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

impl Probe {
    fn obey(&mut self, command: &str, first: usize, second: usize) -> String {
        let shared = libc::MAP_SHARED;
        match command {
            "map" => self.map(shared, 0, self.size),
            "map-populated" => self.map(shared | libc::MAP_POPULATE, 0, self.size),
            "map-private" => self.map(libc::MAP_PRIVATE, 0, self.size),
            "map-locked" => self.map(shared | libc::MAP_LOCKED, 0, self.size),
            "map-part" => self.map(shared, first, second),
            "map-nowhere" => self.map(shared | libc::MAP_FIXED, 1, self.size),
            "map-other" => other(),
            "lock-future" => lock_future(),
            "cover" => self.cover(first, second),
            "touch" => self.touch(first, second),
            "punch" => self.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, first, second),
            "allocate" => self.allocate(0, first, second),
            "flood" => self.flood(first, second),
            "remove" => self.advise(libc::MADV_REMOVE, first, second),
            "drop" => self.advise(libc::MADV_DONTNEED, first, second),
            "unmap" => self.unmap(first, second),
            "move" => self.remap(),
            "errno" => kept_errno(),
            "preload" => std::env::var("LD_PRELOAD").unwrap_or_else(|_| "unset".into()),
            "child-preload" => child(),
            "fork-maps" => fork(Self::inherited, self),
            "fork-map" => fork(Self::map_again, self),
            _ => format!("unknown command {command}"),
        }
    }

    fn map(&mut self, flags: c_int, offset: usize, length: usize) -> String {
        // Its own address, as a hint; with MAP_FIXED an address that no mapping can begin at.
        let hint: *mut c_void =
            if flags & libc::MAP_FIXED == 0 { ptr::null_mut() } else { ptr::dangling_mut() };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let offset = if hint.is_null() { i64::try_from(offset).unwrap_or(0) } else { 0 };
        // SAFETY: at an address of the kernel's choice, or at one that the kernel refuses.
        let start = unsafe { libc::mmap(hint, length, protection, flags, self.fd, offset) };
        if start == libc::MAP_FAILED {
            return outcome(true);
        }
        self.start = start;
        outcome(false)
    }

    /// Maps something else where the memory was.
    fn cover(&self, offset: usize, length: usize) -> String {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: replaces a piece of the memory, to which this program keeps no reference.
        let covered = unsafe { libc::mmap(self.at(offset), length, libc::PROT_READ, flags, -1, 0) };
        outcome(covered == libc::MAP_FAILED)
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.start.wrapping_byte_add(offset)
    }

    /// Writes to pages, and says how many have what was written.
    fn touch(&self, offset: usize, pages: usize) -> String {
        let addresses = (0..pages.max(1)).map(|page| self.at(offset + page * PAGE).cast::<u8>());
        for address in addresses.clone() {
            // SAFETY: in the mapping, which the test has made before.
            unsafe { address.write_volatile(7) };
        }
        let good = addresses.filter(|address| {
            // SAFETY: as above.
            unsafe { address.read_volatile() == 7 }
        });
        format!("ok {}", good.count())
    }

    fn allocate(&self, mode: c_int, offset: usize, length: usize) -> String {
        let (offset, length) = (i64::try_from(offset).unwrap_or(0), i64::try_from(length).unwrap_or(0));
        // SAFETY: no pointers.
        outcome(unsafe { libc::fallocate(self.fd, mode, offset, length) } != 0)
    }

    /// Punches so many pages, one by one, in so many threads at once.
    fn flood(&self, pages: usize, threads: usize) -> String {
        let fd = self.fd;
        let share =
            |thread: usize| (thread..pages).step_by(threads).filter(|page| punch(fd, page * PAGE)).count();
        let good: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
            all.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        format!("ok {good}")
    }

    fn advise(&self, advice: c_int, offset: usize, length: usize) -> String {
        // SAFETY: in the mapping, to which this program keeps no reference.
        outcome(unsafe { libc::madvise(self.at(offset), length, advice) } != 0)
    }

    fn unmap(&self, offset: usize, length: usize) -> String {
        // SAFETY: as above.
        outcome(unsafe { libc::munmap(self.at(offset), length) } != 0)
    }

    fn remap(&self) -> String {
        // SAFETY: as above.
        let moved = unsafe { libc::mremap(self.start, self.size, self.size, libc::MREMAP_MAYMOVE) };
        outcome(moved == libc::MAP_FAILED)
    }

    /// In a child: 0 if it has no mapping of the memory.
    fn inherited(&mut self) -> c_int {
        let maps =
            std::fs::read_to_string("/proc/self/maps").unwrap_or_else(|_| "memfd:plimsoll-guest".into());
        c_int::from(maps.contains("memfd:plimsoll-guest"))
    }

    /// In a child: does not come back if the library has its way.
    fn map_again(&mut self) -> c_int {
        self.map(libc::MAP_SHARED, 0, self.size);
        0
    }
}

/// Punches one page.
fn punch(fd: c_int, offset: usize) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    let answer = unsafe { libc::fallocate(fd, mode, i64::try_from(offset).unwrap_or(0), 4096) };
    answer == 0
}

/// How a child of this process ends that does this.
fn fork(deed: impl FnOnce(&mut Probe) -> c_int, probe: &mut Probe) -> String {
    // SAFETY: this program has one thread, so the child may do anything.
    let child = unsafe { libc::fork() };
    if child == 0 {
        std::process::exit(deed(probe));
    }
    let mut status = 0;
    // SAFETY: our child, and an integer of ours.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    format!("exit {}", libc::WEXITSTATUS(status))
}

/// Another file of the same kind, which is none of the library's business: mapped in every way, filled, emptied.
fn other() -> String {
    // SAFETY: a name that ends.
    let fd = unsafe { libc::memfd_create(c"plimsoll-other".as_ptr(), 0) };
    let mut other = Probe { fd, size: 64 * PAGE, start: ptr::null_mut() };
    let size = other.size;
    // The second mapping is an accident only with the guest's memory.
    let steps = [
        other.allocate(0, 0, size),
        other.map(libc::MAP_SHARED, 0, size),
        other.map(libc::MAP_SHARED, 0, size),
        other.touch(0, 64),
        other.advise(libc::MADV_REMOVE, 0, size),
        other.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, size),
        other.remap(),
        other.map(libc::MAP_PRIVATE, 0, PAGE),
    ];
    steps.join(",")
}

/// What QEMU does when its memory is to be locked, before it maps it.
fn lock_future() -> String {
    // SAFETY: no pointers.
    outcome(unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0)
}

/// errno after calls that succeed is what it was before.
fn kept_errno() -> String {
    let mut probe = Probe { fd: -1, size: PAGE, start: ptr::null_mut() };
    // SAFETY: has no preconditions.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread's own.
    unsafe { *place = 77 };
    let mapped = probe.map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0, PAGE);
    let after_map = errno();
    let unmapped = probe.unmap(0, PAGE);
    format!("{mapped} {after_map} {unmapped} {}", errno())
}

/// What a program started by this one has as LD_PRELOAD, and whether the library is in it.
fn child() -> String {
    let script = "echo \"[$LD_PRELOAD]\" $(grep -c plimsoll_pod_preload /proc/$$/maps)";
    let shell = Command::new("sh").args(["-c", script]).output();
    shell.map_or_else(
        |error| error.to_string(),
        |done| String::from_utf8_lossy(&done.stdout).trim().to_owned(),
    )
}

fn size_of_file(fd: c_int) -> usize {
    std::fs::metadata(format!("/proc/self/fd/{fd}"))
        .ok()
        .and_then(|found| usize::try_from(found.len()).ok())
        .unwrap_or(0)
}
