//! One guest, from its first page until it is at rest.

mod kernel;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use plimsoll_api::control::PagerStatus;
use plimsoll_api::http::{PagerView, VmView};
use plimsoll_testbed::BedError;
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_testbed::guest::Console;
use plimsoll_testbed::images;
use plimsoll_units::{Bytes, PAGES_PER_FRAME};
use serde::Serialize;

use super::plan::{Settings, Turn};
use super::watch::{Sample, Seen, Watch};
use crate::experiment::figures::number;
use crate::fleet::{Kept, group_name, open_console};
use crate::run;
use kernel::{Host, Inside, Mapped};

/// What the VM is called.
const NAME: &str = "pod";
/// How long a guest may take to boot, and to come to rest, on a busy machine. It is 6 s and a few on an idle one.
const LIMIT: Duration = Duration::from_secs(240);
/// From one look at a guest that comes to rest to the next.
const LOOK: Duration = Duration::from_millis(500);
/// How long it is looked at when it is at rest.
const AT_REST: Duration = Duration::from_secs(4);
/// Lines of a console that an end is explained with.
const SHOWN_LINES: usize = 12;

/// What became of a guest, with what was counted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Booted {
    #[serde(flatten)]
    pub(super) turn: Turn,
    /// Whether its workload ran and answered.
    pub(super) booted: bool,
    /// How it ended if not, with the last lines of its console.
    pub(super) failure: Option<String>,
    /// When its workload ran, since its memory was made.
    pub(super) ready_ms: Option<u64>,
    /// When its balloon held all that it is not granted.
    pub(super) inflated_ms: Option<u64>,
    /// The most of its memory that existed at once, and what existed at the end.
    pub(super) max_resident: Bytes,
    pub(super) last_resident: Bytes,
    pub(super) looks_per_s: f64,
    pub(super) longest_gap_ms: u64,
    /// The highest target that the daemon told of. It is held at `memory`.
    pub(super) most_target: Bytes,
    /// What the VM's processes used at most, QEMU's own memory included, of the group's hard limit.
    pub(super) cgroup_peak: Option<Bytes>,
    pub(super) cgroup_limit: Bytes,
    /// What the guest's kernel says.
    pub(super) inside: Option<Inside>,
    /// What its pager says.
    pub(super) pager: Option<PagerStatus>,
    /// Whether that is all: a back end that had to take over does not know what the one before it did.
    pub(super) pager_told_all: bool,
    /// How QEMU has its memory mapped.
    pub(super) mapped: Option<Mapped>,
    /// What the host's kernel counted, the whole machine's and the group's.
    pub(super) host: Host,
    /// Milliseconds, and bytes that existed.
    pub(super) curve: Vec<Sample>,
}

impl Booted {
    /// The most that existed, in parts of what is granted.
    pub(super) fn over_target(&self) -> f64 {
        number(self.max_resident.0) / number(self.turn.memory.0)
    }

    /// Whether the guest knows of all it is told of.
    pub(super) fn sees_maxmem(&self) -> bool {
        self.inside.as_ref().is_some_and(|inside| inside.sees(self.turn.maxmem))
    }

    /// The part of the memory that was populated by whole frames of 2 MiB.
    pub(super) fn whole_frame_share(&self) -> Option<f64> {
        let pager = self.pager?;
        let whole = pager.populated_frames.saturating_mul(PAGES_PER_FRAME);
        let all = whole.saturating_add(pager.populated_pages);
        (all > 0).then(|| number(whole) / number(all))
    }
}

/// Boots a guest, and keeps its logs.
///
/// # Errors
/// When the harness cannot do its work. A guest that does not boot is no error.
pub(super) fn boot(settings: &Settings, turn: Turn, logs: Option<&Path>) -> Result<Booted> {
    let cgroup = TestCgroup::create("pod", turn.hard_limit())?;
    let before = Host::read(&cgroup)?;
    let kept = Kept::serve("pod", &config(turn))?;
    let watch = Watch::begin(cgroup.path().join(NAME));
    let guest = Guest::start(&kept, settings, turn, &cgroup)?;
    let story = guest.live(turn);
    let seen = watch.end()?;
    if let Some(logs) = logs {
        kept.keep_logs([NAME], logs)?;
        let keeper = kept.dir().join("run").join(NAME).join("keeper.log");
        std::fs::copy(&keeper, logs.join("keeper.log")).context("cannot keep the keeper's log")?;
    }
    let host = Host::read(&cgroup)?.since(&before);
    Ok(record(turn, story, seen, (host, cgroup.peak().ok())))
}

