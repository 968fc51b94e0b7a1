//! Whether KVM works here: not by the device node, which may be there and run no ordinary guest, but by
//! booting one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::qemu::PROGRAM;
use crate::args::Accel;
use crate::output;
use crate::rundir::RunDir;

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acceleration {
    Kvm,
    Tcg,
}

impl Acceleration {
    /// QEMU's options for it: with KVM the processor as it is, else all that can be emulated.
    pub(super) fn arguments(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Kvm => [("-accel", "kvm"), ("-cpu", "host")],
            Self::Tcg => [("-accel", "tcg"), ("-cpu", "max")],
        }
    }
}

/// How long the trial may take. Where KVM works it takes a tenth of this; where each privileged instruction
/// is emulated it takes longer, and no guest would be of use.
const TRIAL_DEADLINE: Duration = Duration::from_secs(2);

/// What the trial writes to QEMU's `isa-debug-exit` device, and the exit code QEMU makes of it.
const TRIAL_VALUE: u8 = 0x2a;
const TRIAL_EXIT: i32 = ((0x2a) << 1) | 1;

/// What a trial showed, as kept for the next `run`. Another boot or kernel may behave otherwise.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    boot_id: String,
    kernel: String,
    works: bool,
    /// What was seen, where it does not work.
    seen: String,
}

/// What was asked for, or what works; says so where it is the slow one.
pub(super) async fn decide(run_dir: &RunDir, wanted: Accel) -> anyhow::Result<Acceleration> {
    match wanted {
        Accel::Kvm => Ok(Acceleration::Kvm),
        Accel::Tcg => Ok(Acceleration::Tcg),
        Accel::Auto => match unusable(run_dir).await? {
            None => Ok(Acceleration::Kvm),
            Some(why) => {
                output::note(&format!("{why}: running in software emulation, which is slow"));
                Ok(Acceleration::Tcg)
            }
        },
    }
}

/// Why KVM cannot be used, `None` if it can.
async fn unusable(run_dir: &RunDir) -> anyhow::Result<Option<String>> {
    if let Err(e) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(Some(format!("cannot use /dev/kvm ({e})")));
    }
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let boot_id = read("/proc/sys/kernel/random/boot_id")?.trim().to_string();
    let kernel = read("/proc/sys/kernel/osrelease")?.trim().to_string();
    let cache = cache(run_dir);
    let known = cache.as_deref().and_then(recall).filter(|v| v.boot_id == boot_id && v.kernel == kernel);
    let verdict = match known {
        Some(known) => known,
        None => {
            output::progress("trying whether KVM works here");
            let seen = trial(Acceleration::Kvm, TRIAL_DEADLINE).await?;
            output::progress_end();
            let verdict = Verdict { boot_id, kernel, works: seen.is_none(), seen: seen.unwrap_or_default() };
            // Where it cannot be kept it is tried again next time.
            if let Some(cache) = &cache {
                let _ = remember(cache, &verdict);
            }
            verdict
        }
    };
    Ok((!verdict.works)
        .then(|| format!("/dev/kvm is there, but a trial boot did not work ({})", verdict.seen)))
}

/// Where a verdict is kept: beside the caller's VMs, so that nobody believes another user's.
fn cache(run_dir: &RunDir) -> Option<PathBuf> {
    Some(run_dir.vm_base().ok()?.parent()?.join("kvm-probe.json"))
}

fn recall(cache: &Path) -> Option<Verdict> {
    serde_json::from_slice(&fs::read(cache).ok()?).ok()
}

fn remember(cache: &Path, verdict: &Verdict) -> anyhow::Result<()> {
    let draft = cache.with_extension("json.new");
    fs::write(&draft, serde_json::to_vec(verdict)?)?;
    fs::rename(&draft, cache)?;
    Ok(())
}

/// Boots [`boot_sector`]; `None` if it did what it should, else what was seen.
async fn trial(accel: Acceleration, deadline: Duration) -> anyhow::Result<Option<String>> {
    let mut sector = File::from(
        rustix::fs::memfd_create("plimsoll-kvm-trial", MemfdFlags::CLOEXEC)
            .context("cannot make the trial's boot sector")?,
    );
    sector.write_all(&boot_sector())?;
    // QEMU opens it through this process: nothing is left on any disk.
    let floppy = format!(
        "file=/proc/{}/fd/{},if=floppy,format=raw,readonly=on",
        std::process::id(),
        sector.as_raw_fd()
    );
    let mut command = Command::new(PROGRAM);
    for (option, value) in accel.arguments() {
        command.arg(option).arg(value);
    }
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "16M"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-drive", &floppy])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot run {PROGRAM}"))?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the trial")? {
            break Some(status);
        }
        if begin.elapsed() > deadline {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let Some(status) = status else {
        // It may have ended meanwhile.
        let _ = child.kill();
        child.wait().context("cannot wait for the trial")?;
        return Ok(Some(format!("not done within {} s", deadline.as_secs())));
    };
    Ok((status.code() != Some(TRIAL_EXIT)).then(|| format!("QEMU ended with {status}")))
}

