//! `list`.

use std::process::ExitCode;

use anyhow::Context as _;
use plimsoll_api::http::ListView;

use super::Context;
use crate::args::ListArgs;
use crate::{output, render};

pub(super) async fn run(context: &Context, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let what = "cannot list the VMs";
    if args.format.json {
        output::answer(&context.client.text("/v1/vms").await.context(what)?)?;
    } else {
        let list: ListView = context.client.get("/v1/vms").await.context(what)?;
        output::answer(&render::vms::list(&list, output::terminal().map(|(columns, _)| columns)))?;
    }
    Ok(ExitCode::SUCCESS)
}
