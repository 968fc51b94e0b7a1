//! `hold` and `release`.

use std::process::ExitCode;

use anyhow::Context as _;
use hyper::Method;
use plimsoll_api::http::Hold;
use plimsoll_units::MemTarget;

use super::Context;
use crate::args::{HoldArgs, NameArgs};
use crate::{output, render};

pub(super) async fn hold(context: &Context, args: &HoldArgs) -> anyhow::Result<ExitCode> {
    let hold = Hold { target: args.size.map(MemTarget) };
    let vm = context
        .vm_ask(Method::PUT, &args.name, "/hold", Some(&hold))
        .await
        .with_context(|| format!("cannot hold {}", args.name))?;
    output::answer(&render::vms::one_line(&vm))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn release(context: &Context, args: &NameArgs) -> anyhow::Result<ExitCode> {
    let vm = context
        .vm_ask(Method::DELETE, &args.name, "/hold", None::<&()>)
        .await
        .with_context(|| format!("cannot release {}", args.name))?;
    output::answer(&render::vms::one_line(&vm))?;
    Ok(ExitCode::SUCCESS)
}
