//! `adopt`: a QEMU that runs already.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use hyper::Method;
use plimsoll_api::http::{Endpoint, Register, VmView};
use plimsoll_model::{OnExhausted, OnPagerLoss, Sizes};
use plimsoll_qmp::{DEFAULT_TIMEOUT, QmpSocket};

use super::Context;
use crate::args::AdoptArgs;
use crate::{WrongUse, output, render};

pub(super) async fn run(context: &Context, args: &AdoptArgs) -> anyhow::Result<ExitCode> {
    let vm = adopt(context, args).await.with_context(|| format!("cannot adopt {}", args.name))?;
    output::answer(&render::vms::one_line(&vm))?;
    Ok(ExitCode::SUCCESS)
}

async fn adopt(context: &Context, args: &AdoptArgs) -> anyhow::Result<VmView> {
    let tunables = args.tuning.settings()?;
    let qmp = absolute(&args.qmp)?;
    let agent = args.agent.as_deref().map(absolute).transpose()?;
    let sizes = sizes(args, Path::new(&qmp)).await?;
    let register = Register {
        name: args.name.clone(),
        endpoint: Endpoint::Qemu { qmp, agent, pager: None },
        sizes,
        adopt: true,
        console: None,
        tunables,
        on_exhausted: OnExhausted::default(),
        on_pager_loss: OnPagerLoss::default(),
    };
    Ok(context.client.send(Method::POST, "/v1/vms", Some(&register)).await?)
}

/// A socket's path as the API takes it.
fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).context("cannot make the socket's path absolute")?;
    match path.to_str() {
        Some(text) => Ok(text.to_string()),
        None => {
            Err(WrongUse(format!("the path {} is not UTF-8, which the API needs", path.display())).into())
        }
    }
}

/// The sizes to register with: all that were given, QEMU asked for the others; `None` if none was given,
/// for then the daemon asks.
async fn sizes(args: &AdoptArgs, qmp: &Path) -> anyhow::Result<Option<Sizes>> {
    if (args.memory, args.maxmem, args.floor, args.weight) == (None, None, None, None) {
        return Ok(None);
    }
    let (memory, maxmem) = match (args.memory, args.maxmem) {
        (Some(memory), Some(maxmem)) => (memory, maxmem),
        (memory, maxmem) => {
            let mut qemu = QmpSocket::connect(qmp, DEFAULT_TIMEOUT).await?.handshake(DEFAULT_TIMEOUT).await?;
            let total = qemu.query_memory_size().await?.total();
            let maxmem = maxmem.unwrap_or(total);
            let memory = match memory {
                Some(memory) => memory,
                None => qemu.query_balloon().await?.0.min(maxmem),
            };
            (memory, maxmem)
        }
    };
    let sizes = Sizes::new(memory, maxmem, args.floor, args.weight);
    Ok(Some(sizes.map_err(|e| WrongUse(format!("cannot adopt {}: {e}", args.name)))?))
}
