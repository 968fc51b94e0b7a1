//! What `run` and `adopt` say of self-ballooning.

use std::collections::BTreeMap;

use clap::Args as Group;
use plimsoll_model::Tunables;

use crate::{WrongUse, suggest};

/// The start switches of self-ballooning; `plimsoll set` changes the same settings later.
#[derive(Clone, Debug, Default, Group)]
pub(crate) struct TuningArgs {
    /// Let the VM propose a target of its own, from what its programs were promised; plimsoll-agent must run in its guest
    #[arg(long, conflicts_with = "noselfballooning")]
    pub(crate) selfballooning: bool,
    /// Do not let it; that is the default while a VM has no swap store
    #[arg(long)]
    pub(crate) noselfballooning: bool,
    /// Do not bring pages back from the VM's swap store by themselves; that is the default
    #[arg(long)]
    pub(crate) noselfshrink: bool,
    /// Any setting of self-ballooning, as `plimsoll set` takes it; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) tune: Vec<String>,
}

impl TuningArgs {
    /// All of it as the API takes it; every mistake is named before anything is sent.
    pub(crate) fn settings(&self) -> Result<BTreeMap<String, String>, WrongUse> {
        let mut settings = BTreeMap::new();
        let switches = [
            (self.selfballooning, "selfballooning", "on"),
            (self.noselfballooning, "selfballooning", "off"),
            (self.noselfshrink, "frontswap_selfshrinking", "off"),
        ];
        for (_, key, value) in switches.iter().filter(|(given, ..)| *given) {
            add_setting(&mut settings, key, value)?;
        }
        for setting in &self.tune {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(WrongUse(format!(
                    "--tune {setting} sets nothing: write KEY=VALUE, for example selfballoon_interval=5"
                )));
            };
            if !Tunables::NAMES.contains(&key) {
                return Err(WrongUse(unknown(key)));
            }
            add_setting(&mut settings, key, value)?;
        }
        Ok(settings)
    }
}

/// Adds one of [`Tunables::NAMES`], checked here too, so that nothing is sent that cannot be.
///
/// # Errors
/// For a value that cannot be, and for a setting that is there already.
pub(crate) fn add_setting(
    settings: &mut BTreeMap<String, String>,
    key: &str,
    value: &str,
) -> Result<(), WrongUse> {
    Tunables::default().set(key, value).map_err(|e| WrongUse(format!("cannot set {key}: {e}")))?;
    match settings.insert(key.to_owned(), value.to_owned()) {
        None => Ok(()),
        Some(_) => Err(WrongUse(format!("{key} is set twice"))),
    }
}

fn unknown(key: &str) -> String {
    match suggest::did_you_mean(key, Tunables::NAMES) {
        Some(hint) => format!("--tune {key}: there is no such setting; {hint}"),
        None => format!("--tune {key}: there is no such setting; there are {}", Tunables::NAMES.join(", ")),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn settings(change: impl FnOnce(&mut TuningArgs)) -> Result<String, String> {
        let mut args = TuningArgs::default();
        change(&mut args);
        let words = |(key, value)| format!("{key}={value}");
        let settings = args.settings().map_err(|e| e.to_string())?;
        Ok(settings.into_iter().map(words).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn switches_and_settings_become_what_the_api_takes() {
        assert_eq!(settings(|_| {}).unwrap(), "");
        let all = settings(|args| {
            args.selfballooning = true;
            args.noselfshrink = true;
            args.tune = vec!["selfballoon_interval=2".into(), "reserved_mb=auto".into()];
        });
        let wanted = "frontswap_selfshrinking=off reserved_mb=auto selfballoon_interval=2 selfballooning=on";
        assert_eq!(all.unwrap(), wanted);
        assert_eq!(settings(|args| args.noselfballooning = true).unwrap(), "selfballooning=off");
    }

    #[test]
    fn what_contradicts_itself_or_means_nothing_is_refused() {
        for (switch, tune, says) in [
            (true, "selfballooning=off", "selfballooning is set twice"),
            (true, "selfballooning=on", "selfballooning is set twice"),
            (false, "selfballoon_interval=0", "at least 1"),
            (false, "selfballooning=maybe", "`on` or `off`"),
            (false, "selfballoon_intervall=5", "did you mean selfballoon_interval?"),
            (false, "zzz=5", "there are selfballooning, "),
            (false, "memory=5M", "no such setting"),
            (false, "selfballooning", "KEY=VALUE"),
            (false, "", "KEY=VALUE"),
        ] {
            let error = settings(|args| {
                args.selfballooning = switch;
                args.tune = vec![tune.into()];
            })
            .unwrap_err();
            assert!(error.contains(says), "{tune}: {error}");
        }
    }
}
