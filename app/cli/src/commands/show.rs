//! `show`, `explain` and `host`: one answer each.

use std::process::ExitCode;

use anyhow::Context as _;
use plimsoll_api::http::{Explain, VmView};
use serde::de::DeserializeOwned;

use super::Context;
use crate::args::{ExplainArgs, Format, HostArgs, ShowArgs};
use crate::render::time::now_us;
use crate::{output, render};

pub(super) async fn vm(context: &Context, args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let text = context.vm_text(&args.name, "").await.with_context(|| format!("cannot show {}", args.name))?;
    answer(args.format, &text, |vm: &VmView| render::show::vm(vm, now_us()))
}

pub(super) async fn explain(context: &Context, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let text = context.vm_text(&args.name, "/explain").await;
    let text = text.with_context(|| format!("cannot explain {}", args.name))?;
    answer(args.format, &text, |told: &Explain| render::explain::explain(told, now_us()))
}

pub(super) async fn host(context: &Context, args: &HostArgs) -> anyhow::Result<ExitCode> {
    let text = context.client.text("/v1/host").await.context("cannot show the host")?;
    answer(args.format, &text, render::show::host)
}

/// Prints the API's JSON as it is, or what `render` makes of it.
fn answer<T: DeserializeOwned>(
    format: Format,
    json: &str,
    render: impl Fn(&T) -> String,
) -> anyhow::Result<ExitCode> {
    if format.json {
        output::answer(json)?;
    } else {
        let told: T = serde_json::from_str(json)
            .context("cannot read the daemon's answer; is it another version of plimsoll?")?;
        output::answer(&render(&told))?;
    }
    Ok(ExitCode::SUCCESS)
}
