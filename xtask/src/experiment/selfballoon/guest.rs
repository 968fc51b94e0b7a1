//! A guest under Plimsoll's care with an agent inside, and what its own kernel says of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plimsoll_api::http::VmView;
use plimsoll_model::Source;
use plimsoll_testbed::guest::{Console, Reply, resident};
use plimsoll_testbed::images;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::{Bytes, PageCount};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::half_life::Pace;
use crate::fleet::{Kept, open_console};
use crate::run;

/// How long a guest may take to boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long its agent may take from then on to be heard.
const AGENT_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to answer a question that costs it nothing.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A guest that is idle would rest at the floor for its size, and not at its goal, which is what is looked at here;
/// and a guest that is held tighter has more to ask for.
const LEAST_USABLE: &str = "min_usable_mb=32";

/// What runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// User Mode Linux, our own balloon, the agent on a serial line
    Uml,
    /// Debian's kernel in QEMU under software emulation, QEMU's balloon, the agent on virtio-serial
    QemuLinux,
}

impl Kind {
    /// As in the summary.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::QemuLinux => "qemu_linux",
        }
    }

    /// What `plimsoll run` is told beside sizes.
    fn words(self) -> Result<Vec<String>> {
        let image = match self {
            Self::Uml => images::uml()?,
            Self::QemuLinux => images::qemu()?,
        };
        let agent = match self {
            Self::Uml => "plimsoll.agent=--port,/dev/ttyS0",
            Self::QemuLinux => "plimsoll.agent",
        };
        let path = |path: PathBuf| path.display().to_string();
        let mut words = vec!["--kernel".into(), path(image.kernel), "--initrd".into(), path(image.initrd)];
        words.extend(["--append".into(), format!("loglevel=5 {agent}"), "--vmm".into()]);
        match self {
            Self::Uml => words.push("uml".into()),
            Self::QemuLinux => words.extend(["qemu", "--accel", "tcg"].map(str::to_owned)),
        }
        Ok(words)
    }
}

/// A running guest.
pub(crate) struct Guest<'k> {
    kept: &'k Kept,
    pub(crate) kind: Kind,
    console: Console,
    pid: Pid,
    /// User Mode Linux' own folder, where its memory is a file without a name.
    uml_dir: Option<PathBuf>,
    /// What it is told it has, and has at first.
    pub(crate) maxmem: Bytes,
    /// What its kernel keeps for itself and calls no part of its total, once that was measured.
    kernel: Bytes,
    /// The pages that its kernel hands out to no program (`totalreserve_pages`).
    reserve: Bytes,
}

/// What a guest's balloon driver has counted since boot, and its OOM killer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counted {
    /// What it holds: all it was told of less what was inflated and not deflated.
    pub(crate) held: Bytes,
    /// Processes killed.
    pub(crate) oom_kills: u64,
}

impl<'k> Guest<'k> {
    /// Starts it at its full size and waits until its agent is heard.
    ///
    /// # Errors
    /// When it does not come to that.
    pub(crate) fn start(kept: &'k Kept, kind: Kind, maxmem: Bytes, floor: Bytes) -> Result<Self> {
        let name = kind.name();
        let mut command = kept.plimsoll();
        command.args(["run", "--name", name, "--memory", &maxmem.to_string()]);
        command.args(["--floor", &floor.to_string(), "--tune", LEAST_USABLE]).args(kind.words()?);
        run::quiet(&mut command)?;
        let dir = kept.dir().join("run").join(name);
        let console = open_console(&dir)?;
        console.wait_ready(1, BOOT_LIMIT)?;
        let pid = view(kept, name)?.vmm.and_then(|vmm| Pid::from_raw(i32::try_from(vmm.pid).ok()?));
        let mut guest = Self {
            kept,
            kind,
            console,
            pid: pid.with_context(|| format!("the process of {name} is not known"))?,
            uml_dir: (kind == Kind::Uml).then(|| dir.join("uml")),
            maxmem,
            kernel: Bytes::ZERO,
            reserve: Bytes::ZERO,
        };
        poll_until(AGENT_LIMIT, &format!("the agent of {name} to be heard"), || {
            let view = view(kept, name).map_err(|error| format!("{error:#}"))?;
            let whole = view.actual.0 == maxmem && view.target.0 == maxmem;
            let heard = view.source == Source::Agent && whole;
            if heard { Ok(()) } else { Err(format!("{} speaks, it holds {}", view.source, view.actual)) }
        })?;
        guest.measure()?;
        Ok(guest)
    }

    /// Reads, at its full size, what a goal is made of beside what is promised.
    fn measure(&mut self) -> Result<()> {
        let total = self.number("meminfo", "total")?;
        self.kernel = self.maxmem.minus(Bytes(total));
        let zones = self.ask("sh /bin/busybox grep -E \"^Node|high +|managed|protection\" /proc/zoneinfo")?;
        self.reserve = total_reserve(zones.text()).bytes();
        Ok(())
    }

