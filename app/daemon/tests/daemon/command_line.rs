//! The program without a daemon's life.

use std::{fs, process::Command};

fn plimsolld(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_plimsolld")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_printed_configuration_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    let (ok, printed, _) = plimsolld(&["--print-config"]);
    assert!(ok && printed.contains("budget = \"auto\""), "{printed}");
    fs::write(&path, &printed).unwrap();
    let path = path.to_str().unwrap();
    let (ok, said, _) = plimsolld(&["--check-config", path]);
    assert!(ok && said.contains("is fine"), "{said}");
    let (ok, again, _) = plimsolld(&["--print-config", "--config", path]);
    assert!(ok && again == printed, "{again}");
}

#[test]
fn a_wrong_key_is_named_with_its_line_and_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, "tick = \"1s\"\n[host]\nbudgte = \"1G\"\n").unwrap();
    for args in [
        vec!["--check-config", path.to_str().unwrap()],
        vec!["--run-dir", "/nowhere", "--config", path.to_str().unwrap()],
    ] {
        let (ok, _, said) = plimsolld(&args);
        assert!(!ok && said.contains("p.toml:3") && said.contains("did you mean `budget`?"), "{said}");
    }
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, "[host]\ncgroup = \"no/such/group\"\n").unwrap();
    let run = dir.path().join("run");
    let (ok, _, said) = plimsolld(&["--config", path.to_str().unwrap(), "--run-dir", run.to_str().unwrap()]);
    assert!(!ok && said.contains("no/such/group"), "{said}");
    assert!(!run.join("api.sock").exists());
    let (ok, _, said) = plimsolld(&["--log", "a=b=c"]);
    assert!(!ok && said.contains("no log level"), "{said}");
}
