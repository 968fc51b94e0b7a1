//! Against this kernel; said loudly where it cannot be.

#[cfg(test)]
mod test {
    use std::{
        io::Write,
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        sync::{
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        time::{Duration, Instant},
    };

    use plimsoll_cgroup::{CgroupError, Hierarchies, Limit, MemCgroup, PressureGroup};
    use plimsoll_psi::{HOST_MEMORY, Kind, PsiError, Threshold, Trigger, Wakeup, Watch, read};
    use plimsoll_units::Bytes;
    use tokio::io::{Interest, unix::AsyncFd};

    const WITHIN: Duration = Duration::from_secs(10);
    const STALL: Duration = Duration::from_millis(50);

    fn host() -> &'static Path {
        Path::new(HOST_MEMORY)
    }

    /// May be had by everybody.
    fn threshold() -> Threshold {
        Threshold::new(Kind::Some, STALL, Duration::from_secs(2)).unwrap()
    }

    fn skipped(why: &dyn std::fmt::Display) {
        // Not eprintln: the harness would swallow it.
        writeln!(std::io::stderr(), "SKIPPED: a test of pressure: {why}").unwrap();
    }

    /// A group too small for what its process does. Goes when the test ends, however it ends.
    struct Crowded {
        group: MemCgroup,
        twin: PressureGroup,
        dir: tempfile::TempDir,
        child: Option<Child>,
    }

    impl Crowded {
        fn new() -> Option<Self> {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("plimsoll-test-psi-{}-{number}", std::process::id());
            match Self::make(&name) {
                Ok(made) => Some(made),
                Err(err) => {
                    skipped(&err);
                    None
                }
            }
        }

        fn make(name: &str) -> Result<Self, CgroupError> {
            let group = Hierarchies::discover()?.create(name)?;
            let twin = group.pressure_group().inspect_err(|_| drop(group.remove()))?;
            // On a disk: what is written to a tmpfs is not reclaimed by writing it back.
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let crowded = Self { group, twin, dir, child: None };
            crowded.group.set_limit(Limit::Bytes(Bytes::mib(8)))?;
            Ok(crowded)
        }

        fn pressure(&self) -> PathBuf {
            self.twin.file()
        }

        /// Writes a file of more than the group may hold, over and over.
        fn stall(&mut self) {
            let file = self.dir.path().join("file");
            let child = Command::new("sh")
                .args([
                    "-c",
                    "read go; while :; do dd if=/dev/zero of=\"$0\" bs=1M count=64 conv=notrunc; done",
                ])
                .arg(file)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let pid = child.id();
            let child = self.child.insert(child);
            self.group.add(pid).unwrap();
            self.twin.add(pid).unwrap();
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }

        /// Whether tasks have waited so little since `before` that no trigger can be blamed for its silence.
        fn was_calm(&self, path: &Path, before: u64) -> bool {
            let stalled_us = read(path).unwrap().some.total_us - before;
            let calm = Duration::from_micros(stalled_us) < 4 * STALL;
            if calm {
                skipped(&format!(
                    "this machine's disk is too fast: only {stalled_us} us of stall in {WITHIN:?}"
                ));
            }
            calm
        }
    }

