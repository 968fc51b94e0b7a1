//! One file a command: arguments to request, answer to text.

mod adopt;
mod config;
mod daemon;
mod detach;
mod events;
mod hold;
mod list;
mod mconsole;
mod run;
mod set;
mod show;
mod stop;
mod top;

use std::process::ExitCode;

use anyhow::Context as _;
use hyper::Method;
use plimsoll_api::http::VmView;
use plimsoll_model::VmName;
use serde::Serialize;

use crate::args::{Args, Command};
use crate::client::{Client, ClientError};
use crate::rundir::RunDir;

/// What every command may need.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) run_dir: RunDir,
    pub(crate) client: Client,
}

impl Context {
    /// `GET /v1/vms/NAME` and what lies below it, as text.
    async fn vm_text(&self, name: &VmName, below: &str) -> Result<String, ClientError> {
        match self.client.text(&format!("/v1/vms/{name}{below}")).await {
            Err(e) => Err(self.client.with_suggestion(name, e).await),
            text => text,
        }
    }

    /// A request about a VM that is answered with the VM as it is then.
    async fn vm_ask(
        &self,
        method: Method,
        name: &VmName,
        below: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<VmView, ClientError> {
        match self.client.send(method, &format!("/v1/vms/{name}{below}"), body).await {
            Err(e) => Err(self.client.with_suggestion(name, e).await),
            view => view,
        }
    }

    /// The VM as it is now.
    async fn vm(&self, name: &VmName) -> Result<VmView, ClientError> {
        self.vm_ask(Method::GET, name, "", None::<&()>).await
    }
}

/// Does what was typed.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Command::Detach(args) = args.command {
        return detach::run(&args).map(|()| ExitCode::SUCCESS);
    }
    let run_dir = RunDir::find(args.run_dir)?;
    if let Command::Daemon(args) = &args.command {
        return daemon::run(&run_dir, args).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let context = Context { client: Client::new(&run_dir), run_dir };
    runtime.block_on(dispatch(&context, args.command))
}

async fn dispatch(context: &Context, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(context, &args).await,
        Command::Adopt(args) => adopt::run(context, &args).await,
        Command::List(args) => list::run(context, &args).await,
        Command::Show(args) => show::vm(context, &args).await,
        Command::Top(args) => top::run(context, &args).await,
        Command::Set(args) => set::run(context, &args).await,
        Command::Hold(args) => hold::hold(context, &args).await,
        Command::Release(args) => hold::release(context, &args).await,
        Command::Explain(args) => show::explain(context, &args).await,
        Command::Events(args) => events::run(context, &args).await,
        Command::Stop(args) => stop::run(context, &args).await,
        Command::Host(args) => show::host(context, &args).await,
        Command::Config(args) => config::run(context, &args).await,
        // Both were done without a runtime.
        Command::Daemon(_) | Command::Detach(_) => Ok(ExitCode::SUCCESS),
    }
}