/// No journal, and a host that has no room for what the guest is told of.
fn config(turn: Turn) -> String {
    format!(
        "[host]\nbudget = \"{}\"\nreserve = \"0\"\nlow = \"16M\"\n\n[journal]\ndir = \"none\"\n",
        turn.budget()
    )
}

/// A guest that was started.
struct Guest<'k> {
    kept: &'k Kept,
    console: Console,
    vmm: u32,
}

/// What happened to it.
#[derive(Default)]
struct Story {
    failure: Option<String>,
    ready: Option<Instant>,
    inflated: Option<Instant>,
    most_target: Bytes,
    inside: Option<Inside>,
    mapped: Option<Mapped>,
    /// The first and the last that the pager said with the guest's memory in its hands.
    pagers: Option<(PagerView, PagerView)>,
}

impl<'k> Guest<'k> {
    fn start(kept: &'k Kept, settings: &Settings, turn: Turn, cgroup: &TestCgroup) -> Result<Self> {
        let image = images::qemu()?;
        let mut command = kept.plimsoll();
        command.args(["run", "--name", NAME, "--cgroup", &group_name(cgroup)?]);
        command.args(["--memory", &turn.memory.to_string(), "--maxmem", &turn.maxmem.to_string()]);
        command.args(settings.words()).args(["--append", turn.boot.append()]);
        command.arg("--kernel").arg(&image.kernel).arg("--initrd").arg(&image.initrd);
        run::quiet(&mut command)?;
        run::quiet(kept.plimsoll().args(["hold", NAME, &turn.memory.to_string()]))?;
        let console = open_console(&kept.dir().join("run").join(NAME))?;
        let view = view(kept)?;
        let vmm = view.vmm.with_context(|| format!("the process of {NAME} is not known"))?.pid;
        Ok(Self { kept, console, vmm })
    }

    /// Follows it until it is at rest, or has failed.
    fn live(&self, turn: Turn) -> Story {
        let mut story = Story::default();
        self.note(&mut story);
        if let Err(error) = self.try_live(turn, &mut story) {
            let tail = self.console.tail(SHOWN_LINES);
            story.failure = Some(format!("{error:#}; its console ends with:\n{tail}"));
        }
        // Of one that failed it is known how its pager stands.
        self.note(&mut story);
        story
    }

    fn try_live(&self, turn: Turn, story: &mut Story) -> Result<()> {
        self.wait_ready()?;
        story.ready = Some(Instant::now());
        let end = Instant::now() + LIMIT;
        let inside = loop {
            let inside = Inside::ask(&self.console)?;
            self.note(story);
            // It gives in whole MiB, and its driver asks again for what it did not get at once.
            if inside.balloon.plus(turn.memory) >= turn.maxmem {
                story.inflated = Some(Instant::now());
                break inside;
            }
            if Instant::now() > end {
                break inside;
            }
            std::thread::sleep(LOOK);
        };
        story.inside = Some(inside);
        // Nothing is waited for: what comes to pass unasked is what is looked for.
        std::thread::sleep(AT_REST);
        story.inside = Some(Inside::ask(&self.console)?);
        story.mapped = Some(Mapped::read(self.vmm)?);
        Ok(())
    }

