//! QMP sockets that are none.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use plimsoll_e2e::{Bed, CALM};

use crate::refused;

/// The longest that a socket which never answers may keep an operator waiting.
const DEADLINE: Duration = Duration::from_secs(10);
/// Much less than that: an answer while another VM's socket is silent.
const PROMPT: Duration = Duration::from_secs(2);

/// What listens at a socket and does the same to everybody who comes, until the test's process ends.
fn listener(bed: &Bed, name: &str, treat: impl Fn(UnixStream) + Send + 'static) -> String {
    let path = bed.scratch().join(name);
    let listener = UnixListener::bind(&path).expect("binds");
    std::thread::spawn(move || listener.incoming().flatten().for_each(treat));
    path.display().to_string()
}

fn path(bed: &Bed, name: &str) -> (PathBuf, String) {
    let path = bed.scratch().join(name);
    (path.clone(), path.display().to_string())
}

/// Reads until the other side is tired of it.
fn listen_on(mut stream: UnixStream) {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).is_ok_and(|n| n > 0) {}
}

#[track_caller]
fn adopt_refused(bed: &Bed, qmp: &str, words: &[&str]) -> Duration {
    let begin = Instant::now();
    let words: Vec<_> = words.iter().copied().chain(["db", qmp]).collect();
    refused(bed, &["adopt", "--name", "db", "--qmp", qmp], 1, &words);
    begin.elapsed()
}

#[test]
fn nobody_is_adopted_who_is_not_there() {
    let Some(bed) = Bed::new("nobody_is_adopted_who_is_not_there", CALM) else { return };
    adopt_refused(&bed, "/no/such/socket", &["no socket at"]);
    let (dead, dead_text) = path(&bed, "dead");
    drop(UnixListener::bind(dead).expect("binds"));
    adopt_refused(&bed, &dead_text, &["nobody listens at"]);
    let (file, file_text) = path(&bed, "file");
    std::fs::write(file, "{\"QMP\": {}}").expect("writes");
    adopt_refused(&bed, &file_text, &[]);
    let closing = listener(&bed, "closing", drop);
    adopt_refused(&bed, &closing, &["closed"]);
}

#[test]
fn who_does_not_speak_qmp_is_not_adopted() {
    let Some(bed) = Bed::new("who_does_not_speak_qmp_is_not_adopted", CALM) else { return };
    let says = |name: &str, words: &'static [u8]| {
        listener(&bed, name, move |mut stream| {
            if stream.write_all(words).is_ok() {
                listen_on(stream);
            }
        })
    };
    adopt_refused(&bed, &says("ssh", b"SSH-2.0-OpenSSH_9.2\r\n"), &["QMP"]);
    adopt_refused(&bed, &says("json", b"{\"hello\": \"world\"}\n"), &["QMP"]);
    adopt_refused(&bed, &says("array", b"[]\n"), &["QMP"]);
    adopt_refused(&bed, &says("binary", b"\x00\xff\xfe\n\x00"), &["QMP"]);
    let refuses = b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}, \"package\": \"\"}, \
        \"capabilities\": []}}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"not today\"}, \"id\": 0}\n";
    adopt_refused(&bed, &says("refuses", refuses), &[]);
    let own = bed.run_dir().join("api.sock").display().to_string();
    adopt_refused(&bed, &own, &[]);
}

#[test]
fn who_never_answers_keeps_nobody_waiting() {
    let Some(bed) = Bed::new("who_never_answers_keeps_nobody_waiting", CALM) else { return };
    let silent = listener(&bed, "silent", listen_on);
    let took = adopt_refused(&bed, &silent, &["did not greet within"]);
    assert!(took < DEADLINE, "{took:?}");
    // While one waits, others are served.
    let typed = || bed.command(&["adopt", "--name", "db", "--qmp", &silent]);
    let mut waiting = typed().stderr(std::process::Stdio::null()).spawn().expect("runs");
    let begin = Instant::now();
    assert_eq!(bed.list().vms, []);
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    assert!(!waiting.wait().expect("ends").success());
}

#[test]
fn who_never_ends_a_line_fills_nobodys_memory() {
    let Some(bed) = Bed::new("who_never_ends_a_line_fills_nobodys_memory", CALM) else { return };
    let endless = listener(&bed, "endless", |mut stream| while stream.write_all(&[b' '; 65536]).is_ok() {});
    let took = adopt_refused(&bed, &endless, &[]);
    assert!(took < DEADLINE, "{took:?}");
    let status = format!("/proc/{}/status", bed.daemon_pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|kib| kib.parse().ok()).expect("a peak");
    assert!(peak < 64 << 10, "the daemon came to {peak} KiB");
}
