//! What the library was told to do, by its environment.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use plimsoll_uffd_wire::agreement::{
    self, DEFAULT_DEADLINE_MS, FileId, LONGEST_DEADLINE_MS, OnPagerLoss, decimal, exit,
};

use crate::environment;
use crate::say::Line;

/// Bytes of the path of a socket, with the zero at its end (unix(7)).
const PATH_BYTES: usize = 108;

/// What to do. Copied out of the environment, which a program may overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The guest's memory.
    pub(crate) file: FileId,
    /// Where the pager listens; ends with a zero.
    pub(crate) socket: [u8; PATH_BYTES],
    /// What is to become of the guest without its pager.
    pub(crate) loss: OnPagerLoss,
    /// How long the pager has to accept, in milliseconds.
    pub(crate) deadline_ms: u64,
}

impl Told {
    /// The socket's path.
    pub(crate) fn path(&self) -> &[u8] {
        self.socket.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// What is wrong with a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    variable: &'static str,
    why: &'static str,
}

const fn wrong(variable: &'static str, why: &'static str) -> Wrong {
    Wrong { variable, why }
}

/// Reads the variables; `value` gives the value of one.
fn parse<'a>(value: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Told, Wrong> {
    let missing = |variable| wrong(variable, "is not set: the library does not know what to watch");
    let file = value(agreement::FILE).ok_or(missing(agreement::FILE))?;
    let file = FileId::parse(file).ok_or(wrong(
        agreement::FILE,
        "is not MAJOR:MINOR:INODE, the device and inode of the guest's memory",
    ))?;
    let path = value(agreement::SOCKET).ok_or(missing(agreement::SOCKET))?;
    if path.is_empty() || path.len() >= PATH_BYTES {
        return Err(wrong(agreement::SOCKET, "is not the path of a socket: 1 to 107 bytes"));
    }
    let mut socket = [0; PATH_BYTES];
    socket.iter_mut().zip(path).for_each(|(slot, byte)| *slot = *byte);
    let loss = match value(agreement::ON_LOSS) {
        None => OnPagerLoss::Stall,
        Some(word) => {
            OnPagerLoss::parse(word).ok_or(wrong(agreement::ON_LOSS, "is neither `stall` nor `open`"))?
        }
    };
    let deadline_ms = match value(agreement::DEADLINE_MS) {
        None => u64::from(DEFAULT_DEADLINE_MS),
        Some(digits) => decimal(digits)
            .filter(|number| (1..=u64::from(LONGEST_DEADLINE_MS)).contains(number))
            .ok_or(wrong(agreement::DEADLINE_MS, "is not a number of milliseconds, 1 to 600000"))?,
    };
    Ok(Told { file, socket, loss, deadline_ms })
}

/// Set once, before the program's first instruction, and only read afterwards.
struct Once {
    told: UnsafeCell<Option<Told>>,
    ready: AtomicBool,
}

// SAFETY: written by `load` alone, before `ready` is set; read only after it was.
unsafe impl Sync for Once {}

static TOLD: Once = Once { told: UnsafeCell::new(None), ready: AtomicBool::new(false) };

/// What to do; `None` before the library was loaded completely.
pub(crate) fn told() -> Option<&'static Told> {
    if !TOLD.ready.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: never written again once `ready` is set.
    let told = unsafe { &*TOLD.told.get() };
    told.as_ref()
}

/// Reads the environment; ends the process if it makes no sense.
extern "C" fn load() {
    match parse(environment::value) {
        Ok(told) => {
            // SAFETY: the loader calls this once, before there is a second thread, and nobody reads it yet.
            unsafe { *TOLD.told.get() = Some(told) };
            TOLD.ready.store(true, Ordering::Release);
        }
        Err(Wrong { variable, why }) => {
            Line::new(variable).and(" ").and(why).end(exit::ENVIRONMENT);
        }
    }
}

/// The loader calls what it finds in this section when it has loaded the library (elf(5), DT_INIT_ARRAY).
#[used]
// SAFETY: a pointer to a function of the kind that the loader calls, which is what the section holds.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static LOAD: extern "C" fn() = load;

#[cfg(test)]
mod test {
    use super::*;

    const GOOD: [(&str, &str); 2] = [("PLIMSOLL_POD_FILE", "0:1:28559"), ("PLIMSOLL_POD_SOCKET", "/run/pod")];

    fn read(more: &[(&'static str, &'static str)]) -> Result<Told, Wrong> {
        let all: Vec<_> = more.iter().chain(&GOOD).copied().collect();
        parse(move |name| all.iter().find(|(one, _)| *one == name).map(|(_, value)| value.as_bytes()))
    }

    #[test]
    fn what_is_told_is_understood() {
        let told = read(&[]).unwrap();
        assert_eq!(told.file, FileId { major: 0, minor: 1, inode: 28559 });
        assert_eq!(
            (told.path(), told.loss, told.deadline_ms),
            (&b"/run/pod"[..], OnPagerLoss::Stall, 10_000)
        );
        let told = read(&[("PLIMSOLL_POD_ON_LOSS", "open"), ("PLIMSOLL_POD_DEADLINE_MS", "250")]).unwrap();
        assert_eq!((told.loss, told.deadline_ms), (OnPagerLoss::Open, 250));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (variable, value) in [
            ("PLIMSOLL_POD_FILE", "28559"),
            ("PLIMSOLL_POD_FILE", ""),
            ("PLIMSOLL_POD_SOCKET", ""),
            ("PLIMSOLL_POD_ON_LOSS", "wait"),
            ("PLIMSOLL_POD_DEADLINE_MS", "0"),
            ("PLIMSOLL_POD_DEADLINE_MS", "600001"),
            ("PLIMSOLL_POD_DEADLINE_MS", "1s"),
        ] {
            assert_eq!(read(&[(variable, value)]).unwrap_err().variable, variable, "{value}");
        }
        let long: &str = "x".repeat(108).leak();
        let longest = &long[..107];
        assert_eq!(read(&[("PLIMSOLL_POD_SOCKET", longest)]).unwrap().path(), longest.as_bytes());
        read(&[("PLIMSOLL_POD_SOCKET", long)]).unwrap_err();
        assert_eq!(parse(|_| None).unwrap_err().variable, "PLIMSOLL_POD_FILE");
    }
}
