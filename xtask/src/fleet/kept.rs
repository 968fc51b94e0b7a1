//! Guests started with `plimsoll run`, with a daemon of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plimsoll_api::http::ListView;
use plimsoll_testbed::bins::{Bins, Prefer, bins};
use plimsoll_testbed::guard::{Marked, ShmDir, TestCgroup};
use plimsoll_testbed::guest::{Console, Reply};
use plimsoll_testbed::images;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use super::{Fleet, GuestSpec, Seen, name};
use crate::run;

/// How long a daemon may take to answer for the first time.
const DAEMON_LIMIT: Duration = Duration::from_secs(10);
/// Lines of the daemon's log that an error shows.
const LOG_LINES: usize = 20;

/// How the guests are cared for.
#[derive(Clone, Debug)]
pub(crate) struct Care<'a> {
    /// For names of folders and marks.
    pub(crate) what: &'a str,
    /// plimsolld's configuration (TOML).
    pub(crate) config: String,
    /// Each VM's baseline.
    pub(crate) memory: Bytes,
    /// Each VM's guarantee.
    pub(crate) floor: Bytes,
    /// The group that stands for the host.
    pub(crate) cgroup: &'a TestCgroup,
    /// Whether an agent in each guest tells the daemon what the guest wants.
    pub(crate) agent: bool,
}

/// On the guest's kernel command line: the image's `/init` starts the agent, which speaks on the serial line that
/// `plimsoll run` gives a User Mode Linux.
const WITH_AGENT: &str = "plimsoll.agent=--port,/dev/ttyS0";

/// The group's name as plimsolld and `plimsoll run --cgroup` want it.
pub(crate) fn group_name(cgroup: &TestCgroup) -> Result<String> {
    Ok(cgroup.path().file_name().context("a cgroup has a name")?.to_string_lossy().into_owned())
}

/// Guests in Plimsoll's care.
pub(crate) struct Kept {
    // In this order: processes end before their folder goes.
    marked: Marked,
    bins: Bins,
    consoles: Vec<Console>,
    dir: ShmDir,
}

impl Kept {
    /// Starts plimsolld and the guests, and waits until all are ready.
    ///
    /// # Errors
    /// When the daemon does not answer or a guest cannot be started, with what the daemon said.
    pub(crate) fn start(specs: &[GuestSpec], care: &Care<'_>) -> Result<Self> {
        let mut kept = Self::serve(care.what, &care.config)?;
        for spec in specs {
            kept.run(spec, care).with_context(|| kept.log_tail())?;
        }
        for (console, spec) in kept.consoles.iter().zip(specs) {
            console.wait_ready(1, spec.boot_limit)?;
        }
        Ok(kept)
    }

    /// Starts plimsolld alone, with that configuration (TOML); `what` is for names of folders and marks. Guests can
    /// be started by [`Kept::plimsoll`]; they end with it.
    ///
    /// # Errors
    /// When the daemon does not answer, with what it said.
    pub(crate) fn serve(what: &str, config_text: &str) -> Result<Self> {
        let marked = Marked::new(what)?;
        let dir = ShmDir::create(what)?;
        let config = dir.path().join("plimsoll.toml");
        std::fs::write(&config, config_text)?;
        let bins = bins(Prefer::Release)?;
        let log = std::fs::File::create(dir.path().join("plimsolld.log"))?;
        let mut daemon = Command::new(&bins.plimsolld);
        daemon.arg("--config").arg(&config).arg("--run-dir").arg(dir.path()).stderr(log);
        // It belongs to the mark, which ends it.
        marked.put_on(&mut daemon).spawn().context("cannot start plimsolld")?;
        let kept = Self { marked, bins, consoles: Vec::new(), dir };
        poll_until(DAEMON_LIMIT, "plimsolld to answer", || kept.list().map_err(|e| format!("{e:#}")))
            .with_context(|| kept.log_tail())?;
        Ok(kept)
    }

    /// The folder with the daemon's socket and log.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A command line of Plimsoll's, for this daemon.
    pub(crate) fn plimsoll(&self) -> Command {
        let mut command = Command::new(&self.bins.plimsoll);
        command.arg("--run-dir").arg(self.dir.path());
        self.marked.put_on(&mut command);
        command
    }

