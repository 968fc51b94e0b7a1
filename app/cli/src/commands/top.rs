//! `top`: the list again and again.

use std::process::ExitCode;

use anyhow::Context as _;
use plimsoll_api::http::ListView;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use crate::args::TopArgs;
use crate::{output, render};

/// Enters the alternate screen and hides the cursor; leaving undoes both (xterm's control sequences 1049
/// and 25).
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";
/// Cursor home; and clear from there on.
const HOME: &str = "\x1b[H\x1b[J";

pub(super) async fn run(context: &Context, args: &TopArgs) -> anyhow::Result<ExitCode> {
    let full_screen = !args.format.json && output::terminal().is_some();
    if !full_screen {
        return looks(context, args, false).await;
    }
    output::raw(ENTER)?;
    let done = looks(context, args, true).await;
    output::raw(LEAVE)?;
    done
}

/// Looks until there were enough, something fails, or a signal ends it.
async fn looks(context: &Context, args: &TopArgs, full_screen: bool) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let mut clock = tokio::time::interval(args.interval);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut n_left = args.count.unwrap_or(u64::MAX);
    while n_left > 0 {
        let turn = async {
            clock.tick().await;
            look(context, args, full_screen).await
        };
        tokio::select! {
            done = turn => done?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
        }
        n_left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}

async fn look(context: &Context, args: &TopArgs, full_screen: bool) -> anyhow::Result<()> {
    let what = "cannot list the VMs";
    if args.format.json {
        return output::answer(&context.client.text("/v1/vms").await.context(what)?);
    }
    let list: ListView = context.client.get("/v1/vms").await.context(what)?;
    match output::terminal().filter(|_| full_screen) {
        Some((columns, rows)) => {
            let text = render::vms::list(&list, Some(columns));
            // The last row stays free, or the newline after it would scroll the first away.
            let lines: Vec<&str> = text.lines().take(rows.saturating_sub(1)).collect();
            output::answer(&format!("{HOME}{}", lines.join("\n")))
        }
        None => output::answer(&format!("{}\n", render::vms::list(&list, None))),
    }
}
