//! The program as an observer sees it: lines in, marked lines out. Runs on the host, without a guest.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longer than any answer takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Serve {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Serve {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll-workload"))
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let serve = Self { child, input, lines };
        assert!(serve.line().starts_with("@plimsoll - ready ms="));
        serve
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("listens");
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("answers in time")
    }

    fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.line()
    }

    /// The process that holds the memory.
    fn worker(&self) -> rustix::process::Pid {
        let serve = self.child.id();
        let path = format!("/proc/{serve}/task/{serve}/children");
        // The worker is started by the runner's thread; /proc lists children by thread.
        let of_thread =
            |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("children")).ok();
        let tasks =
            std::fs::read_dir(format!("/proc/{serve}/task")).unwrap_or_else(|e| panic!("{path}: {e}"));
        let children = tasks.flatten().filter_map(of_thread).collect::<String>();
        let pid = children.split_whitespace().next().expect("a worker").parse().expect("a number");
        rustix::process::Pid::from_raw(pid).expect("not 0")
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn memory_is_filled_checked_and_freed() {
    let mut serve = Serve::start();
    assert!(serve.ask("1 ping").starts_with("@plimsoll 1 ok pong ms="));
    assert_eq!(serve.ask("2 fill 8M 3"), "@plimsoll 2 ok pages=2048 stopped=false held=8388608");
    assert_eq!(
        serve.ask("3 verify"),
        "@plimsoll 3 ok pages=2048 bad_pages=0 bad_bytes=0 stopped=false held=8388608"
    );
    assert_eq!(serve.ask("4 free 2M"), "@plimsoll 4 ok freed=2097152 held=6291456");
    assert_eq!(serve.ask("5 free"), "@plimsoll 5 ok freed=6291456 held=0");
    assert!(serve.ask("6 churn 0.2 4M").contains(" bad_pages=0 "));
    assert!(serve.ask("7 meminfo").starts_with("@plimsoll 7 ok total="));
    assert!(serve.ask("8 balloon").contains(" oom_kill="));
}

#[test]
fn nonsense_is_answered_and_repeats_are_not_carried_out() {
    let mut serve = Serve::start();
    assert_eq!(serve.ask("1 fly"), "@plimsoll 1 error reason=\"`fly` is no command\"");
    assert_eq!(serve.ask("2 fill 4M"), "@plimsoll 2 ok pages=1024 stopped=false held=4194304");
    assert_eq!(serve.ask("2 fill 4M"), "@plimsoll 2 ok pages=1024 stopped=false held=4194304");
    assert_eq!(serve.ask("3 free"), "@plimsoll 3 ok freed=4194304 held=0");
    // No identifier, or one that could forge another line: no answer at all.
    serve.say("ping");
    serve.say("@plimsoll\t1 ping");
    let expected = "@plimsoll 4 error reason=\"only the first process of a guest does that\"";
    assert_eq!(serve.ask("4 poweroff"), expected);
    assert_eq!(serve.ask("5 sh true"), expected.replace("@plimsoll 4", "@plimsoll 5"));
}

#[test]
fn short_questions_are_answered_while_a_long_command_runs_and_stop_ends_it() {
    let mut serve = Serve::start();
    serve.say("long hold 600");
    assert!(serve.ask("p ping").starts_with("@plimsoll p ok pong"));
    assert_eq!(serve.ask("long hold 600"), "@plimsoll long note busy");
    assert!(serve.ask("s stats").starts_with("@plimsoll s ok seconds="));
    // The worker may not have begun: ask until the command is over, which it would not be for 10 minutes.
    let mut answers = Vec::new();
    for n in 0..100 {
        serve.say(&format!("stop{n} stop"));
        answers.push(serve.line());
        match serve.lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => answers.push(line),
            Err(_) => continue,
        }
        break;
    }
    assert!(answers.iter().any(|line| line == "@plimsoll long ok stopped=true held=0"), "{answers:?}");
}

#[test]
fn a_killed_worker_is_reported_and_replaced() {
    let mut serve = Serve::start();
    assert!(serve.ask("1 fill 1M").contains(" held=1048576"));
    serve.say("2 hold 600");
    rustix::process::kill_process(serve.worker(), rustix::process::Signal::KILL).expect("ours");
    let expected = "@plimsoll 2 error reason=\"the worker died with what it held\" killed=9 held=0";
    assert_eq!(serve.line(), expected);
    assert!(serve.ask("3 fill 1M").contains(" held=1048576"));
}

#[test]
fn a_script_announces_its_steps() {
    let mut serve = Serve::start();
    let first = serve.ask("s script fill:1M,hold:0.01;verify");
    assert!(first.starts_with("@plimsoll s note begin ms="), "{first}");
    assert!(first.ends_with(" step=1 \"fill 1048576 1\""), "{first}");
    let rest: Vec<_> = (0..6).map(|_| serve.line()).collect();
    assert!(
        rest[0].contains("note end ms=") && rest[0].contains("\"fill 1048576 1\" ok pages=256"),
        "{rest:?}"
    );
    assert!(rest[4].contains("\"verify\" ok pages=256 bad_pages=0"), "{rest:?}");
    assert_eq!(rest[5], "@plimsoll s ok steps=3 failed=0");
}