    fn wait_ready(&self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            match self.console.wait_ready(1, LOOK) {
                Ok(()) => return Ok(()),
                Err(BedError::Wait(late)) if Instant::now() > end => return Err(late.into()),
                Err(BedError::Wait(_)) if Path::new("/proc").join(self.vmm.to_string()).exists() => {}
                Err(BedError::Wait(_)) => anyhow::bail!("its VMM has ended"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes over what the daemon says, if it does.
    fn note(&self, story: &mut Story) {
        if let Ok(view) = view(self.kept) {
            story.most_target = story.most_target.max(view.target.0);
            let serves = |pager: &PagerView| pager.status.is_some_and(|status| status.mapped);
            if let Some(pager) = view.pager.filter(serves) {
                story.pagers = Some((story.pagers.map_or(pager, |(first, _)| first), pager));
            }
        }
    }
}

fn view(kept: &Kept) -> Result<VmView> {
    let vms = kept.list()?.vms;
    vms.into_iter().find(|vm| vm.name.as_str() == NAME).with_context(|| format!("{NAME} is not listed"))
}

fn record(turn: Turn, story: Story, seen: Seen, (host, cgroup_peak): (Host, Option<Bytes>)) -> Booted {
    let since = |at: Option<Instant>| {
        at.and_then(|at| u64::try_from(at.saturating_duration_since(seen.since).as_millis()).ok())
    };
    Booted {
        turn,
        booted: story.failure.is_none(),
        ready_ms: since(story.ready),
        inflated_ms: since(story.inflated),
        failure: story.failure,
        max_resident: seen.most(),
        last_resident: seen.last(),
        looks_per_s: seen.rate(),
        longest_gap_ms: seen.longest_gap_ms(),
        most_target: story.most_target,
        cgroup_peak,
        cgroup_limit: turn.hard_limit(),
        inside: story.inside,
        pager: story.pagers.and_then(|(_, last)| last.status),
        pager_told_all: story.pagers.is_some_and(|(first, last)| first.epoch == last.epoch),
        mapped: story.mapped,
        host,
        curve: seen.samples,
    }
}

#[cfg(test)]
pub(super) mod test {
    use std::time::{Duration, Instant};

    use plimsoll_api::control::PagerStatus;
    use plimsoll_api::http::PagerView;
    use plimsoll_model::{OnExhausted, OnPagerLoss};
    use plimsoll_units::Bytes;

    use super::super::plan::{BootKind, Turn};
    use super::super::watch::Seen;
    use super::kernel::{Host, Inside};
    use super::{Booted, Story, config, record};

    /// A guest that keeps its limits: a quarter of its memory in single pages, 3 sweeps with 1000 pages.
    pub(in super::super) fn booted(boot: BootKind) -> Booted {
        let turn = Turn { memory: Bytes::mib(256), maxmem: Bytes::mib(512), boot };
        let since = Instant::now();
        let story = Story {
            ready: Some(since + Duration::from_millis(6000)),
            inflated: Some(since + Duration::from_millis(9000)),
            inside: Some(Inside { present: Bytes::mib(511), ..Inside::default() }),
            most_target: turn.memory,
            pagers: Some((pager(2, 1), pager(2, 1000))),
            ..Story::default()
        };
        let samples = vec![(0, 0), (50, Bytes::mib(128).0), (100, Bytes::mib(64).0)];
        record(turn, story, Seen { since, samples }, (Host::default(), Some(Bytes::mib(200))))
    }

    fn pager(epoch: u64, swept_pages: u64) -> PagerView {
        let status = PagerStatus {
            populated_frames: 3,
            populated_pages: 512,
            sweeps: 3,
            swept_pages,
            mapped: true,
            ..PagerStatus::default()
        };
        PagerView {
            on_exhausted: OnExhausted::Wait,
            on_pager_loss: OnPagerLoss::Stall,
            lost: false,
            epoch,
            age_ms: Some(0),
            status: Some(status),
        }
    }

    #[test]
    fn a_pager_that_was_replaced_has_not_told_all() {
        let made = |first, last| {
            let turn = booted(BootKind::Plain).turn;
            let story = Story { pagers: Some((pager(first, 1), pager(last, 7))), ..Story::default() };
            record(turn, story, Seen { since: Instant::now(), samples: Vec::new() }, (Host::default(), None))
        };
        assert!(made(2, 2).pager_told_all && !made(2, 3).pager_told_all);
        assert_eq!(made(2, 3).pager.map(|status| status.swept_pages), Some(7));
    }

    #[test]
    fn what_was_seen_becomes_figures() {
        let booted = booted(BootKind::Plain);
        assert!(booted.booted && booted.sees_maxmem());
        assert_eq!((booted.ready_ms, booted.inflated_ms), (Some(6000), Some(9000)));
        assert!((booted.over_target() - 0.5).abs() < 1e-9);
        assert!(booted.whole_frame_share().is_some_and(|share| (share - 0.75).abs() < 1e-9));
        let silent = Booted { pager: None, inside: None, ..booted };
        assert_eq!((silent.whole_frame_share(), silent.sees_maxmem()), (None, false));
    }

    #[test]
    fn a_record_has_the_names_that_are_published() {
        let json = serde_json::to_value(booted(BootKind::Memtest)).expect("json");
        assert_eq!((&json["boot"], &json["memory"]), (&"memtest".into(), &Bytes::mib(256).0.into()));
        assert_eq!(json["pager"]["swept_pages"], 1000);
        assert_eq!(json["curve"][1][0], 50);
    }

    #[test]
    fn the_host_is_told_of_its_budget() {
        let text = config(booted(BootKind::Plain).turn);
        assert!(text.starts_with("[host]\nbudget = \"384M\"\nreserve = \"0\"\n"), "{text}");
    }
}
