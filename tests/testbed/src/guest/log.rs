//! Follows a console's log and picks the workload's lines out of it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The mark before every line of the workload's.
const MARK: &str = "@plimsoll ";
/// What Linux prints when it gives up.
const PANIC: &str = "Kernel panic - not syncing";
/// A line longer than this is cut: a guest may print without end.
const LONGEST_LINE: usize = 64 * 1024;
/// How many lines of the workload's are remembered.
const EVENTS: usize = 4096;
/// How many answers are remembered.
const ANSWERS: usize = 256;
/// Bytes read at a time.
const READ: usize = 64 * 1024;

/// A line of the workload's, after its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which command it belongs to, `-` for none.
    pub id: String,
    /// `ok`, `error`, `note` or `ready`.
    pub kind: String,
    /// The rest.
    pub text: String,
}

impl Line {
    /// Finds the mark anywhere in a line: the kernel may have left its own line unfinished before.
    fn parse(line: &str) -> Option<Self> {
        let (_, words) = line.split_once(MARK)?;
        let (id, words) = words.split_once(' ')?;
        let (kind, text) = words.split_once(' ').unwrap_or((words, ""));
        Some(Self { id: id.to_owned(), kind: kind.to_owned(), text: text.to_owned() })
    }

    /// Whether it ends a command.
    fn is_answer(&self) -> bool {
        matches!(self.kind.as_str(), "ok" | "error")
    }
}

/// A line and when it was seen here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Time since the log is followed.
    pub at: Duration,
    /// The line.
    pub line: Line,
}

/// The state of following. All it remembers is bounded.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    offset: u64,
    begin: Instant,
    partial: Vec<u8>,
    /// How often the workload reported ready.
    pub(super) boots: usize,
    /// The kernel's last words, when it has given up since the last boot.
    pub(super) panic: Option<String>,
    /// The lines of the workload's, oldest first.
    pub(super) events: VecDeque<Event>,
    answers: BTreeMap<String, Line>,
    answer_order: VecDeque<String>,
}

impl Log {
    /// Follows from the beginning of the file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset: 0,
            begin: Instant::now(),
            partial: Vec::new(),
            boots: 0,
            panic: None,
            events: VecDeque::new(),
            answers: BTreeMap::new(),
            answer_order: VecDeque::new(),
        })
    }

    /// Takes in what was written since.
    pub(super) fn pump(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        loop {
            let n = self.file.read_at(&mut buffer, self.offset)?;
            if n == 0 {
                return Ok(());
            }
            self.offset += u64::try_from(n).map_err(io::Error::other)?;
            self.take(buffer.get(..n).unwrap_or_default());
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST_LINE.saturating_sub(self.partial.len());
            self.partial.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                self.take_line(String::from_utf8_lossy(&line).trim_end());
            }
        }
    }

    fn take_line(&mut self, text: &str) {
        if text.contains(PANIC) {
            self.panic = Some(text.to_owned());
        }
        let Some(line) = Line::parse(text) else { return };
        if line.kind == "ready" {
            self.boots += 1;
            self.panic = None;
        }
        if line.is_answer() {
            self.remember(line.clone());
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { at: self.begin.elapsed(), line });
    }

    fn remember(&mut self, line: Line) {
        if self.answers.contains_key(&line.id) {
            return;
        }
        if self.answer_order.len() == ANSWERS
            && let Some(oldest) = self.answer_order.pop_front()
        {
            self.answers.remove(&oldest);
        }
        self.answer_order.push_back(line.id.clone());
        self.answers.insert(line.id.clone(), line);
    }

    /// The answer to a command.
    pub(super) fn answer(&self, id: &str) -> Option<&Line> {
        self.answers.get(id)
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;

    use proptest::prelude::{any, proptest};

    use super::{ANSWERS, EVENTS, LONGEST_LINE, Log};
    use crate::guard::ShmDir;

    fn log(dir: &ShmDir) -> (std::fs::File, Log) {
        let path = dir.path().join("log");
        let file = std::fs::File::create(&path).expect("makes");
        let log = Log::open(&path).expect("opens");
        (file, log)
    }

    #[test]
    fn answers_are_found_among_the_kernels_lines() {
        let dir = ShmDir::create("log").expect("a directory");
        let (mut file, mut log) = log(&dir);
        file.write_all(b"[ 0.1] boot\r\n@plimsoll - ready ms=7\n[ 1.0] half a li@plimsoll a1 ok po")
            .expect("writes");
        log.pump().expect("reads");
        assert_eq!((log.boots, log.answer("a1")), (1, None));
        file.write_all(b"ng ms=3\n@plimsoll a2 error reason=\"x\"\n@plimsoll a3 note busy\n")
            .expect("writes");
        log.pump().expect("reads");
        assert_eq!(log.answer("a1").map(|line| line.text.as_str()), Some("pong ms=3"));
        assert_eq!(log.answer("a2").map(|line| line.kind.as_str()), Some("error"));
        assert_eq!(log.answer("a3"), None);
        assert_eq!(log.events.len(), 4);
    }

    #[test]
    fn a_panic_is_seen_until_the_next_boot() {
        let dir = ShmDir::create("log").expect("a directory");
        let (mut file, mut log) = log(&dir);
        file.write_all(b"[ 3.0] Kernel panic - not syncing: Out of memory\n").expect("writes");
        log.pump().expect("reads");
        assert!(log.panic.as_ref().is_some_and(|words| words.contains("Out of memory")));
        file.write_all(b"@plimsoll - ready ms=9\n").expect("writes");
        log.pump().expect("reads");
        assert_eq!(log.panic, None);
    }

    #[test]
    fn a_guest_that_prints_without_end_is_not_kept() {
        let dir = ShmDir::create("log").expect("a directory");
        let (_, mut log) = log(&dir);
        for _ in 0..4 {
            log.take(&vec![b'x'; LONGEST_LINE]);
        }
        assert_eq!(log.partial.len(), LONGEST_LINE);
        log.take(b"\n");
        for n in 0..2 * EVENTS {
            log.take(format!("@plimsoll c{n} ok\n").as_bytes());
        }
        assert_eq!((log.events.len(), log.answers.len(), log.answer_order.len()), (EVENTS, ANSWERS, ANSWERS));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_taken(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..200), 0..20))
        {
            let dir = ShmDir::create("log").expect("a directory");
            let (_, mut log) = log(&dir);
            for piece in &pieces {
                log.take(piece);
            }
        }
    }
}
