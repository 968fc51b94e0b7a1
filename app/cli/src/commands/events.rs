//! `events`: those there are, and with `--follow` those to come.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use plimsoll_api::http::EventList;

use super::Context;
use crate::args::EventsArgs;
use crate::client::ClientError;
use crate::{output, render};

/// How long the daemon may keep a request open while nothing happens.
const WAIT: Duration = Duration::from_secs(20);

/// How long to wait before asking again a daemon that has gone away.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(context: &Context, args: &EventsArgs) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.name {
        // So that a name with a typing error is not waited for. One that was forgotten has events still.
        warn_if_unknown(context, name).await?;
    }
    let mut after = args.since;
    let mut lost_daemon = false;
    let mut wait = Duration::ZERO;
    loop {
        match ask(context, args, after, wait).await {
            Ok(list) => {
                lost_daemon = false;
                let more = list.events.len() >= 1000;
                after = print(args, after, &list)?;
                if !args.follow && !more {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(e) if args.follow && wait > Duration::ZERO && !matches!(e, ClientError::Refused { .. }) => {
                if !lost_daemon {
                    output::note(&format!("{e}; waiting for it"));
                }
                lost_daemon = true;
                tokio::time::sleep(RETRY).await;
            }
            Err(e) => return Err(e).context("cannot show events"),
        }
        wait = if args.follow { WAIT } else { Duration::ZERO };
    }
}

async fn ask(
    context: &Context,
    args: &EventsArgs,
    after: u64,
    wait: Duration,
) -> Result<EventList, ClientError> {
    let vm = args.name.as_ref().map_or(String::new(), |name| format!("&vm={name}"));
    let path = format!("/v1/events?after={after}&wait_ms={}{vm}", wait.as_millis());
    context.client.poll(&path, wait).await
}

/// Prints what came and says after which number to ask next.
fn print(args: &EventsArgs, after: u64, list: &EventList) -> anyhow::Result<u64> {
    if list.last_seq < after {
        if args.follow {
            output::note("the daemon was started anew; its events begin at 1 again");
            return Ok(0);
        }
        output::note(&format!("no event has a number above {after}; the last is {}", list.last_seq));
    }
    if list.lost > 0 && after > 0 {
        output::note(&format!("{} events after number {after} are no longer kept", list.lost));
    }
    for event in &list.events {
        if args.format.json {
            output::answer(&serde_json::to_string(event)?)?;
        } else {
            output::answer(&render::events::line(event))?;
        }
    }
    // Never back: a daemon that answered with less than it was asked for would be asked for ever.
    Ok(list.events.last().map_or(list.last_seq, |last| last.seq.max(after)).max(after))
}

async fn warn_if_unknown(context: &Context, name: &plimsoll_model::VmName) -> anyhow::Result<()> {
    match context.vm(name).await {
        Err(e) if e.is_not_found() => output::note(&format!("{e}; showing what is known of `{name}`")),
        Err(e) => return Err(e).context("cannot show events"),
        Ok(_) => {}
    }
    Ok(())
}
