//! What can be typed: one definition of commands, options and their help.

mod pod;
mod tuning;
mod vm;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Group, Parser, Subcommand};
use plimsoll_model::VmName;
use plimsoll_units::Bytes;

pub(crate) use self::pod::PodArgs;
pub(crate) use self::tuning::{TuningArgs, add_setting};
pub(crate) use self::vm::{Accel, AdoptArgs, RunArgs, VmmChoice};
use crate::render::time::parse_duration;

/// Keeps a host loaded with virtual machines afloat.
///
/// Each VM is told it has `maxmem`, is granted its `target`, and is guaranteed its `floor`. The daemon moves
/// memory to where it is needed, so that neither the host nor a guest swaps. This command speaks to the
/// daemon, starts and stops VMs, and says why things are as they are.
#[derive(Debug, Parser)]
#[command(
    name = "plimsoll",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Sizes are written 512M, 1.5G or 2GiB (powers of 1024). Exit codes: 0 done, 1 failed, 2 wrong use.\n\n\
Examples:\n  \
plimsoll daemon\n  \
plimsoll run --name web --memory 256M --maxmem 1G --vmm uml --initrd web.cpio\n  \
plimsoll adopt --name db --qmp /run/db/qmp.sock\n  \
plimsoll list\n  \
plimsoll explain web"
)]
pub(crate) struct Args {
    /// The daemon's run folder [default: /run/plimsoll for root, $XDG_RUNTIME_DIR/plimsoll for others, who
    /// fall back on /run/plimsoll if only that one has a daemon]
    #[arg(
        long,
        global = true,
        env = "PLIMSOLL_RUN_DIR",
        hide_env_values = true,
        value_name = "DIR",
        display_order = 900
    )]
    pub(crate) run_dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon, plimsolld, in the foreground
    Daemon(DaemonArgs),
    /// Start a VM and put it under the daemon's care
    Run(Box<RunArgs>),
    /// Put a QEMU that runs already under the daemon's care
    Adopt(AdoptArgs),
    /// List the VMs and what each has
    List(ListArgs),
    /// Show everything about a VM
    Show(ShowArgs),
    /// List the VMs again and again
    Top(TopArgs),
    /// Change a VM's memory (its baseline), weight or other settings
    Set(SetArgs),
    /// Pin a VM's target until it is released
    Hold(HoldArgs),
    /// Let the daemon move a held VM's target again
    Release(NameArgs),
    /// Say why a VM has the memory it has
    Explain(ExplainArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Stop a VM
    Stop(StopArgs),
    /// Show how the host stands
    Host(HostArgs),
    /// Show or check the daemon's configuration
    Config(ConfigArgs),
    /// Becomes another program in a session of its own: `run` uses it to start keeper and VMM
    #[command(name = "__detach", hide = true)]
    Detach(DetachArgs),
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Group)]
pub(crate) struct Format {
    /// Print JSON as the daemon's API has it
    #[arg(long)]
    pub(crate) json: bool,
}

/// `daemon`.
#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  \
plimsoll daemon\n  \
plimsoll --run-dir /tmp/trial daemon --config trial.toml\n  \
plimsoll daemon -- --help\n\n\
plimsolld is taken from beside this program, else from PATH.")]
pub(crate) struct DaemonArgs {
    /// Arguments for plimsolld
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARG")]
    pub(crate) rest: Vec<std::ffi::OsString>,
}

/// `list`.
#[derive(Debug, Group)]
#[command(
    after_help = "TARGET is what the VM may have now, ACTUAL what its guest holds, RESIDENT what of that is in the host's memory, \
NEED what the guest needs by its own word (its agent's, else its balloon's statistics); `-` is not known.\n\n\
Examples:\n  \
plimsoll list\n  \
plimsoll list --json | jq -r '.vms[].name'"
)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) format: Format,
}

