//! What happens to a guest from `run` to `stop`, on User Mode Linux and on QEMU with Debian's kernel.

mod adopt;
mod budget;
mod distress;
mod reboot;
mod reporting;
mod targets;

use plimsoll_e2e::{Kind, Vm, sizes};
use plimsoll_model::Sizes;
use plimsoll_units::Bytes;

/// Sizes in MiB for a guest of a kind: Debian's kernel takes more for itself than User Mode Linux.
struct Scale {
    memory: u64,
    maxmem: u64,
    floor: u64,
    /// A target well below `memory` in which the idle guest is not in distress.
    low: u64,
    /// What an idle guest can fill at `memory`, and not at `low`.
    fill: u64,
}

impl Scale {
    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Uml => Self { memory: 192, maxmem: 256, floor: 64, low: 96, fill: 112 },
            Kind::Qemu => Self { memory: 256, maxmem: 384, floor: 96, low: 128, fill: 128 },
        }
    }

    fn sizes(&self) -> Sizes {
        sizes(self.memory, self.maxmem, self.floor)
    }
}

/// Fills, and checks every byte of what is held by then.
#[track_caller]
fn fill_and_verify(vm: &Vm<'_>, size: Bytes) {
    let filled = vm.send(&format!("fill {}", size.0));
    assert_eq!(filled.number("pages"), Some(size.pages_ceil().0), "{}", filled.text());
    verify(vm);
}

/// Checks every byte held.
#[track_caller]
fn verify(vm: &Vm<'_>) {
    let verdict = vm.send("verify");
    assert!(verdict.number("pages") > Some(0), "{}", verdict.text());
    assert_eq!(verdict.number("bad_pages"), Some(0), "{}", verdict.text());
}
