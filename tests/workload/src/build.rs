//! Runs the host's own programs, a compiler above all, in a root of the host's files.
//!
//! That gives a guest real work without an image of its own: it reads programs, libraries and sources through its
//! page cache and leaves them there, and its compiler needs memory as a compiler does.
//!
//! hostfs forgets a file and its pages as soon as nobody has it open (its dentries are `always_delete_dentry`),
//! which no file system of a real guest's does. So what a build reads is kept open here: its pages stay in the page
//! cache until the guest's kernel wants the memory, and that they are open does not keep it from taking them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::memory::{Job, to_u64};
use crate::system::{HOST, HOST_OUT};

/// In a command, the file it shall write.
const OUTPUT: &str = "%o";
/// Begins a line of the list that names a file to keep open.
const KEEP: &str = "keep ";
/// The longest list that is taken.
const LONGEST_LIST: u64 = 16 << 20;
/// Of what a failed program said, so much is told.
const SHOWN: usize = 160;

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Built {
    /// Programs that ended well and left a file.
    pub(crate) made: u64,
    /// Bytes of these files.
    pub(crate) bytes: u64,
    /// Programs that did not.
    pub(crate) failed: u64,
    /// What the first of them said.
    pub(crate) first_failure: Option<String>,
    /// Whether it was stopped early.
    pub(crate) stopped: bool,
}

/// Files that are kept open, see the module.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    files: BTreeMap<String, File>,
}

impl Kept {
    /// Opens a file, if it is one. One that cannot be kept is merely read again.
    fn keep(&mut self, path: &str) {
        if path.starts_with('/') && !self.files.contains_key(path) && below(path).is_file() {
            self.files.extend(File::open(below(path)).ok().map(|file| (path.to_owned(), file)));
        }
    }
}

/// Lets this process have as many files open as it may.
fn open_many() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Runs `count` commands of the list, which is named as the host names it. What they write stays until the last
/// one is done, as a build's objects do, and is removed then. Lines `keep FILE` name what all of them read.
pub(crate) fn run(
    list: &str,
    first: u64,
    count: u64,
    kept: &mut Kept,
    job: &mut Job<'_>,
) -> io::Result<Built> {
    let list = below(list);
    if fs::metadata(&list)?.len() > LONGEST_LIST {
        return Err(io::Error::other(format!("{} is no list of commands: too long", list.display())));
    }
    let text = fs::read_to_string(&list)?;
    open_many()?;
    text.lines().filter_map(|line| line.strip_prefix(KEEP)).for_each(|path| kept.keep(path.trim()));
    let lines: Vec<&str> = commands(&text).collect();
    if lines.is_empty() {
        return Err(io::Error::other(format!("{} has no commands", list.display())));
    }
    let out = format!("{HOST_OUT}/out");
    fs::create_dir_all(below(&out))?;
    let range = (first, count);
    let built = run_lines(&lines, range, &out, kept, job);
    fs::remove_dir_all(below(&out))?;
    built
}

/// The commands of a list.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with(KEEP))
}

fn run_lines(
    lines: &[&str],
    (first, count): (u64, u64),
    out: &str,
    kept: &mut Kept,
    job: &mut Job<'_>,
) -> io::Result<Built> {
    let mut built = Built::default();
    for n in 0..count {
        if job.stopped() {
            built.stopped = true;
            break;
        }
        let index = usize::try_from(first.wrapping_add(n) % to_u64(lines.len())).unwrap_or(0);
        let file = format!("{out}/{n}");
        let line = lines.get(index).copied().unwrap_or_default();
        let words = words(line, &file);
        line.split_ascii_whitespace().for_each(|word| kept.keep(word));
        let output = Command::new("/bin/busybox")
            .args(["chroot", HOST])
            .args(&words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", HOST_OUT)
            .output()?;
        built.note(&output, fs::metadata(below(&file)).map_or(0, |found| found.len()));
        job.ticker.count(1);
    }
    Ok(built)
}

/// A command's words, with the name of the file to write.
fn words(line: &str, file: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(|word| word.replace(OUTPUT, file)).collect()
}

/// The guest's name for what the host calls `path`.
fn below(path: &str) -> PathBuf {
    Path::new(HOST).join(path.trim_start_matches('/'))
}

impl Built {
    fn note(&mut self, output: &Output, bytes: u64) {
        if output.status.success() && bytes > 0 {
            self.made += 1;
            self.bytes += bytes;
            return;
        }
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
            format!("{}: {}", output.status, line.trim().chars().take(SHOWN).collect::<String>())
        });
    }
}

#[cfg(test)]
mod test {
    use std::process::Command;

    use super::{Built, Kept, below, commands, words};

    #[test]
    fn a_command_gets_its_file() {
        assert_eq!(words("gcc -c  /a/b.c -o %o", "/mnt/out/3"), ["gcc", "-c", "/a/b.c", "-o", "/mnt/out/3"]);
        assert_eq!(below("/usr/bin"), std::path::Path::new("/host/usr/bin"));
    }

    #[test]
    fn lines_that_keep_files_are_no_commands() {
        let text = "keep /usr/bin/gcc\n\ngcc -c /a.c -o %o\n";
        assert_eq!(commands(text).collect::<Vec<_>>(), ["gcc -c /a.c -o %o"]);
        let mut kept = Kept::default();
        for word in ["-c", "relative", "/no/such/file"] {
            kept.keep(word);
        }
        assert!(kept.files.is_empty());
    }

    #[test]
    fn a_program_counts_when_it_ended_well_and_left_a_file() {
        let output = |script: &str| Command::new("sh").args(["-c", script]).output().expect("runs");
        let mut built = Built::default();
        built.note(&output("exit 0"), 7);
        built.note(&output("exit 0"), 0);
        built.note(&output("echo; echo no such file >&2; exit 4"), 5);
        assert_eq!((built.made, built.bytes, built.failed), (1, 7, 2));
        assert_eq!(built.first_failure.as_deref(), Some("exit status: 0: nothing"));
    }
}
