//! `config show` and `config check`.

use std::process::{Command, ExitCode};

use anyhow::Context as _;

use super::Context;
use super::daemon::plimsolld;
use crate::args::{ConfigArgs, ConfigCommand};
use crate::output;

pub(super) async fn run(context: &Context, args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        ConfigCommand::Show { format } => {
            let text = context.client.text("/v1/config").await.context("cannot show the configuration")?;
            if format.json {
                let table: toml::Table = toml::from_str(&text).context("cannot read the daemon's TOML")?;
                output::answer(&serde_json::to_string(&table)?)?;
            } else {
                output::answer(&text)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        ConfigCommand::Check { file } => {
            let status = Command::new(plimsolld()?)
                .arg("--check-config")
                .arg(file)
                .status()
                .context("cannot run plimsolld to check the configuration")?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            Ok(ExitCode::from(code))
        }
    }
}