/// A boot sector that goes where a kernel must go: from real mode through page tables of its own into 64-bit
/// mode, counts to a million there, and writes [`TRIAL_VALUE`] to port 0xf4.
fn boot_sector() -> Vec<u8> {
    #[rustfmt::skip]
    let code: &[u8] = &[
        // 16 bits, at 0x7c00
        0xfa,                                     // cli
        0x31, 0xc0,                               // xor ax, ax
        0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0,       // mov ds, ax; mov es, ax; mov ss, ax
        0xbc, 0x00, 0x7c,                         // mov sp, 0x7c00
        0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18,       // mov di, 0x1000; mov cx, 0x1800
        0xfc, 0xf3, 0xab,                         // cld; rep stosw: three empty tables
        0xc7, 0x06, 0x00, 0x10, 0x03, 0x20,       // [0x1000] = 0x2003: level 4 to 3
        0xc7, 0x06, 0x00, 0x20, 0x03, 0x30,       // [0x2000] = 0x3003: level 3 to 2
        0xc7, 0x06, 0x00, 0x30, 0x83, 0x00,       // [0x3000] = 0x83: the first 2 MiB as they are
        0x0f, 0x01, 0x16, 0x88, 0x7c,             // lgdt [0x7c88]
        0x0f, 0x20, 0xe0, 0x0c, 0x20,             // mov eax, cr4; or al, 0x20: PAE
        0x0f, 0x22, 0xe0,                         // mov cr4, eax
        0x66, 0xb8, 0x00, 0x10, 0x00, 0x00,       // mov eax, 0x1000
        0x0f, 0x22, 0xd8,                         // mov cr3, eax
        0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,       // mov ecx, 0xc0000080: EFER
        0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30, // rdmsr; or ah, 1: LME; wrmsr
        0x0f, 0x20, 0xc0,                         // mov eax, cr0
        0x66, 0x0d, 0x01, 0x00, 0x00, 0x80,       // or eax, 0x80000001: paging and protection
        0x0f, 0x22, 0xc0,                         // mov cr0, eax
        0x66, 0xea, 0x5e, 0x7c, 0x00, 0x00, 0x08, 0x00, // jmp 8:0x7c5e
        // 64 bits, at 0x7c5e
        0xb9, 0x40, 0x42, 0x0f, 0x00,             // mov ecx, 1000000
        0xff, 0xc9, 0x75, 0xfc,                   // 1: dec ecx; jnz 1b
        0xb8, TRIAL_VALUE, 0x00, 0x00, 0x00,      // mov eax, 0x2a
        0xe7, 0xf4,                               // out 0xf4, eax
        0xf4, 0xeb, 0xfd,                         // 2: hlt; jmp 2b
    ];
    // The descriptor table at 0x7c78: nothing, and 64-bit code; at 0x7c88 its limit and address.
    let table: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x9a, 0x20, 0, 0x0f, 0, 0x78, 0x7c, 0, 0];
    let mut sector = code.to_vec();
    sector.resize(0x78, 0);
    sector.extend(table);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::commands::daemon::in_path;

    /// In software emulation the sector must do its work, so that where it does not do so under KVM the
    /// fault is KVM's.
    #[tokio::test]
    async fn the_boot_sector_runs_where_anything_runs() {
        if in_path(PROGRAM).is_none() {
            output::note("SKIPPED the_boot_sector_runs_where_anything_runs: no qemu-system-x86_64");
            return;
        }
        assert_eq!(trial(Acceleration::Tcg, Duration::from_secs(30)).await.unwrap(), None);
        // With no time at all it is given up, and says so.
        let seen = trial(Acceleration::Tcg, Duration::ZERO).await.unwrap();
        assert_eq!(seen.as_deref(), Some("not done within 0 s"));
    }

    #[test]
    fn a_verdict_is_remembered_and_garbage_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("kvm-probe.json");
        assert_eq!(recall(&cache), None);
        let verdict = Verdict { boot_id: "b".into(), kernel: "6.1".into(), works: false, seen: "x".into() };
        remember(&cache, &verdict).unwrap();
        assert_eq!(recall(&cache), Some(verdict));
        fs::write(&cache, "{}").unwrap();
        assert_eq!(recall(&cache), None);
    }
}
