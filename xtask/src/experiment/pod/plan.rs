//! Which guests are booted, and how.

use std::fmt;
use std::time::Duration;

use plimsoll_units::Bytes;
use serde::Serialize;

/// What a guest is granted, and what it is told it has.
const SIZES: [(Bytes, Bytes); 2] = [(Bytes::mib(256), Bytes::mib(512)), (Bytes::mib(256), Bytes::mib(1024))];
/// CPUs of a guest: two of them fault at the same time.
const GUEST_CPUS: u32 = 2;
/// From one look at the guest's memory to the next: 20 in a second.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What plimsolld reckons for a QEMU beside its guest's memory, by default.
const OVERHEAD: Bytes = Bytes::mib(64);
/// What the host has beyond that: far less than any guest is told of and not granted.
const ROOM: Bytes = Bytes::mib(64);

/// How a guest boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BootKind {
    /// As it is.
    Plain,
    /// With `memtest=1`: Linux' test of memory in one pass, which writes zeros to all that is not in use
    /// (mm/memtest.c, Documentation/admin-guide/kernel-parameters.txt).
    Memtest,
}

impl BootKind {
    const ALL: [Self; 2] = [Self::Plain, Self::Memtest];

    /// What the guest's kernel is told. Its own lines stay out of the workload's way.
    pub(super) const fn append(self) -> &'static str {
        match self {
            Self::Plain => "loglevel=5",
            Self::Memtest => "loglevel=5 memtest=1",
        }
    }
}

impl fmt::Display for BootKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain boot",
            Self::Memtest => "memtest=1",
        })
    }
}

/// One guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Turn {
    /// What it is granted, and held at.
    pub(super) memory: Bytes,
    /// What it is told it has.
    pub(super) maxmem: Bytes,
    pub(super) boot: BootKind,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}, {}", self.memory, self.maxmem, self.boot)
    }
}

impl Turn {
    /// The name of a folder.
    pub(super) fn folder(self) -> String {
        let boot = match self.boot {
            BootKind::Plain => "plain",
            BootKind::Memtest => "memtest",
        };
        format!("{}-{}-{boot}", self.memory, self.maxmem)
    }

    /// The host as plimsolld is told of it: there is no room in it for what this guest is told of.
    pub(super) fn budget(self) -> Bytes {
        self.memory.plus(OVERHEAD).plus(ROOM)
    }

    /// What the kernel lets all processes of the VM use: the pager must do its work without that.
    pub(super) const fn hard_limit(self) -> Bytes {
        self.maxmem.plus(Bytes::gib(1))
    }
}

/// What was chosen, for the record.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Settings {
    quick: bool,
    pub(super) turns: Vec<Turn>,
    accel: &'static str,
    pub(super) guest_cpus: u32,
    look_every_ms: u128,
    on_exhausted: &'static str,
    /// Whether memfds get huge pages on this machine.
    shmem_enabled: Option<String>,
}

impl Settings {
    pub(super) fn new(quick: bool) -> Self {
        let sizes = SIZES.iter().take(if quick { 1 } else { SIZES.len() });
        let turns = sizes
            .flat_map(|&(memory, maxmem)| BootKind::ALL.map(|boot| Turn { memory, maxmem, boot }))
            .collect();
        let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        Self {
            quick,
            turns,
            accel: "tcg",
            guest_cpus: GUEST_CPUS,
            look_every_ms: LOOK_EVERY.as_millis(),
            on_exhausted: "wait",
            shmem_enabled: std::fs::read_to_string(path).ok().and_then(|text| chosen(&text)),
        }
    }

    /// What `plimsoll run` is told of how to run a guest, beside its sizes and its image.
    pub(super) fn words(&self) -> Vec<String> {
        let cpus = format!("--qemu-arg={}", self.guest_cpus);
        let words = ["--vmm", "qemu", "--accel", self.accel, "--pod", "--on-exhausted", self.on_exhausted];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        words.extend(["--qemu-arg=-smp".to_owned(), cpus]);
        words
    }
}

/// The word in brackets (Documentation/admin-guide/mm/transhuge.rst).
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod test {
    use super::{BootKind, Settings, chosen};

    #[test]
    fn quick_is_the_smaller_guest_with_both_boots() {
        let shown = |quick| Settings::new(quick).turns.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(true), ["256M of 512M, plain boot", "256M of 512M, memtest=1"]);
        assert_eq!(
            shown(false),
            [
                "256M of 512M, plain boot",
                "256M of 512M, memtest=1",
                "256M of 1G, plain boot",
                "256M of 1G, memtest=1"
            ]
        );
    }

    #[test]
    fn no_host_has_room_for_what_its_guest_is_told_of() {
        for turn in Settings::new(false).turns {
            assert!(turn.budget() > turn.memory && turn.budget() < turn.maxmem, "{turn}");
            assert!(turn.hard_limit() > turn.maxmem, "a limit of the kernel's would do the pager's work");
            assert_eq!(turn.boot.append().contains("memtest=1"), turn.boot == BootKind::Memtest);
            assert!(!turn.folder().contains([' ', '/']), "{}", turn.folder());
        }
    }

    #[test]
    fn the_setting_in_force_is_the_one_in_brackets() {
        assert_eq!(chosen("always within_size [advise] never deny force\n").as_deref(), Some("advise"));
        assert_eq!(chosen("never"), None);
        assert_eq!(chosen("[x"), None);
    }
}
