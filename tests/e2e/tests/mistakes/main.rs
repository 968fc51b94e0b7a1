//! What can be typed wrong, and what can be wrong in the world, with the real daemon: the exit code says which, the
//! message names the thing and what to do, and nothing has changed.

mod config;
mod files;
mod interrupt;
mod sizes;
mod sockets;

use plimsoll_e2e::{Bed, Lasting, snapshot};

/// All that a mistake must leave as it is.
#[derive(Debug, PartialEq, Eq)]
struct World {
    vms: Vec<Lasting>,
    processes: Vec<String>,
    files: Vec<String>,
}

impl World {
    #[track_caller]
    fn of(bed: &Bed) -> Self {
        let sorted = |mut words: Vec<String>| {
            words.sort();
            words
        };
        Self { vms: snapshot(&bed.list()), processes: sorted(bed.processes()), files: sorted(bed.vm_files()) }
    }
}

/// Types `plimsoll ARGS`, which must be refused with `code` and a message that has every one of `words`, and must
/// leave the world as it was. Returns the message.
#[track_caller]
fn refused(bed: &Bed, args: &[&str], code: i32, words: &[&str]) -> String {
    let before = World::of(bed);
    let message = bed.cli(args).refused(code, words);
    assert_eq!(World::of(bed), before, "after plimsoll {args:?}, which said {message}");
    message
}