    impl Drop for Crowded {
        fn drop(&mut self) {
            if let Some(child) = &mut self.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            // dd, whose shell is gone, ends with its count; it cannot be waited for, the groups can.
            let deadline = Instant::now() + WITHIN;
            let gone = |result| !matches!(result, Err(CgroupError::Busy { .. }));
            while Instant::now() < deadline && !(gone(self.twin.remove()) && gone(self.group.remove())) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    #[test]
    fn a_calm_host_does_not_wake() {
        let trigger = match Trigger::new(
            host(),
            Threshold::new(Kind::Full, Duration::from_secs(2), Duration::from_secs(2)).unwrap(),
        ) {
            Err(err @ (PsiError::Absent { .. } | PsiError::Refused { .. })) => return skipped(&err),
            trigger => trigger.unwrap(),
        };
        let begun = Instant::now();
        let within = Duration::from_millis(100);
        assert_eq!(trigger.wait(within).unwrap(), Wakeup::TimedOut);
        assert!(begun.elapsed() >= within && begun.elapsed() < WITHIN);
        assert_eq!(trigger.check().unwrap(), Wakeup::TimedOut);
    }

    #[test]
    fn a_window_of_one_second_is_granted_or_explained() {
        let short = Threshold::new(Kind::Some, STALL, Duration::from_secs(1)).unwrap();
        match Trigger::new(host(), short) {
            Ok(_) => {}
            Err(PsiError::Absent { .. }) => skipped(&"no PSI"),
            Err(error @ PsiError::Refused { .. }) => {
                assert!(error.to_string().contains("multiple of 2 s"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn files_that_are_no_pressure_files() {
        assert!(matches!(read(Path::new("/nonexistent")).unwrap_err(), PsiError::Absent { .. }));
        assert!(matches!(read(Path::new("/proc/version")).unwrap_err(), PsiError::Parse { .. }));
        let error = Trigger::new(Path::new("/proc/version"), threshold()).unwrap_err();
        assert!(matches!(error, PsiError::Refused { .. }), "{error}");
    }

    #[test]
    fn stalls_are_counted_and_wake_the_host_and_the_group() {
        let Some(mut crowded) = Crowded::new() else { return };
        let before = read(host()).unwrap().some.total_us;
        let group = Trigger::new(&crowded.pressure(), threshold()).unwrap();
        let host_trigger = Trigger::new(host(), threshold()).unwrap();
        crowded.stall();
        let woken = group.wait(WITHIN).unwrap();
        if woken == Wakeup::TimedOut && crowded.was_calm(&crowded.pressure(), 0) {
            return;
        }
        assert_eq!(woken, Wakeup::Pressure);
        assert_eq!(host_trigger.wait(WITHIN).unwrap(), Wakeup::Pressure);
        let stalled = Duration::from_micros(read(host()).unwrap().some.total_us - before);
        assert!(stalled >= STALL, "{stalled:?}");
        assert!(Duration::from_micros(read(&crowded.pressure()).unwrap().some.total_us) >= STALL);
    }

    #[test]
    fn an_event_loop_is_woken() {
        let Some(mut crowded) = Crowded::new() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let trigger = Trigger::new(&crowded.pressure(), threshold()).unwrap();
            let interest = Interest::PRIORITY | Interest::ERROR;
            #[expect(deprecated, reason = "the constructor that took its place is unsafe")]
            let trigger = AsyncFd::with_interest(trigger, interest).unwrap();
            crowded.stall();
            // Twice: the second time shows that the first did not just find it ready from the beginning.
            for _ in 0..2 {
                match tokio::time::timeout(WITHIN, trigger.ready(interest)).await {
                    Ok(guard) => guard.unwrap().clear_ready(),
                    Err(_) if crowded.was_calm(&crowded.pressure(), 0) => return,
                    Err(elapsed) => panic!("{elapsed}"),
                }
                trigger.get_ref().check().unwrap();
            }
        });
    }

    #[test]
    fn a_watch_calls_back_until_it_is_dropped_or_the_group_gone() {
        let Some(mut crowded) = Crowded::new() else { return };
        let (tell, told) = mpsc::channel();
        let watch = |tell: mpsc::Sender<_>| {
            let trigger = Trigger::new(&crowded.pressure(), threshold()).unwrap();
            Watch::start(trigger, move |result| drop(tell.send(result))).unwrap()
        };
        let (unheard, closed) = mpsc::channel();
        drop(watch(unheard));
        assert!(matches!(closed.recv_timeout(WITHIN), Err(mpsc::RecvTimeoutError::Disconnected)));

        let _watch = watch(tell);
        crowded.stall();
        match told.recv_timeout(WITHIN) {
            Err(_) if crowded.was_calm(&crowded.pressure(), 0) => {}
            first => first.unwrap().unwrap(),
        }
        drop(crowded);
        let last = std::iter::from_fn(|| told.recv_timeout(WITHIN).ok()).last();
        assert!(matches!(last, Some(Err(PsiError::Gone { .. }))), "{last:?}");
    }

    #[test]
    fn a_removed_group_ends_the_wait() {
        let Some(crowded) = Crowded::new() else { return };
        let trigger = Trigger::new(&crowded.pressure(), threshold()).unwrap();
        let waiting = std::thread::spawn(move || (trigger.wait(WITHIN), trigger.check()));
        crowded.twin.remove().unwrap();
        let (waited, after) = waiting.join().unwrap();
        assert!(matches!(waited.unwrap_err(), PsiError::Gone { .. }));
        assert!(matches!(after.unwrap_err(), PsiError::Gone { .. }));
    }
}
