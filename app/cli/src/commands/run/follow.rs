//! `--foreground`: the console on stdout until the VM ends.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;

use super::check::Plan;
use super::start::Started;
use crate::commands::Context;
use crate::commands::stop::{Signals, Subject};
use crate::{output, render};

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long the guest may take to shut down after Ctrl-C; a second Ctrl-C ends it at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shows the console until the VM has ended, then clears everything away.
pub(super) async fn run(
    context: &Context,
    plan: &Plan,
    mut started: Started,
    mut signals: Signals,
) -> anyhow::Result<ExitCode> {
    let subject = Subject::find(context, &plan.name).await?;
    let followed = until_end(&subject, plan, &mut started, &mut signals).await;
    match followed {
        Ok((status, asked)) => {
            subject.clear().await?;
            if status.success() || asked {
                return Ok(ExitCode::SUCCESS);
            }
            anyhow::bail!("{} ended: its VMM ended with {status}", plan.name)
        }
        Err(error) => {
            // Nobody reads the console any more (or it cannot be read): the VM must not outlive this.
            started.undo(context, plan).await;
            Err(error)
        }
    }
}

/// Returns how the VMM ended, and whether that was asked for.
async fn until_end(
    subject: &Subject<'_>,
    plan: &Plan,
    started: &mut Started,
    signals: &mut Signals,
) -> anyhow::Result<(ExitStatus, bool)> {
    let path = plan.dir.console_log();
    let mut log = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut clock = tokio::time::interval(LOOK);
    let mut stopping: Option<Pin<Box<dyn Future<Output = anyhow::Result<()>> + '_>>> = None;
    let mut asked = 0u32;
    loop {
        let stop_step = async {
            match stopping.as_mut() {
                Some(stopping) => stopping.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = clock.tick() => {
                let status = started.vmm_ended()?;
                copy(&mut log)?;
                if let Some(status) = status {
                    return Ok((status, asked > 0));
                }
            }
            _ = signals.next() => {
                asked += 1;
                let kill = asked > 1;
                output::note(if kill { "ending it at once" } else { "stopping it; again to end it at once" });
                stopping = Some(Box::pin(async move { subject.shut_down(PATIENCE, kill).await.map(drop) }));
            }
            stopped = stop_step => {
                stopping = None;
                if let Err(e) = stopped {
                    output::note(&output::explained(&e));
                }
            }
        }
    }
}

/// What has come to the console since the last look.
fn copy(log: &mut File) -> anyhow::Result<()> {
    let mut bytes = [0u8; 16 * 1024];
    loop {
        let n = log.read(&mut bytes).context("cannot read the console")?;
        match bytes.get(..n) {
            Some(new) if !new.is_empty() => output::raw(new)?,
            Some(_) | None => return Ok(()),
        }
    }
}

/// The last `n_lines` lines of a log, without control characters; `None` if there is nothing.
pub(super) fn tail(log: &Path, n_lines: usize) -> Option<String> {
    const MOST: u64 = 4096;
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST))).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(n_lines)..)?;
    let shown: Vec<String> = last.iter().map(|line| format!("  {}", render::clean(line))).collect();
    (!shown.is_empty()).then(|| shown.join("\n"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_tail_is_short_and_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(tail(&log, 3), None);
        std::fs::write(&log, "").unwrap();
        assert_eq!(tail(&log, 3), None);
        std::fs::write(&log, "a\n".repeat(5000) + "b\r\n\n\x1b[2Jc\nd").unwrap();
        assert_eq!(tail(&log, 3).unwrap(), "  b\n  \u{fffd}[2Jc\n  d");
    }
}
