//! The guest's console: lines out with a mark, and the memory of what was answered.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

/// Every line of ours begins with it.
pub(crate) const MARK: &str = "@plimsoll";
/// How many commands are remembered.
const REMEMBERED: usize = 64;

/// Turns echo, line editing and newline translation off. A console that is no terminal is left as it is.
pub(crate) fn make_raw() -> std::io::Result<()> {
    let stdin = std::io::stdin();
    let Ok(mut settings) = tcgetattr(&stdin) else { return Ok(()) };
    settings.make_raw();
    Ok(tcsetattr(&stdin, OptionalActions::Now, &settings)?)
}

/// What is known of a command's identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Never seen: carry it out.
    New,
    /// Being carried out.
    Running,
    /// Answered with this.
    Answered(String),
}

/// Writes answers, whole lines at a time, and remembers them.
///
/// A serial line may lose a character, and the kernel may print into the middle of an answer. So whoever hears
/// nothing asks again with the same identifier, and the command is not carried out twice.
#[derive(Default)]
pub(crate) struct Console {
    answered: Mutex<VecDeque<(String, Option<String>)>>,
}

impl Console {
    /// Notes that a command arrived, and says whether it had arrived before.
    pub(crate) fn arrive(&self, id: &str) -> Seen {
        let mut known = self.lock();
        if let Some((_, answer)) = known.iter().find(|(other, _)| other == id) {
            return answer.clone().map_or(Seen::Running, Seen::Answered);
        }
        if known.len() == REMEMBERED {
            // One that runs would be carried out twice when it is asked for again; those are few.
            let oldest = known.iter().position(|(_, answer)| answer.is_some()).unwrap_or(0);
            known.remove(oldest);
        }
        known.push_back((id.to_owned(), None));
        Seen::New
    }

    /// Writes the final answer to a command: `ok ...` or `error ...`.
    pub(crate) fn answer(&self, id: &str, words: &str) {
        if let Some((_, answer)) = self.lock().iter_mut().find(|(other, _)| other == id) {
            *answer = Some(words.to_owned());
        }
        self.say(id, words);
    }

    /// Writes one line. A console that takes nothing more cannot be told so.
    pub(crate) fn say(&self, id: &str, words: &str) {
        let line = format!("{MARK} {id} {words}\n");
        let mut out = std::io::stdout().lock();
        drop(out.write_all(line.as_bytes()));
        drop(out.flush());
    }

    /// Waits until everything written has left, before the machine goes down.
    pub(crate) fn drain(&self) {
        // Without a terminal there is nothing to wait for.
        let _ = tcdrain(std::io::stdout());
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Option<String>)>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::{Console, REMEMBERED, Seen};

    #[test]
    fn a_command_is_new_once_and_its_answer_is_kept() {
        let console = Console::default();
        assert_eq!(console.arrive("a1"), Seen::New);
        assert_eq!(console.arrive("a1"), Seen::Running);
        console.answer("a1", "ok pong");
        assert_eq!(console.arrive("a1"), Seen::Answered("ok pong".into()));
    }

    #[test]
    fn a_command_that_runs_is_not_forgotten_for_many_that_were_answered() {
        let console = Console::default();
        assert_eq!(console.arrive("long"), Seen::New);
        for n in 0..10 * REMEMBERED {
            console.arrive(&format!("c{n}"));
            console.answer(&format!("c{n}"), "ok");
        }
        assert_eq!(console.arrive("long"), Seen::Running);
        assert_eq!(console.lock().len(), REMEMBERED);
    }

    #[test]
    fn memory_of_commands_is_bounded() {
        let console = Console::default();
        for n in 0..10 * REMEMBERED {
            assert_eq!(console.arrive(&format!("c{n}")), Seen::New);
        }
        assert_eq!(console.lock().len(), REMEMBERED);
        assert_eq!(console.arrive("c0"), Seen::New);
    }
}
