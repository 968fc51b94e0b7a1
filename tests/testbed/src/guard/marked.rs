//! Processes that leave the group of whoever started them, as daemons do, and are known by a mark they inherit.

use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Deed, Undo, leftovers, unique_name};
use crate::BedError;
use crate::wait::poll_until;

/// The environment variable that holds the mark.
pub const RUN_VARIABLE: &str = "PLIMSOLL_TEST_RUN";
/// How long killed processes may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// A mark for commands and all they start. Dropped, every process that carries it is killed.
///
/// ```
/// use std::process::Command;
/// use plimsoll_testbed::guard::Marked;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mark = Marked::new("daemons")?;
/// let mut command = Command::new("sh");
/// mark.put_on(&mut command).args(["-c", "setsid sleep 600 & exit 0"]).status()?;
/// drop(mark); // the sleeper is gone
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Marked {
    mark: String,
    _undo: Undo,
}

impl Marked {
    /// A new mark; `what` becomes part of it.
    ///
    /// # Errors
    /// [`BedError::Io`] when the guardian cannot be started.
    pub fn new(what: &str) -> Result<Self, BedError> {
        let mark = unique_name(what);
        let undo = Undo::register(Deed::Marked(mark.clone()))?;
        Ok(Self { mark, _undo: undo })
    }

    /// Marks a command.
    pub fn put_on<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env(RUN_VARIABLE, &self.mark)
    }

    /// The mark, for [`super::leftovers()`].
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }
}

/// Kills every process with the mark, again and again until there is none: one may be starting another.
pub(super) fn kill_all(mark: &str) -> std::io::Result<()> {
    let look = || {
        let found = leftovers::marked_processes(mark);
        if found.is_empty() {
            return Ok(());
        }
        for (pid, _) in &found {
            // One that is gone by now needs no killing.
            let _ =
                i32::try_from(*pid).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL));
        }
        Err(format!("{found:?}"))
    };
    poll_until(DEATH_LIMIT, &format!("no process marked {mark}"), look).map_err(std::io::Error::other)
}

#[cfg(test)]
mod test {
    use std::process::Command;
    use std::time::Duration;

    use super::Marked;
    use crate::guard::{Deed, leftovers};
    use crate::wait::poll_until;

    fn detached(mark: &Marked) {
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 & exit 0"]);
        assert!(mark.put_on(&mut command).status().expect("runs").success());
        let look = || {
            let found = leftovers(mark.mark());
            if found.iter().any(|line| line.contains("sleep 600")) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        };
        poll_until(Duration::from_secs(10), "a detached sleeper", look).expect("it runs");
    }

    #[test]
    fn what_left_the_group_is_killed_and_other_marks_live() {
        let (mark, other) = (Marked::new("one").expect("marks"), Marked::new("two").expect("marks"));
        detached(&mark);
        detached(&other);
        let name = mark.mark().to_owned();
        drop(mark);
        assert!(leftovers(&name).is_empty());
        assert!(!leftovers(other.mark()).is_empty());
    }

    #[test]
    fn the_guardians_shell_can_do_it_too() {
        let mark = Marked::new("shell").expect("marks");
        detached(&mark);
        let deed = Deed::Marked(mark.mark().to_owned());
        assert!(Command::new("sh").args(["-c", &deed.shell()]).status().expect("runs").success());
        let look = || {
            let found = leftovers(mark.mark());
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
        };
        poll_until(Duration::from_secs(10), "no sleeper", look).expect("gone");
    }
}
