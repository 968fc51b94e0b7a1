//! `run`: starts a VM with the caller's own rights and puts it under the daemon's care.
//!
//! In this order, so that what does not fit never runs and a failure leaves nothing behind:
//!
//! 1. [`check`]: everything that can be known beforehand; nothing is changed;
//! 2. the VM is registered, which admits it;
//! 3. [`start`]: folder, cgroup, keeper, VMM;
//! 4. the daemon is told the processes and says when the VM runs.
//!
//! Whatever goes wrong after 2, Ctrl-C included, [`start::Started::undo`] takes back in reverse order.

mod check;
mod follow;
mod group;
mod kvm;
mod line;
mod pod;
mod qemu;
mod start;
mod uml;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper::Method;
use plimsoll_api::http::{Endpoint, Life, Patch, Register, VmView};

use self::check::{Machine, Plan};
pub(super) use self::group::remove_recorded as remove_group;
use self::start::Started;
pub(super) use self::start::end_keeper;
use super::Context;
use super::stop::Signals;
use crate::args::RunArgs;
use crate::{WrongUse, output, render};

/// How long a VMM may take until the daemon has had an answer from it.
const RUNNING_DEADLINE: Duration = Duration::from_secs(30);

/// How often the daemon is asked meanwhile.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let failed = || format!("cannot run {}", args.name);
    let mut signals = Signals::new()?;
    let plan = check::plan(context, args).await.map_err(|e| prefixed(e, &failed()))?;
    register(context, &plan).await.with_context(failed)?;
    let mut started = Started::default();
    let outcome = tokio::select! {
        vm = bring_up(context, &plan, &mut started) => vm,
        signal = signals.next() => Err(anyhow::anyhow!("stopped by {signal}")),
    };
    output::progress_end();
    match outcome {
        Ok(vm) if args.foreground => {
            output::note(&line(&vm, &plan));
            follow::run(context, &plan, started, signals).await
        }
        Ok(vm) => {
            output::answer(&line(&vm, &plan))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let error = plan.with_log(error);
            started.undo(context, &plan).await;
            Err(error.context(failed()))
        }
    }
}

/// Wrong use stays wrong use when it is told what was tried.
fn prefixed(error: anyhow::Error, what: &str) -> anyhow::Error {
    if error.is::<WrongUse>() {
        WrongUse(format!("{what}: {}", output::explained(&error))).into()
    } else {
        error.context(what.to_string())
    }
}

/// Registers the VM. One of the same name that has ended, and is shown for a while still, makes room.
async fn register(context: &Context, plan: &Plan) -> anyhow::Result<()> {
    let request = Register {
        name: plan.name.clone(),
        endpoint: endpoint(plan)?,
        sizes: Some(plan.sizes),
        adopt: false,
        console: plan.dir.console_log().to_str().map(ToString::to_string),
        tunables: plan.tunables.clone(),
        on_exhausted: plan.pod().map_or_else(Default::default, |pod| pod.on_exhausted),
        on_pager_loss: plan.pod().map_or_else(Default::default, |pod| pod.on_pager_loss),
    };
    let post = || context.client.send::<VmView>(Method::POST, "/v1/vms", Some(&request));
    match post().await {
        Ok(_) => Ok(()),
        Err(e) if e.is_conflict() && context.vm(&plan.name).await.is_ok_and(|vm| vm.life == Life::Gone) => {
            context.vm_ask(Method::DELETE, &plan.name, "", None::<&()>).await?;
            post().await?;
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

fn endpoint(plan: &Plan) -> anyhow::Result<Endpoint> {
    let text = |path: std::path::PathBuf| match path.to_str() {
        Some(text) => Ok(text.to_string()),
        None => bail!("the path {} is not UTF-8, which the API needs", path.display()),
    };
    Ok(match &plan.machine {
        Machine::Qemu(qemu) => {
            let agent = qemu.has_agent_port().then(|| text(plan.dir.agent_socket())).transpose()?;
            let pager = qemu.pod().map(|_| text(plan.dir.control_socket())).transpose()?;
            Endpoint::Qemu { qmp: text(plan.dir.qmp_socket())?, agent, pager }
        }
        Machine::Uml(_) => Endpoint::Uml { control: text(plan.dir.control_socket())? },
    })
}

/// Starts everything and waits until the daemon says that the VM runs.
async fn bring_up(context: &Context, plan: &Plan, started: &mut Started) -> anyhow::Result<VmView> {
    started.start(plan).await?;
    let patch = Patch { vmm: started.vmm(), keeper: started.keeper(), ..Patch::default() };
    context
        .vm_ask(Method::PATCH, &plan.name, "", Some(&patch))
        .await
        .context("cannot tell the daemon the processes")?;
    let begin = Instant::now();
    loop {
        started.check()?;
        let vm = context.vm(&plan.name).await.context("cannot ask the daemon whether the VM runs")?;
        match vm.life {
            Life::Running => return Ok(vm),
            Life::Gone => bail!("its VMM ended at once"),
            Life::Starting | Life::Unreachable | Life::Unprotected | Life::Stopping => {}
        }
        if begin.elapsed() > RUNNING_DEADLINE {
            let problem = vm.problem.map_or(String::new(), |p| format!(" ({})", render::clean(&p)));
            bail!("the daemon had no answer from it within {} s{problem}", RUNNING_DEADLINE.as_secs());
        }
        output::progress(&format!("{}: waiting for its VMM, {} s", plan.name, begin.elapsed().as_secs()));
        tokio::time::sleep(POLL).await;
    }
}

fn line(vm: &VmView, plan: &Plan) -> String {
    let pid = vm.vmm.map_or("unknown".to_string(), |vmm| vmm.pid.to_string());
    format!("{} runs: pid {pid}, console {}", vm.name, plan.dir.console_log().display())
}
