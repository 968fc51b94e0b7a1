//! The two sides: guests started bare, and guests under Plimsoll's care.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plimsoll_api::http::ListView;
use plimsoll_testbed::bins::{Bins, Prefer, bins};
use plimsoll_testbed::guard::{Marked, ShmDir, TestCgroup};
use plimsoll_testbed::guest::{Console, Guest, Reply, UmlSpec};
use plimsoll_testbed::images;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use super::Plan;
use crate::run;

/// How long guests may take to boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// A side of the comparison: six guests and how they are seen.
pub(super) trait Side: Sized + Sync {
    /// For tables.
    const NAME: &'static str;

    /// Boots the guests inside `cgroup` and waits until all are ready.
    fn start(plan: Plan, cgroup: &TestCgroup) -> Result<Self>;

    /// How many there are.
    fn count(&self) -> usize;

    /// Gives a guest a command and waits for what it answers. One that is gone is an error at once.
    fn ask(&self, index: usize, command: &str, limit: Duration) -> Result<Reply>;

    /// What each may have and what of it is in the host's memory.
    fn sizes(&self) -> Vec<Seen>;
}

/// A guest at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Its target, where somebody sets one.
    pub(super) target: Option<Bytes>,
    /// Host memory behind it; `None` when it is gone.
    pub(super) resident: Option<Bytes>,
}

/// What a guest is called.
pub(super) fn name(index: u64) -> String {
    format!("vm{}", index + 1)
}

/// Guests without a balloon.
pub(super) struct Unmanaged {
    guests: Vec<Guest>,
}

impl Side for Unmanaged {
    const NAME: &'static str = "nothing";

    fn start(plan: Plan, cgroup: &TestCgroup) -> Result<Self> {
        let image = images::uml()?;
        let names: Vec<_> = (0..plan.guests).map(name).collect();
        let launch = |name: &String| {
            let mut spec = UmlSpec::new(name, plan.told, image.clone());
            spec.cgroup = Some(cgroup);
            spec.launch()
        };
        let guests = names.iter().map(launch).collect::<Result<Vec<_>, _>>()?;
        for guest in &guests {
            guest.wait_boots(1, BOOT_LIMIT)?;
        }
        Ok(Self { guests })
    }

    fn count(&self) -> usize {
        self.guests.len()
    }

    fn ask(&self, index: usize, command: &str, limit: Duration) -> Result<Reply> {
        Ok(self.guests.get(index).context("there is no such guest")?.send(command, limit)?)
    }

    fn sizes(&self) -> Vec<Seen> {
        let seen = |guest: &Guest| Seen { target: None, resident: guest.resident().ok() };
        self.guests.iter().map(seen).collect()
    }
}

/// Guests started with `plimsoll run`.
pub(super) struct Managed {
    // In this order: processes end before their folder goes.
    marked: Marked,
    bins: Bins,
    consoles: Vec<Console>,
    dir: ShmDir,
}

impl Side for Managed {
    const NAME: &'static str = "plimsoll";

    fn start(plan: Plan, cgroup: &TestCgroup) -> Result<Self> {
        let marked = Marked::new("demo")?;
        let dir = ShmDir::create("demo")?;
        let group = cgroup.path().file_name().context("a cgroup has a name")?.to_string_lossy().into_owned();
        let config = dir.path().join("plimsoll.toml");
        std::fs::write(&config, format!("[host]\ncgroup = \"{group}\"\n"))?;
        let bins = bins(Prefer::Release)?;
        let log = std::fs::File::create(dir.path().join("plimsolld.log"))?;
        let mut daemon = Command::new(&bins.plimsolld);
        daemon.arg("--config").arg(&config).arg("--run-dir").arg(dir.path()).stderr(log);
        // It belongs to the mark, which ends it.
        marked.put_on(&mut daemon).spawn().context("cannot start plimsolld")?;
        let mut side = Self { marked, bins, consoles: Vec::new(), dir };
        poll_until(Duration::from_secs(10), "plimsolld to answer", || {
            side.list().map_err(|e| format!("{e:#}"))
        })
        .with_context(|| side.log_tail())?;
        for index in 0..plan.guests {
            side.run(&name(index), plan, &group)?;
        }
        for console in &side.consoles {
            console.wait_ready(1, BOOT_LIMIT)?;
        }
        Ok(side)
    }

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

impl Managed {
    fn plimsoll(&self) -> Command {
        let mut command = Command::new(&self.bins.plimsoll);
        command.arg("--run-dir").arg(self.dir.path());
        self.marked.put_on(&mut command);
        command
    }

    fn list(&self) -> Result<ListView> {
        let text = run::quiet(self.plimsoll().args(["list", "--json"]))?;
        serde_json::from_str(&text).context("plimsoll list --json")
    }

    fn run(&mut self, name: &str, plan: Plan, group: &str) -> Result<()> {
        let image = images::uml()?;
        let mut command = self.plimsoll();
        command
            .args(["run", "--vmm", "uml", "--name", name, "--cgroup", group])
            .args(["--memory", &plan.memory.to_string(), "--maxmem", &plan.told.to_string()])
            .args(["--floor", &plan.floor.to_string()])
            .arg("--kernel")
            .arg(&image.kernel)
            .arg("--initrd")
            .arg(&image.initrd)
            .args(["--append", "loglevel=5"]);
        run::quiet(&mut command).with_context(|| self.log_tail())?;
        let files = self.dir.path().join("run").join(name);
        self.consoles.push(open_console(&files)?);
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("plimsolld.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!(
            "plimsolld said:\n{}",
            lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
        )
    }
}

fn open_console(files: &Path) -> Result<Console> {
    let (input, log) = (files.join("console.in"), files.join("console.log"));
    if !input.exists() {
        bail!("{} is not there", input.display());
    }
    Ok(Console::open(&input, &log)?)
}