    /// What `plimsoll list` shows.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(crate) fn list(&self) -> Result<ListView> {
        let text = run::quiet(self.plimsoll().args(["list", "--json"]))?;
        serde_json::from_str(&text).context("plimsoll list --json")
    }

    /// Keeps what the daemon wrote, what the guests of these names said, and what the daemon says of them, for whoever asks
    /// why.
    ///
    /// # Errors
    /// When something cannot be copied or written. A question that is not answered leaves its error in the place of
    /// the answer.
    pub(crate) fn keep_logs<'a>(&self, names: impl IntoIterator<Item = &'a str>, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let copy = |from: &Path, to: &str| {
            std::fs::copy(from, dir.join(to)).with_context(|| format!("cannot copy {}", from.display()))
        };
        for file in ["plimsolld.log", "plimsoll.toml"] {
            copy(&self.dir().join(file), file)?;
        }
        let mut questions = vec![vec!["list"], vec!["host"], vec!["events"]];
        for name in names {
            copy(&self.dir().join("run").join(name).join("console.log"), &format!("console-{name}.log"))?;
            questions.push(vec!["explain", name]);
        }
        for words in questions {
            let said = run::quiet(self.plimsoll().args(&words)).unwrap_or_else(|error| format!("{error:#}"));
            std::fs::write(dir.join(words.join("-")), said)?;
        }
        Ok(())
    }

    fn run(&mut self, spec: &GuestSpec, care: &Care<'_>) -> Result<()> {
        let image = images::uml()?;
        let mut command = self.plimsoll();
        command
            .args(["run", "--vmm", "uml", "--name", &spec.name, "--cgroup", &group_name(care.cgroup)?])
            .args(["--memory", &care.memory.to_string(), "--maxmem", &spec.told.to_string()])
            .args(["--floor", &care.floor.to_string()])
            .arg("--kernel")
            .arg(&image.kernel)
            .arg("--initrd")
            .arg(&image.initrd)
            .args(["--append", &append(care.agent)]);
        if let Some(disk) = &spec.disk {
            command.arg("--disk").arg(disk);
        }
        if spec.host_files {
            command.args(["--hostfs", "/"]);
        }
        run::quiet(&mut command)?;
        let files = self.dir.path().join("run").join(&spec.name);
        self.consoles.push(open_console(&files)?);
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("plimsolld.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        format!("plimsolld said:\n{}", tail.join("\n"))
    }
}

impl Fleet for Kept {
    fn count(&self) -> usize {
        self.consoles.len()
    }

    fn ask(&self, index: usize, command: &str, limit: Duration) -> Result<Reply> {
        let reply = self.consoles.get(index).context("there is no such guest")?.ask(command, limit)?;
        if !reply.is_ok() {
            bail!("`{command}`: {}", reply.text());
        }
        Ok(reply)
    }

    fn sizes(&self) -> Vec<Seen> {
        let list = self.list().map(|list| list.vms).unwrap_or_default();
        let by_name: BTreeMap<_, _> = list.iter().map(|vm| (vm.name.as_str(), vm)).collect();
        let seen = |index: usize| {
            let vm = by_name.get(name(u64::try_from(index).unwrap_or(0)).as_str()).copied();
            vm.map_or_else(Seen::default, |vm| Seen { target: Some(vm.target.0), resident: vm.resident })
        };
        (0..self.consoles.len()).map(seen).collect()
    }
}

/// Warnings and errors only, so that little gets between the workload's lines.
fn append(agent: bool) -> String {
    if agent { format!("loglevel=5 {WITH_AGENT}") } else { "loglevel=5".into() }
}

/// The console of a guest that was started with `plimsoll run`, in its folder.
///
/// # Errors
/// When there is none.
pub(crate) fn open_console(files: &Path) -> Result<Console> {
    let (input, log) = (files.join("console.in"), files.join("console.log"));
    if !input.exists() {
        bail!("{} is not there", input.display());
    }
    Ok(Console::open(&input, &log)?)
}
