//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Keeps the VMs of this host within its memory: see `plimsoll --help` for what to say to it.
#[derive(Debug, Parser)]
#[command(name = "plimsolld", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Configuration, in TOML; without it, /etc/plimsoll/plimsoll.toml if that exists, else the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the socket lies and the VMs are written down [default: /run/plimsoll for root, else $XDG_RUNTIME_DIR/plimsoll]
    #[arg(long, value_name = "DIR", env = "PLIMSOLL_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a filter such as `plimsolld::tick=debug`
    #[arg(long, value_name = "LEVEL", env = "PLIMSOLL_LOG", default_value = "info")]
    log: String,
    /// Say whether the configuration in FILE would do, and exit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "print_config"])]
    check_config: Option<PathBuf>,
    /// Print the configuration with every default, and exit
    #[arg(long)]
    print_config: bool,
}

const EXAMPLES: &str = "Examples:
  plimsolld --print-config > plimsoll.toml     a configuration to begin with
  plimsolld --check-config plimsoll.toml       whether it would do
  plimsolld --config plimsoll.toml             serve this host
  curl --unix-socket /run/plimsoll/api.sock http://host/v1/vms";

/// The configuration when none is named.
const DEFAULT_CONFIG: &str = "/etc/plimsoll/plimsoll.toml";

/// What was asked for.
#[derive(Debug)]
pub(crate) enum Task {
    CheckConfig(PathBuf),
    PrintConfig(Option<PathBuf>),
    Serve(Options),
}

/// How to serve.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) config: Option<PathBuf>,
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) log: String,
}

impl Args {
    pub(crate) fn task(self) -> Task {
        let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists());
        if let Some(path) = self.check_config {
            Task::CheckConfig(path)
        } else if self.print_config {
            Task::PrintConfig(self.config)
        } else {
            let config = self.config.or_else(default);
            Task::Serve(Options { config, run_dir: self.run_dir, log: self.log })
        }
    }
}

#[cfg(test)]
mod test {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
