//! What `serve` asks of the guest's kernel.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::system::{RebootCommand, delete_module, finit_module, reboot};
use rustix::time::{ClockId, clock_gettime};

/// `O_NONBLOCK`: a module in use is refused instead of waited for (delete_module(2)).
const O_NONBLOCK: i32 = 0o4000;

/// Milliseconds since the guest booted.
pub(crate) fn uptime_ms() -> u128 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or(0));
    let nanos = Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0));
    (seconds + nanos).as_millis()
}

/// /proc/meminfo in bytes.
pub(crate) fn meminfo() -> io::Result<String> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = |key| number(&text, key).map_or("unknown".to_owned(), |kib| (kib * 1024).to_string());
    Ok(format!(
        "ok total={} free={} available={} committed={} swap_total={} swap_free={}",
        kib("MemTotal:"),
        kib("MemFree:"),
        kib("MemAvailable:"),
        kib("Committed_AS:"),
        kib("SwapTotal:"),
        kib("SwapFree:"),
    ))
}

/// The balloon's counters of /proc/vmstat, in pages since boot, and the number of processes killed for memory.
pub(crate) fn balloon() -> io::Result<String> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = |key| number(&text, key).map_or("unknown".to_owned(), |count| count.to_string());
    Ok(format!(
        "ok inflate={} deflate={} oom_kill={} pswpin={} pswpout={}",
        count("balloon_inflate"),
        count("balloon_deflate"),
        count("oom_kill"),
        count("pswpin"),
        count("pswpout"),
    ))
}

/// What /proc/vmstat tells of want of memory, since boot: pages, faults, stalls and killed processes.
pub(crate) fn vmstat() -> io::Result<String> {
    Ok(vmstat_words(&fs::read_to_string("/proc/vmstat")?))
}

/// Zones and kinds of pages are added up: they are told apart by the ends of the words.
fn vmstat_words(text: &str) -> String {
    let sum = |begin: &str| {
        let counts = text.lines().filter_map(|line| line.split_once(' '));
        let ours = counts.filter(|(key, _)| *key == begin || key.starts_with(&format!("{begin}_")));
        ours.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    let exact = |key: &str| number(text, key).unwrap_or(0);
    format!(
        "ok pswpin={} pswpout={} pgmajfault={} refault_anon={} refault_file={} allocstall={} oom_kill={}",
        exact("pswpin"),
        exact("pswpout"),
        exact("pgmajfault"),
        exact("workingset_refault_anon"),
        exact("workingset_refault_file"),
        sum("allocstall"),
        exact("oom_kill"),
    )
}

/// Makes the host's files readable below [`HOST`], and gives programs that run there a place to write: a tmpfs over
/// the host's /mnt, which is the guest's own and leaves the host's alone.
pub(crate) fn hostfs() -> io::Result<String> {
    let out = format!("{HOST}{HOST_OUT}");
    fs::create_dir_all(HOST)?;
    busybox(&["mount", "-t", "hostfs", "-o", "ro", "none", HOST])?;
    if !Path::new(&out).is_dir() {
        return Err(io::Error::other(format!(
            "this guest is not shown the host's files: no {HOST_OUT} in them"
        )));
    }
    busybox(&["mount", "-t", "tmpfs", "tmpfs", &out])?;
    Ok("ok".into())
}

/// Where the host's files are.
pub(crate) const HOST: &str = "/host";
/// In them, what may be written. Every Linux has it (FHS 3.0, section 3.12).
pub(crate) const HOST_OUT: &str = "/mnt";

/// The number behind a word at the beginning of a line.
fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// Inserts a module of the image.
pub(crate) fn load(module: &str) -> io::Result<String> {
    let file = File::open(format!("/lib/modules/{module}.ko"))?;
    finit_module(&file, c"", 0)?;
    Ok("ok".into())
}

/// Removes a module.
pub(crate) fn unload(module: &str) -> io::Result<String> {
    let name = CString::new(module)?;
    delete_module(&name, O_NONBLOCK)?;
    Ok("ok".into())
}

/// Formats a device as swap and uses it.
pub(crate) fn swapon(device: &str) -> io::Result<String> {
    busybox(&["mkswap", device])?;
    busybox(&["swapon", device])?;
    Ok("ok".into())
}

/// Runs one of busybox' programs.
fn busybox(words: &[&str]) -> io::Result<()> {
    let output = Command::new("/bin/busybox").args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{}: {said}", words.join(" "))))
}

/// Starts the machine anew; returns only when that failed.
pub(crate) fn restart() -> io::Error {
    go_down(RebootCommand::Restart)
}

/// Turns the machine off; returns only when that failed.
pub(crate) fn power_off() -> io::Error {
    go_down(RebootCommand::PowerOff)
}

fn go_down(how: RebootCommand) -> io::Error {
    match reboot(how) {
        Ok(()) => io::Error::other("the kernel goes on"),
        Err(error) => error.into(),
    }
}

/// Protects this process from the OOM killer, or offers it, as `score` says (-1000 to 1000, proc(5)).
pub(crate) fn set_oom_score(pid: u32, score: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

/// The value of `key=` on the kernel's command line.
pub(crate) fn kernel_option(key: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    option_in(&line, key)
}

fn option_in(line: &str, key: &str) -> Option<String> {
    let word = line.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.map(str::to_owned)
}

#[cfg(test)]
mod test {
    use super::{number, option_in, vmstat_words};

    #[test]
    fn numbers_are_found_by_whole_words() {
        let text = "MemTotalX: 1 kB\nMemTotal:       24683644 kB\nnr_x\n";
        assert_eq!(number(text, "MemTotal:"), Some(24_683_644));
        assert_eq!(number(text, "nr_x"), None);
        assert_eq!(number(text, "Mem"), None);
    }

    #[test]
    fn stalls_of_all_zones_are_added_up() {
        let text = "pswpin 3\nallocstall_dma 1\nallocstall_normal 4\nallocstalls 9\noom_kill 2\n";
        let words = vmstat_words(text);
        assert!(
            words.starts_with("ok pswpin=3 pswpout=0 ") && words.ends_with("allocstall=5 oom_kill=2"),
            "{words}"
        );
    }

    #[test]
    fn the_last_option_on_the_command_line_counts() {
        let line = "quiet plimsoll.script=ping plimsoll.scripts=x plimsoll.script=fill:1M,free\n";
        assert_eq!(option_in(line, "plimsoll.script").as_deref(), Some("fill:1M,free"));
        assert_eq!(option_in(line, "plimsoll"), None);
    }
}
