//! Configurations that cannot be used: `config check` and the daemon say the same of them.

use std::fs;

use plimsoll_e2e::{Bed, CALM, Said};

use crate::{World, refused};

#[test]
fn a_configuration_that_cannot_be_used_is_told_with_its_line() {
    let Some(bed) = Bed::new("a_configuration_that_cannot_be_used_is_told_with_its_line", CALM) else {
        return;
    };
    let file = bed.scratch().join("bad.toml");
    let path = file.display().to_string();
    for (text, words) in [
        ("tick = \"1s\"\ntikc = \"2s\"\n", &[":2", "tikc", "did you mean `tick`?"][..]),
        ("[host]\nbugdet = \"1G\"\n", &[":2", "bugdet", "did you mean `budget`?"]),
        ("[hots]\n", &[":1", "hots", "did you mean `host`?"]),
        ("\n\n[host]\nbudget = \"much\"\n", &[":4", "`much` does not begin with a number"]),
        ("[host]\nbudget = \"-1G\"\n", &[":2", "-1G", "negative"]),
        ("[host]\nbudget = 5\n", &[":2", "5"]),
        ("tick = \"0s\"\n", &["tick", "100ms"]),
        ("tick = \"1s\"\ntick = \"1s\"\n", &[":2", "tick"]),
        ("[policy]\nidle-share = \"150%\"\n", &[":2", "150%"]),
        ("this is no TOML", &[":1"]),
    ] {
        fs::write(&file, text).expect("writes");
        let words: Vec<_> = words.iter().copied().chain([path.as_str()]).collect();
        refused(&bed, &["config", "check", &path], 1, &words);
        daemon_refuses(&bed, &path, &words);
    }
    refused(&bed, &["config", "check", "/no/such/file"], 1, &["/no/such/file", "No such file"]);
    daemon_refuses(&bed, "/no/such/file", &["/no/such/file", "No such file"]);
}

/// A daemon in a run folder of its own ends with the same words, and makes none.
#[track_caller]
fn daemon_refuses(bed: &Bed, config: &str, words: &[&str]) {
    let before = World::of(bed);
    let run_dir = bed.scratch().join("other");
    Said::by(&mut bed.command_in(&run_dir, &["daemon", "--config", config])).refused(1, words);
    assert!(!run_dir.exists());
    assert_eq!(World::of(bed), before);
}
