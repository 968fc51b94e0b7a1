//! `set NAME KEY=VALUE...`.

use std::process::ExitCode;

use anyhow::Context as _;
use hyper::Method;
use plimsoll_api::http::Patch;
use plimsoll_model::{OnExhausted, Tunables};
use plimsoll_units::Bytes;

use super::Context;
use crate::args::{SetArgs, add_setting};
use crate::{WrongUse, output, render, suggest};

pub(super) async fn run(context: &Context, args: &SetArgs) -> anyhow::Result<ExitCode> {
    let patch = patch(&args.changes)?;
    let vm = context
        .vm_ask(Method::PATCH, &args.name, "", Some(&patch))
        .await
        .with_context(|| format!("cannot set {} of {}", args.changes.join(" "), args.name))?;
    output::answer(&render::vms::one_line(&vm))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the changes; every mistake is named before anything is sent.
fn patch(changes: &[String]) -> Result<Patch, WrongUse> {
    let mut patch = Patch::default();
    for change in changes {
        let Some((key, value)) = change.split_once('=') else {
            return Err(WrongUse(format!(
                "`{change}` sets nothing: write KEY=VALUE, for example memory=512M"
            )));
        };
        let twice = match key {
            "memory" => {
                let memory: Bytes = value.parse().map_err(|e| WrongUse(format!("cannot set memory: {e}")))?;
                patch.memory.replace(memory).is_some()
            }
            "weight" => patch.weight.replace(weight(value)?).is_some(),
            "on-exhausted" => patch.on_exhausted.replace(on_exhausted(value)?).is_some(),
            _ if Tunables::NAMES.contains(&key) => {
                add_setting(&mut patch.tunables, key, value)?;
                false
            }
            _ => return Err(WrongUse(unknown(key))),
        };
        if twice {
            return Err(WrongUse(format!("{key} is set twice")));
        }
    }
    Ok(patch)
}

fn on_exhausted(text: &str) -> Result<OnExhausted, WrongUse> {
    let found = OnExhausted::ALL.into_iter().find(|one| one.to_string() == text);
    found.ok_or_else(|| WrongUse(format!("cannot set on-exhausted: `{text}` is not grow, wait or stop")))
}

fn weight(text: &str) -> Result<u32, WrongUse> {
    text.parse::<u32>()
        .ok()
        .filter(|weight| (1..=10_000).contains(weight))
        .ok_or_else(|| WrongUse(format!("cannot set weight: `{text}` is not a number from 1 to 10000")))
}

fn unknown(key: &str) -> String {
    match key {
        "floor" | "maxmem" => {
            format!("cannot set {key}: it is fixed when a VM is made; memory and weight can be set")
        }
        "target" | "hold" => {
            format!(
                "cannot set {key}: `plimsoll hold NAME SIZE` pins a VM's target; memory= moves its baseline"
            )
        }
        _ => match suggest::did_you_mean(
            key,
            ["memory", "weight", "on-exhausted"].into_iter().chain(Tunables::NAMES),
        ) {
            Some(hint) => format!("cannot set {key}: there is no such key; {hint}"),
            None => format!(
                "cannot set {key}: there is no such key; memory and weight can be set, and {}",
                Tunables::NAMES.join(", ")
            ),
        },
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(changes: &[&str]) -> Result<Patch, String> {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        patch(&changes).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_are_read_and_mistakes_named() {
        let both = read(&["memory=1.5G", "weight=200"]).unwrap();
        assert_eq!((both.memory, both.weight), (Some(Bytes::mib(1536)), Some(200)));
        let wrong = |changes: &[&str], says: &str| {
            let error = read(changes).unwrap_err();
            assert!(error.contains(says), "{changes:?}: {error}");
        };
        wrong(&["memroy=1G"], "did you mean memory?");
        wrong(&["floor=1G"], "fixed when a VM is made");
        wrong(&["target=1G"], "plimsoll hold");
        wrong(&["zzz=1"], "memory and weight can be set");
        wrong(&["memory"], "KEY=VALUE");
        wrong(&["memory=-1"], "negative");
        wrong(&["memory=1000000000000000000000000000000"], "16 EiB");
        wrong(&["weight=0"], "1 to 10000");
        assert_eq!(read(&["on-exhausted=wait"]).unwrap().on_exhausted, Some(OnExhausted::Wait));
        wrong(&["on-exhausted=never"], "grow, wait or stop");
        wrong(&["on-exhausted=wait", "on-exhausted=grow"], "twice");
        wrong(&["on-exhausd=wait"], "did you mean on-exhausted?");
        wrong(&["memory=1G", "memory=2G"], "twice");
        wrong(&["selfbalooning=on"], "did you mean selfballooning?");
        wrong(&["selfballoon_interval=0"], "at least 1");
        wrong(&["selfballooning=maybe"], "`on` or `off`");
        wrong(&["selfballoon_interval=5", "selfballoon_interval=6"], "twice");
        let tuned = read(&["selfballooning=on", "selfballoon_interval=5"]).unwrap();
        assert_eq!(tuned.tunables.len(), 2);
    }
}
