//! The daemon's configuration: a TOML file, checked once, never looked at again.
//!
//! `docs/config.md` has every key with its default; a test keeps it complete.

mod error;
mod policy;
mod raw;
mod text;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use plimsoll_units::Bytes;

pub(crate) use error::ConfigError;
use raw::{Millis, RawConfig, RawHost, RawJournal};
use text::show_duration;

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// From one tick to the next while nothing is pressing.
    pub(crate) tick: Duration,
    /// How long a VM that has ended is still shown.
    pub(crate) forget_after: Duration,
    /// How long a registered VM may take to answer for the first time.
    pub(crate) start_timeout: Duration,
    /// What there is to give.
    pub(crate) host: HostConfig,
    /// Where decisions are written down.
    pub(crate) journal: JournalConfig,
    /// The arbiter's constants.
    pub(crate) policy: plimsoll_policy::Config,
}

/// `[host]`. `None` is `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostConfig {
    /// What the VMs together may be granted.
    pub(crate) budget: Option<Bytes>,
    /// What is kept from them.
    pub(crate) reserve: Option<Bytes>,
    /// Below this much available the host is short.
    pub(crate) low: Option<Bytes>,
    /// The memory cgroup that stands for the host.
    pub(crate) cgroup: Option<String>,
    /// A QEMU's memory beyond its guest's.
    pub(crate) overhead_qemu: Bytes,
    /// A User Mode Linux' memory beyond its guest's, keeper and back end included.
    pub(crate) overhead_uml: Bytes,
}

/// `[journal]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalConfig {
    /// Where.
    pub(crate) dir: JournalDir,
    /// A file that has grown to this is put aside.
    pub(crate) max_size: Bytes,
    /// So many files are kept, the current one included.
    pub(crate) keep: u32,
}

/// Where the journal lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JournalDir {
    /// [`JOURNAL_DIR`] for the daemon of the default run folder, nowhere for any other.
    Auto,
    /// There is no journal.
    Off,
    /// This folder.
    At(PathBuf),
}

/// The journal of the host's own daemon.
pub(crate) const JOURNAL_DIR: &str = "/var/log/plimsoll";

impl Default for Config {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            forget_after: Duration::from_mins(1),
            start_timeout: Duration::from_mins(2),
            host: HostConfig {
                budget: None,
                reserve: None,
                low: None,
                cgroup: None,
                overhead_qemu: Bytes::mib(64),
                overhead_uml: Bytes::ZERO,
            },
            journal: JournalConfig { dir: JournalDir::Auto, max_size: Bytes::mib(64), keep: 8 },
            policy: plimsoll_policy::Config::default(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, path)
    }

    /// Checks a text; `path` is only for messages.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig =
            toml::from_str(text).map_err(|e| ConfigError::from_toml(path.to_owned(), text, &e))?;
        check(raw).map_err(|(key, message)| ConfigError::Range { path: path.to_owned(), key, message })
    }

    /// The configuration as a TOML text that means the same.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = String::new();
        for (section, entries) in self.sections() {
            if !section.is_empty() {
                text.push_str(&format!("\n[{section}]\n"));
            }
            for (key, value) in entries {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text
    }

    /// Sections, keys and values; a key without a value (`cgroup`) is left out.
    fn sections(&self) -> [(&'static str, Vec<(&'static str, String)>); 4] {
        let quoted = |text: String| toml::Value::String(text).to_string();
        let auto = |size: Option<Bytes>| quoted(size.map_or_else(|| "auto".into(), |b| b.to_string()));
        let time = |duration: Duration| quoted(show_duration(duration));
        let top = vec![
            ("tick", time(self.tick)),
            ("forget-after", time(self.forget_after)),
            ("start-timeout", time(self.start_timeout)),
        ];
        let mut host = vec![
            ("budget", auto(self.host.budget)),
            ("reserve", auto(self.host.reserve)),
            ("low", auto(self.host.low)),
            ("overhead-qemu", quoted(self.host.overhead_qemu.to_string())),
            ("overhead-uml", quoted(self.host.overhead_uml.to_string())),
        ];
        if let Some(cgroup) = &self.host.cgroup {
            host.push(("cgroup", quoted(cgroup.clone())));
        }
        let dir = match &self.journal.dir {
            JournalDir::Auto => "auto".to_owned(),
            JournalDir::Off => "none".to_owned(),
            JournalDir::At(path) => path.display().to_string(),
        };
        let journal = vec![
            ("dir", quoted(dir)),
            ("max-size", quoted(self.journal.max_size.to_string())),
            ("keep", self.journal.keep.to_string()),
        ];
        [("", top), ("host", host), ("journal", journal), ("policy", policy::entries(&self.policy))]
    }
}