    /// The goal of self-ballooning, from what the guest's own kernel says: what its programs were promised, what the
    /// kernel keeps, its reserve, and the tenth of all that is kept free by default (`reserved_mb`).
    ///
    /// # Errors
    /// When the guest does not answer.
    pub(crate) fn goal(&self) -> Result<Bytes> {
        let committed = Bytes(self.number("meminfo", "committed")?);
        let goal = committed.plus(self.kernel).plus(self.reserve).plus(Bytes(self.maxmem.0 / 10));
        Ok(goal.min(self.maxmem))
    }

    /// What the guest's kernel has counted.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub(crate) fn counted(&self) -> Result<Counted> {
        let reply = self.ask("balloon")?;
        let number = |key| reply.number(key).with_context(|| format!("no {key} in {}", reply.text()));
        let inside = PageCount(number("inflate")?.saturating_sub(number("deflate")?)).bytes();
        Ok(Counted { held: self.maxmem.minus(inside), oom_kills: number("oom_kill")? })
    }

    /// Of its memory, what exists on the host: blocks of its file.
    pub(crate) fn resident(&self) -> Option<Bytes> {
        resident(self.pid, self.uml_dir.as_deref()).ok()
    }

    /// Asks, and takes only a good answer.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn ask(&self, command: &str) -> Result<Reply> {
        let reply = self.load(command, ANSWER_LIMIT)?;
        if !reply.is_ok() {
            bail!("{} was told `{command}` and said: {}", self.kind.name(), reply.text());
        }
        Ok(reply)
    }

    /// Gives it work, and takes any answer: a program that was killed is one too.
    ///
    /// # Errors
    /// When there is none within the limit.
    pub(crate) fn load(&self, command: &str, limit: Duration) -> Result<Reply> {
        Ok(self.console.ask(command, limit)?)
    }

    fn number(&self, command: &str, key: &str) -> Result<u64> {
        let reply = self.ask(command)?;
        reply.number(key).with_context(|| format!("{}: no {key} in {}", self.kind.name(), reply.text()))
    }

    /// `plimsoll set` with these words.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub(crate) fn set(&self, words: &[&str]) -> Result<()> {
        run::quiet(self.kept.plimsoll().args(["set", self.kind.name()]).args(words)).map(drop)
    }

    /// Switches self-ballooning on, at that pace.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub(crate) fn set_pace(&self, pace: Pace) -> Result<()> {
        self.set(&pace.words().each_ref().map(String::as_str))
    }

    /// Waits until it holds what `is` wants.
    ///
    /// # Errors
    /// With what it held last, when that takes longer than `limit`.
    pub(crate) fn wait_held(
        &self,
        what: &str,
        limit: Duration,
        is: impl Fn(Bytes) -> bool,
    ) -> Result<Counted> {
        let begin = Instant::now();
        loop {
            let counted = self.counted()?;
            if is(counted.held) {
                return Ok(counted);
            }
            if begin.elapsed() > limit {
                let (name, limit) = (self.kind.name(), limit.as_secs());
                bail!("{name} holds {} after {limit} s of waiting for {what}", counted.held);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn view(kept: &Kept, name: &str) -> Result<VmView> {
    let vms = kept.list()?.vms;
    vms.into_iter().find(|vm| vm.name.as_str() == name).with_context(|| format!("{name} is not listed"))
}

/// `totalreserve_pages`, from lines of /proc/zoneinfo that are joined by semicolons: of each zone its high mark and
/// the largest protection, at most the pages it manages (`calculate_totalreserve_pages`, mm/page_alloc.c).
fn total_reserve(zones: &str) -> PageCount {
    let mut zone = [0_u64; 3];
    let mut total = 0_u64;
    let mut close = |zone: &mut [u64; 3]| {
        let [high, managed, protection] = std::mem::take(zone);
        total = total.saturating_add(high.saturating_add(protection).min(managed));
    };
    for line in zones.trim_start_matches(|c| c != 'N').split(';').map(str::trim) {
        let numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok());
        let largest = numbers.max().unwrap_or(0);
        // With a colon, `high` is a limit of a processor's own list of free pages.
        let word = line.split(' ').next().unwrap_or_default();
        let [high, managed, protection] = &mut zone;
        match word {
            "Node" => close(&mut zone),
            "high" => *high = largest,
            "managed" => *managed = largest,
            "protection:" => *protection = largest,
            _ => {}
        }
    }
    close(&mut zone);
    PageCount(total)
}

#[cfg(test)]
mod test {
    use plimsoll_units::PageCount;

    use super::{Kind, total_reserve};

    #[test]
    fn the_reserve_is_that_of_all_zones() {
        let said = "code=0 said=\"Node 0, zone      DMA; high     105; managed  3840; protection: (0, 427, 427); \
                    Node 0, zone    DMA32; high     3082; managed  109430; protection: (0, 0, 0); high: 378; \
                    Node 0, zone  Movable; high     32; managed  0; protection: (0, 0)\"";
        assert_eq!(total_reserve(said), PageCount(105 + 427 + 3082));
        assert_eq!(total_reserve(""), PageCount(0));
        assert_eq!(total_reserve("code=1 said=\"grep: nothing\""), PageCount(0));
    }

    #[test]
    fn names_are_those_of_the_summary() {
        for kind in [Kind::Uml, Kind::QemuLinux] {
            assert_eq!(serde_json::to_value(kind).expect("a name"), kind.name());
        }
    }
}
