//! All deeds of this process that are not undone yet.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::guardian::Guardian;
use super::{Deed, leftovers, run_id};
use crate::BedError;

/// The exit code after SIGINT or SIGTERM: 128 + SIGINT, as shells have it.
const EXIT_INTERRUPTED: i32 = 130;

struct Registry {
    next: u64,
    deeds: BTreeMap<u64, Deed>,
    guardian: Option<Guardian>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { next: 0, deeds: BTreeMap::new(), guardian: None });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Undoes a deed when dropped.
#[derive(Debug)]
#[must_use = "dropping it undoes the deed at once"]
pub struct Undo {
    id: u64,
}

impl Undo {
    /// Registers what is about to be done or was done just now.
    ///
    /// The first call installs the handler of SIGINT and SIGTERM, starts the guardian, and undoes what earlier
    /// runs left that are gone.
    ///
    /// # Errors
    /// [`BedError::Io`] when the guardian cannot be started; then nothing is registered.
    pub fn register(deed: Deed) -> Result<Self, BedError> {
        wait_for_the_end_when_interrupted();
        let mut registry = registry();
        if registry.guardian.is_none() {
            leftovers::undo_dead_runs();
            handle_signals().map_err(BedError::io("handle signals of", "this process"))?;
            // Also what was started by what a test started, and that nobody registered.
            let unregistered = Deed::Marked(run_id().to_owned());
            registry.guardian =
                Some(Guardian::start(&unregistered.shell()).map_err(BedError::io("run", "/bin/sh"))?);
        }
        let id = registry.next;
        registry.next += 1;
        if let Some(guardian) = &mut registry.guardian {
            guardian.add(id, &deed.shell()).map_err(BedError::io("tell", "the guardian"))?;
        }
        registry.deeds.insert(id, deed);
        Ok(Self { id })
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        wait_for_the_end_when_interrupted();
        undo(self.id);
    }
}

/// Set once a signal said that this process shall end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Keeps other threads from going on while the handler puts everything back: they would see their guests die, and
/// might report that, or end the process as if all were well.
fn wait_for_the_end_when_interrupted() {
    while ENDING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// Undoes one deed, unless a signal's handler was faster. The registry is not locked meanwhile: it may take long.
fn undo(id: u64) {
    let Some(deed) = registry().deeds.remove(&id) else { return };
    match deed.undo() {
        Ok(()) => {
            if let Some(guardian) = &mut registry().guardian {
                // A guardian that is gone needs no news.
                let _ = guardian.done(id);
            }
        }
        // The guardian tries once more when this process has ended.
        Err(error) => complain(&format!("cannot undo {deed:?}: {error}")),
    }
}

/// Undoes everything that is registered, last one first. For programs that are about to exit without unwinding.
pub fn undo_everything() {
    loop {
        let last = registry().deeds.keys().next_back().copied();
        let Some(id) = last else { return };
        undo(id);
    }
}

fn handle_signals() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("undo on signal".into()).spawn(move || {
        if signals.forever().next().is_some() {
            ENDING.store(true, Ordering::Release);
            complain("interrupted: putting everything back");
            undo_everything();
            std::process::exit(EXIT_INTERRUPTED);
        }
    })?;
    Ok(())
}

/// There is nowhere else to say it.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "testbed: {line}");
}