type Refusal = (&'static str, String);

fn check(raw: RawConfig) -> Result<Config, Refusal> {
    let default = Config::default();
    let day = Duration::from_hours(24);
    Ok(Config {
        tick: within("tick", raw.tick, default.tick, Duration::from_millis(100), Duration::from_mins(1))?,
        forget_after: within("forget-after", raw.forget_after, default.forget_after, Duration::ZERO, day)?,
        start_timeout: within(
            "start-timeout",
            raw.start_timeout,
            default.start_timeout,
            Duration::from_secs(1),
            day,
        )?,
        host: check_host(raw.host, default.host)?,
        journal: check_journal(raw.journal, default.journal)?,
        policy: raw.policy.check()?,
    })
}

fn within(
    key: &'static str,
    raw: Option<Millis>,
    default: Duration,
    least: Duration,
    most: Duration,
) -> Result<Duration, Refusal> {
    let value = raw.map_or(default, Millis::duration);
    if value < least || value > most {
        let (least, most) = (show_duration(least), show_duration(most));
        return Err((key, format!("{} is out of range; it is {least} to {most}", show_duration(value))));
    }
    Ok(value)
}

fn check_host(raw: RawHost, default: HostConfig) -> Result<HostConfig, Refusal> {
    let size = |raw: Option<raw::AutoSize>| raw.and_then(|s| s.0);
    let host = HostConfig {
        budget: size(raw.budget),
        reserve: size(raw.reserve),
        low: size(raw.low),
        cgroup: raw.cgroup.map(|name| name.trim_matches('/').to_owned()).filter(|name| !name.is_empty()),
        overhead_qemu: raw.overhead_qemu.map_or(default.overhead_qemu, |s| s.0),
        overhead_uml: raw.overhead_uml.map_or(default.overhead_uml, |s| s.0),
    };
    if host.budget.is_some_and(|b| b < Bytes::mib(1)) {
        return Err(("host.budget", "less than 1M; no VM fits into that".into()));
    }
    if let Some(name) = &host.cgroup
        && name.split('/').any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err((
            "host.cgroup",
            format!("`{name}` is no cgroup's name; write it as below the root, \"vms/all\""),
        ));
    }
    let too_much = Bytes::gib(64);
    if host.overhead_qemu > too_much {
        return Err(("host.overhead-qemu", format!("{} is more than {too_much}", host.overhead_qemu)));
    }
    if host.overhead_uml > too_much {
        return Err(("host.overhead-uml", format!("{} is more than {too_much}", host.overhead_uml)));
    }
    Ok(host)
}

fn check_journal(raw: RawJournal, default: JournalConfig) -> Result<JournalConfig, Refusal> {
    let dir = match raw.dir.as_deref() {
        None => default.dir,
        Some("auto") => JournalDir::Auto,
        Some("none") => JournalDir::Off,
        Some(path) if path.starts_with('/') => JournalDir::At(path.into()),
        Some(other) => {
            let message = format!("`{other}` is neither \"auto\" nor \"none\" nor an absolute path");
            return Err(("journal.dir", message));
        }
    };
    let max_size = raw.max_size.map_or(default.max_size, |s| s.0);
    if max_size < Bytes::mib(1) {
        return Err(("journal.max-size", format!("{max_size} is less than 1M")));
    }
    let keep = raw.keep.unwrap_or(default.keep);
    if !(1..=1000).contains(&keep) {
        return Err(("journal.keep", format!("{keep} is out of range; it is 1 to 1000")));
    }
    Ok(JournalConfig { dir, max_size, keep })
}

