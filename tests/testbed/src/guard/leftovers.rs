//! What remains of a run.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::marked::RUN_VARIABLE;
use super::{Deed, PREFIX, cgroup, dirs, swap};

/// Every process, control group, swap file and directory whose name begins with `prefix` and goes on with a `-`, if
/// it goes on, in words.
///
/// `prefix` is [`super::PREFIX`] for all runs, [`super::run_id`] for this one. Processes are known by
/// [`super::RUN_VARIABLE`] in their environment, which what they start inherits; those that are dead and only not yet waited for do not count.
#[must_use]
pub fn leftovers(prefix: &str) -> Vec<String> {
    let describe = |(pid, command): (u32, String)| format!("process {pid}: {command}");
    let mut found: Vec<_> = marked_processes(prefix).into_iter().map(describe).collect();
    found.extend(deeds(prefix).iter().map(|deed| format!("{deed:?}")));
    found
}

/// Puts back what runs left whose process is gone and whose guardian did not get to it.
pub(super) fn undo_dead_runs() {
    for deed in deeds(PREFIX) {
        let (Deed::Dir(path) | Deed::Cgroup(path) | Deed::Swap(path)) = &deed else { continue };
        if owner_is_gone(path) {
            // Somebody else may be doing the same at this moment, and who fails here loses nothing.
            let _ = deed.undo();
        }
    }
}

/// Whether the process named in a file's name, `plimsoll-test-PID-STARTTIME-...`, is gone.
fn owner_is_gone(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
    let owner =
        parts.next().and_then(|pid| pid.parse().ok()).zip(parts.next().and_then(|at| at.parse().ok()));
    owner.is_some_and(|(pid, started): (u32, u64)| start_time(pid) != Some(started))
}

/// When a process started, in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    stat_field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 22)?.parse().ok()
}

/// A field of /proc/PID/stat, counted from 1. The second is in parentheses and may hold anything.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// Groups, swap and directories.
fn deeds(prefix: &str) -> Vec<Deed> {
    let places = [PathBuf::from(dirs::PARENT), dirs::on_disk()];
    let mut found: Vec<_> = places.iter().flat_map(|place| entries(place, prefix)).map(Deed::Dir).collect();
    for parent in cgroup::parents() {
        found.extend(entries(&parent, prefix).into_iter().map(Deed::Cgroup));
    }
    found.extend(entries(&swap::dir(), prefix).into_iter().map(Deed::Swap));
    found
}

fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let ours = entries.flatten().filter(|entry| belongs(entry.file_name().as_bytes(), prefix));
    ours.map(|entry| entry.path()).collect()
}

/// Whether a name is `prefix` or continues it with another part; `plimsoll-test-1-23` is no part of run `-1-2`.
fn belongs(name: &[u8], prefix: &str) -> bool {
    name.strip_prefix(prefix.as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-") || prefix.ends_with('-'))
}

/// Live processes whose mark begins with `prefix`, with their command lines.
pub(super) fn marked_processes(prefix: &str) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    others.filter_map(|pid| Some((pid, command_of_marked(pid, prefix)?))).collect()
}

/// The command line of a live process with the mark, `None` for any other.
fn command_of_marked(pid: u32, prefix: &str) -> Option<String> {
    // A dead one has no environment left to read.
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variable = format!("{RUN_VARIABLE}=");
    let mark = environ.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(variable.as_bytes()))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    if !belongs(mark, prefix) || matches!(stat_field(&stat, 3), Some("Z" | "X") | None) {
        return None;
    }
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned())
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use super::{belongs, leftovers, owner_is_gone, start_time, stat_field};
    use crate::guard::{ShmDir, run_id};

    #[test]
    fn a_directory_of_ours_is_found() {
        let dir = ShmDir::create("leftover").expect("makes");
        let named = |found: &[String]| found.iter().any(|line| line.contains("leftover"));
        assert!(named(&leftovers(run_id())));
        assert!(!owner_is_gone(dir.path()));
        drop(dir);
        assert!(!named(&leftovers(run_id())));
    }

    #[test]
    fn owners_are_told_apart_by_when_they_started() {
        let pid = std::process::id();
        let started = start_time(pid).expect("we live");
        let path = |at: u64| format!("/x/plimsoll-test-{pid}-{at}-3-name");
        assert!(!owner_is_gone(Path::new(&path(started))));
        assert!(owner_is_gone(Path::new(&path(started + 1))));
        assert!(!owner_is_gone(Path::new("/x/plimsoll-test-nonsense")));
    }

    #[test]
    fn a_run_is_not_taken_for_another_with_a_longer_number() {
        assert!(belongs(b"plimsoll-test-1-23", "plimsoll-test-1-23"));
        assert!(belongs(b"plimsoll-test-1-23-0-x", "plimsoll-test-1-23"));
        assert!(!belongs(b"plimsoll-test-1-234-0-x", "plimsoll-test-1-23"));
        assert!(belongs(b"plimsoll-test-1-23-0-x", super::PREFIX));
    }

    #[test]
    fn names_with_parentheses_do_not_confuse_fields() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 7 0 0 0 0 0 0 0 20 0 1 0 987654 0 0";
        assert_eq!(stat_field(stat, 3), Some("S"));
        assert_eq!(stat_field(stat, 22), Some("987654"));
        assert_eq!(stat_field("broken", 22), None);
    }
}