/// `show`.
#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  plimsoll show web\n  plimsoll show web --json")]
pub(crate) struct ShowArgs {
    /// Which VM
    pub(crate) name: VmName,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// `top`.
#[derive(Debug, Group)]
#[command(
    after_help = "Ctrl-C ends it. With --json, or where the output is no terminal, one answer follows the other.\n\n\
Examples:\n  \
plimsoll top\n  \
plimsoll top --interval 5s\n  \
plimsoll top -n 60 --json > minute.jsonl"
)]
pub(crate) struct TopArgs {
    /// How long to wait between two looks, 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Look so many times, then end
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// `set`.
#[derive(Debug, Group)]
#[command(
    after_help = "KEY is memory (the baseline, within floor and maxmem), weight (1 to 10000) or on-exhausted (grow, wait, stop; where memory \
is populated on demand). floor and maxmem are fixed \
when a VM is made. Settings of self-ballooning, as `plimsoll show` lists them, are set in the same way: selfballooning \
(on, off), selfballoon_interval (seconds), selfballoon_downhysteresis, selfballoon_uphysteresis, min_usable_mb, \
reserved_mb; frontswap_selfshrinking, frontswap_hysteresis and frontswap_inertia are kept for when the VM has a swap \
store.\n\n\
Examples:\n  \
plimsoll set web memory=512M\n  \
plimsoll set web memory=512M weight=200\n  \
plimsoll set web selfballooning=on selfballoon_interval=5"
)]
pub(crate) struct SetArgs {
    /// Which VM
    pub(crate) name: VmName,
    /// What to set
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub(crate) changes: Vec<String>,
}

/// `hold`.
#[derive(Debug, Group)]
#[command(after_help = "A hold wins over everything but floor and maxmem, also over a distressed guest.\n\n\
Examples:\n  \
plimsoll hold web\n  \
plimsoll hold web 384M\n  \
plimsoll release web")]
pub(crate) struct HoldArgs {
    /// Which VM
    pub(crate) name: VmName,
    /// Where, within floor and maxmem [default: where it is now]
    #[arg(value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) size: Option<Bytes>,
}

/// A VM and nothing else.
#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  plimsoll release web")]
pub(crate) struct NameArgs {
    /// Which VM
    pub(crate) name: VmName,
}

/// `explain`.
#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  plimsoll explain web\n  plimsoll explain web --json")]
pub(crate) struct ExplainArgs {
    /// Which VM
    pub(crate) name: VmName,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// `events`.
#[derive(Debug, Group)]
#[command(after_help = "The daemon keeps the last 4096. With --json each event is a line.\n\n\
Examples:\n  \
plimsoll events\n  \
plimsoll events web --follow\n  \
plimsoll events --since 1200 --json")]
pub(crate) struct EventsArgs {
    /// Only those of this VM
    pub(crate) name: Option<VmName>,
    /// Go on as they happen
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only those after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(crate) since: u64,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// `stop`.
#[derive(Debug, Group)]
#[command(
    after_help = "First the guest is asked (QEMU: power button, UML: Ctrl-Alt-Del), after the time-out the VMM is told to end, \
at last its process is killed. A guest that answers by rebooting is ended as it comes up again. A VM that you started is stopped even while the daemon is down.\n\n\
Examples:\n  \
plimsoll stop web\n  \
plimsoll stop web --timeout 2m\n  \
plimsoll stop web --kill"
)]
pub(crate) struct StopArgs {
    /// Which VM
    pub(crate) name: VmName,
    /// How long the guest may take to shut down
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Do not ask: kill the VMM at once
    #[arg(long)]
    pub(crate) kill: bool,
}

/// `host`.
#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  plimsoll host\n  plimsoll host --json")]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) format: Format,
}

/// `config`.
#[derive(Debug, Group)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  plimsoll config show\n  plimsoll config check /etc/plimsoll/plimsoll.toml"
)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) what: ConfigCommand,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show the configuration the daemon runs with, as TOML
    #[command(after_help = "Examples:\n  plimsoll config show > plimsoll.toml")]
    Show {
        #[command(flatten)]
        format: Format,
    },
    /// Check a configuration file without using it
    #[command(after_help = "Examples:\n  plimsoll config check /etc/plimsoll/plimsoll.toml")]
    Check {
        /// The file
        file: PathBuf,
    },
}

/// `__detach`.
#[derive(Debug, Group)]
pub(crate) struct DetachArgs {
    /// Files into which to write the own process number: `cgroup.procs` of cgroups to join
    #[arg(long, value_name = "FILE")]
    pub(crate) join: Vec<PathBuf>,
    /// Program and arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) || interval > Duration::from_secs(3600) {
        return Err(format!("`{text}` is out of range; it is 100ms to 1h"));
    }
    Ok(interval)
}

#[cfg(test)]
mod test {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Args::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  plimsoll "), "{} has no examples", command.get_name());
        }
    }
}