#[cfg(test)]
mod test {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("p.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn what_is_printed_means_the_same() {
        assert_eq!(parse(&Config::default().to_toml()), Ok(Config::default()));
        let text = r#"
            tick = "250ms"
            forget-after = "0s"
            [host]
            budget = "1.5G"
            reserve = "64M"
            cgroup = "/vms/\"all\"/"
            [journal]
            dir = "/j"
            keep = 3
            [policy]
            distress-share = "5%"
            stuck-retry = "20s"
        "#;
        let config = parse(text).unwrap();
        assert_eq!(config.host.budget, Some(Bytes::mib(1536)));
        assert_eq!(config.host.cgroup.as_deref(), Some("vms/\"all\""));
        assert_eq!(config.policy.stuck_retry_ms, 20_000);
        assert_eq!(config.journal.dir, JournalDir::At("/j".into()));
        assert_eq!(parse(&config.to_toml()), Ok(config));
    }

    #[test]
    fn unknown_keys_are_named_with_line_and_suggestion() {
        let message = parse("tick = \"1s\"\n\n[host]\nbugdet = \"1G\"\n").unwrap_err();
        assert!(message.starts_with("p.toml:4: unknown field `bugdet`"), "{message}");
        assert!(message.contains("did you mean `budget`?"), "{message}");
        assert!(message.ends_with("bugdet = \"1G\""), "{message}");
        let message = parse("[polcy]\n").unwrap_err();
        assert!(message.contains("p.toml:1:") && message.contains("did you mean `policy`?"), "{message}");
        let message = parse("[policy]\nstuck-rety = \"5s\"").unwrap_err();
        assert!(message.contains("did you mean `stuck-retry`?"), "{message}");
    }

    #[test]
    fn values_of_the_wrong_kind_say_what_would_do() {
        for (text, part) in [
            ("tick = 1", "with its unit in quotes"),
            ("tick = \"1\"", "is no time"),
            ("tick = \"10ms\"", "100ms to 1m"),
            ("[host]\nlow = \"many\"", "does not begin with a number"),
            ("[host]\nlow = \"5Q\"", "no unit of memory"),
            ("[host]\nlow = \"-5M\"", "is negative"),
            ("[host]\nbudget = \"1000000000000000000000000000000\"", "16 EiB"),
            ("[host]\nbudget = \"0\"", "less than 1M"),
            ("[host]\ncgroup = \"a/../b\"", "no cgroup's name"),
            ("[journal]\ndir = \"relative\"", "absolute path"),
            ("[journal]\nkeep = 0", "1 to 1000"),
            ("[policy]\nheadroom-share = \"1%\"", "would cause distress"),
            ("[policy]\nidle-share = \"120%\"", "0% to 100%"),
            ("nonsense", "p.toml:1:"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Config::load(Path::new("/nowhere/p.toml")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/p.toml"), "{message}");
    }

    /// Rows of docs/config.md look like: | `host.budget` | `"auto"` | what it does |
    #[test]
    fn every_key_is_documented_with_its_default() {
        let text = include_str!("../../../../docs/config.md");
        let mut rows: BTreeMap<&str, &str> = BTreeMap::new();
        for line in text.lines().filter(|l| l.starts_with("| `")) {
            let mut cells = line.split('`').skip(1).step_by(2);
            rows.insert(cells.next().unwrap(), cells.next().unwrap());
        }
        assert_eq!(rows.remove("host.cgroup"), Some("(none)"));
        for (section, entries) in Config::default().sections() {
            for (key, value) in entries {
                let full = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
                assert_eq!(rows.remove(full.as_str()), Some(value.as_str()), "{full} in docs/config.md");
            }
        }
        assert_eq!(rows, BTreeMap::new(), "documented, and unknown to the daemon");
    }
}
