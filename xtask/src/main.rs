//! Every task of the repository: `cargo xtask help`.
//!
//! Place in the map: beside the workspace. It installs what the tests need, builds guest images with the testbed,
//! and runs cargo. Nothing of Plimsoll depends on it.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod experiment;
mod fleet;
mod layers;
mod out;
mod paths;
mod ready;
mod run;
mod setup;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the Plimsoll repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = false)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install or fetch what real guests need, and build their images
    ///
    /// Installs Debian packages (user-mode-linux, qemu-system-x86, busybox-static) when they are missing and this is
    /// root, unpacks Debian's stock kernel and C sources (newlib-source) below the target directory without
    /// installing them, builds the static workload, the agent and the images of UML and QEMU guests. Says what it
    /// does. Repeating it does no harm.
    Setup,
    /// Show real guests unmanaged, then managed, side by side
    ///
    /// Boots six User Mode Linux guests in one memory cgroup, together told of twice its limit. By turns two of them
    /// fill memory, check every byte of it and free it again, so that what lives at one moment is at most 0.8 of
    /// the limit. First without Plimsoll, then with it; counted by the kernel. Swap is needed: the host's own, or
    /// a temporary file. Everything is put back, also after Ctrl-C.
    Demo(demo::Options),
    /// Set up, build, and run every test, real guests included
    ///
    /// Fast tests first, then documentation tests, then real guests, a few at a time. With cargo-nextest when it is
    /// installed, else with cargo test. The end lists what could not run on this machine and why.
    Test {
        /// Leave out the tests that boot real guests of the testbed and end-to-end crates
        #[arg(long)]
        fast: bool,
    },
    /// Check format, lints and documentation, then run every test
    Ci,
    /// Run one published experiment
    Experiment {
        /// Which
        #[command(subcommand)]
        which: Box<experiment::Experiment>,
    },
    /// Run one benchmark
    Bench {
        /// Which
        #[command(subcommand)]
        which: bench::Bench,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Setup => setup::command(),
        Task::Demo(options) => demo::command(&options),
        Task::Test { fast } => suite::test(fast),
        Task::Ci => suite::ci(),
        Task::Experiment { which } => experiment::command(&which),
        Task::Bench { which } => bench::command(which),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod test {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
