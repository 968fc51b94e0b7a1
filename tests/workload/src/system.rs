//! What `serve` asks of the guest's kernel.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
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
    for applet in ["mkswap", "swapon"] {
        let output = Command::new("/bin/busybox").args([applet, device]).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(io::Error::other(format!("{applet} {device}: {said}")));
        }
    }
    Ok("ok".into())
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
    use super::{number, option_in};

    #[test]
    fn numbers_are_found_by_whole_words() {
        let text = "MemTotalX: 1 kB\nMemTotal:       24683644 kB\nnr_x\n";
        assert_eq!(number(text, "MemTotal:"), Some(24_683_644));
        assert_eq!(number(text, "nr_x"), None);
        assert_eq!(number(text, "Mem"), None);
    }

    #[test]
    fn the_last_option_on_the_command_line_counts() {
        let line = "quiet plimsoll.script=ping plimsoll.scripts=x plimsoll.script=fill:1M,free\n";
        assert_eq!(option_in(line, "plimsoll.script").as_deref(), Some("fill:1M,free"));
        assert_eq!(option_in(line, "plimsoll"), None);
    }
}
