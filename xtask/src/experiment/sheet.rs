//! The file an experiment leaves: who measured what where, each run with its raw counters, and the summary.
//!
//! It is written anew after each run, beside its place and then renamed into it: whoever interrupts the experiment
//! has every run so far in valid JSON, with `"complete": false`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use plimsoll_testbed::host::Meminfo;
use serde::Serialize;

use crate::{paths, run};

/// The file's content. `S` are the settings, `R` is a run, `M` the summary.
#[derive(Debug, Serialize)]
pub(crate) struct Sheet<S, R, M> {
    /// The experiment.
    name: &'static str,
    /// The commit of the repository, with `-dirty` when files differ from it.
    commit: String,
    machine: Machine,
    /// When it began, in seconds since 1970 (UTC).
    began_unix: u64,
    /// The arguments of this invocation.
    command: Vec<String>,
    settings: S,
    /// Whether it came to its end.
    complete: bool,
    /// What the reader of the figures must know.
    notes: Vec<String>,
    /// Every run.
    pub(crate) runs: Vec<R>,
    /// From all runs together, once they are done.
    summary: Option<M>,
    #[serde(skip)]
    path: PathBuf,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    /// `uname -srm`.
    system: String,
    cpu: String,
    cpus: usize,
    memory_bytes: u64,
}

impl<S: Serialize, R: Serialize, M: Serialize> Sheet<S, R, M> {
    /// Begins the file, so that a place that cannot be written is known before hours of work.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn begin(name: &'static str, path: &Path, settings: S) -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let sheet = Self {
            name,
            commit: commit(),
            machine: Machine::this(),
            began_unix: since.map_or(0, |since| since.as_secs()),
            command: std::env::args().skip(1).collect(),
            settings,
            complete: false,
            notes: Vec::new(),
            runs: Vec::new(),
            summary: None,
            path: path.to_owned(),
        };
        sheet.write()?;
        Ok(sheet)
    }

    /// Adds what a reader must know; written with the next run.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a run and writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn add(&mut self, run: R) -> Result<()> {
        self.runs.push(run);
        self.write()
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(&mut self, summary: M) -> Result<()> {
        self.summary = Some(summary);
        self.complete = true;
        self.write()
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        replace(&self.path, &text)
    }
}

/// Puts a text in a file's place at once: a reader sees the old one or the new one.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let mut name = path.file_name().context("--out needs the name of a file")?.to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(name);
    std::fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

impl Machine {
    fn this() -> Self {
        let system = run::quiet(Command::new("uname").arg("-srm"));
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            system: system.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned()),
            cpu: cpu.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: Meminfo::read().unwrap_or_default().total.0,
        }
    }
}

/// Says so when others use the machine: what waits for a processor is late, and measures the others.
pub(crate) fn busy() -> Option<String> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let waiting: f64 = load.split_whitespace().next()?.parse().ok()?;
    let processors = u32::try_from(std::thread::available_parallelism().ok()?.get()).ok()?;
    let busy = waiting > f64::from(processors);
    busy.then(|| {
        format!(
            "the machine was busy with other work at the start: load {waiting:.1}, {processors} processors"
        )
    })
}

/// The commit that is measured.
fn commit() -> String {
    let git = |words: &[&str]| run::quiet(Command::new("git").current_dir(paths::root()).args(words));
    let Ok(commit) = git(&["rev-parse", "HEAD"]) else { return "unknown".into() };
    let dirty = git(&["status", "--porcelain"]).is_ok_and(|text| !text.trim().is_empty());
    format!("{}{}", commit.trim(), if dirty { "-dirty" } else { "" })
}

#[cfg(test)]
mod test {
    use plimsoll_testbed::guard::ShmDir;

    use super::Sheet;

    #[test]
    fn an_interrupted_experiment_has_every_run_so_far_in_valid_json() {
        let dir = ShmDir::create("sheet").expect("a directory");
        let path = dir.path().join("out.json");
        let read = || -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(&path).expect("reads")).expect("valid")
        };
        let mut sheet: Sheet<u32, u32, u32> = Sheet::begin("unit", &path, 7).expect("writes");
        assert_eq!(read()["complete"], false);
        sheet.note("mind this");
        sheet.add(1).expect("writes");
        sheet.add(2).expect("writes");
        let partial = read();
        assert_eq!((&partial["complete"], &partial["runs"][1]), (&false.into(), &2.into()));
        assert_eq!(partial["notes"][0], "mind this");
        sheet.finish(3).expect("writes");
        assert_eq!((&read()["complete"], &read()["summary"]), (&true.into(), &3.into()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_known_at_once() {
        let begun = Sheet::<u32, u32, u32>::begin("unit", std::path::Path::new("/no/such/dir/x.json"), 7);
        assert!(begun.expect_err("there is no such place").to_string().contains("/no/such/dir"));
    }
}
