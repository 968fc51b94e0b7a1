//! Against this machine's own hierarchies; said loudly where that cannot be.

#[cfg(test)]
mod test {
    use std::{
        io::Write,
        process::{Child, Command, Stdio},
        sync::atomic::{AtomicU32, Ordering},
        time::{Duration, Instant},
    };

    use plimsoll_cgroup::{CgroupError, Hierarchies, Limit, MemCgroup, Version};
    use plimsoll_units::Bytes;
    use proptest::prelude::*;

    /// A group that goes when the test ends, however it ends, with all processes the test put into it.
    struct Scratch {
        hierarchies: Hierarchies,
        group: MemCgroup,
        children: Vec<Child>,
    }

    impl Scratch {
        /// `None`, said loudly, where groups cannot be made.
        fn new() -> Option<Self> {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("plimsoll-test-cgroup-{}-{number}", std::process::id());
            let made = Hierarchies::discover().and_then(|h| Ok((h.create(&name)?, h)));
            match made {
                Ok((group, hierarchies)) => Some(Self { hierarchies, group, children: Vec::new() }),
                Err(err) => {
                    // Not eprintln: the harness would swallow it.
                    writeln!(std::io::stderr(), "SKIPPED: a test on real cgroups: {err}").unwrap();
                    None
                }
            }
        }

        /// A process in the group that runs `script` once told to.
        fn child(&mut self, script: &str) -> u32 {
            let child = Command::new("sh")
                .args(["-c", &format!("read go; {script}")])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let pid = child.id();
            self.children.push(child);
            self.group.add(pid).unwrap();
            pid
        }

        fn go(&mut self) {
            let child = self.children.last_mut().unwrap();
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            for child in &mut self.children {
                let _ = child.kill();
                let _ = child.wait();
            }
            if let Ok(twin) = self.group.pressure_group() {
                let _ = poll(|| !matches!(twin.remove(), Err(CgroupError::Busy { .. })));
            }
            let _ = poll(|| !matches!(self.group.remove(), Err(CgroupError::Busy { .. })));
        }
    }

    fn poll(mut done: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if done() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    const fn mib(n: u64) -> Limit {
        Limit::Bytes(Bytes::mib(n))
    }

    #[test]
    fn limits_can_be_set_in_any_order() {
        let Some(scratch) = Scratch::new() else { return };
        let group = &scratch.group;
        assert_eq!((group.limit().unwrap(), group.effective_limit().is_ok()), (Limit::Max, true));
        let has_swap = CgroupError::optional(group.swap_limit()).unwrap().is_some();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
        let size = prop_oneof![(1u64..1024).prop_map(mib), Just(Limit::Max)];
        let swap = prop_oneof![(0u64..1024).prop_map(mib), Just(Limit::Max)];
        let outcome = runner.run(&(size, swap), |(limit, swap)| {
            group.set_limit(limit).unwrap();
            prop_assert_eq!(group.limit().unwrap(), limit);
            if has_swap && limit != Limit::Max {
                group.set_swap_limit(swap).unwrap();
                prop_assert_eq!(group.swap_limit().unwrap(), swap);
                prop_assert_eq!(group.limit().unwrap(), limit, "the swap limit leaves it alone");
            }
            prop_assert!(group.effective_limit().unwrap() <= limit);
            Ok(())
        });
        outcome.unwrap();
    }

    #[test]
    fn a_limit_keeps_the_swap_it_leaves_beside() {
        let Some(scratch) = Scratch::new() else { return };
        let group = &scratch.group;
        group.set_limit(mib(64)).unwrap();
        if CgroupError::optional(group.swap_limit()).unwrap().is_none() {
            writeln!(std::io::stderr(), "SKIPPED: this kernel does not account for swap per group").unwrap();
            return;
        }
        group.set_swap_limit(mib(32)).unwrap();
        for limit in [256, 16, 300] {
            group.set_limit(mib(limit)).unwrap();
            assert_eq!((group.limit().unwrap(), group.swap_limit().unwrap()), (mib(limit), mib(32)));
        }
    }

    #[test]
    fn a_process_is_found_where_it_was_put() {
        let Some(mut scratch) = Scratch::new() else { return };
        let pid = scratch.child("true");
        assert_eq!(scratch.group.procs().unwrap(), [pid]);
        assert_eq!(scratch.hierarchies.of_process(pid).unwrap(), scratch.group.path());
        assert_eq!(scratch.hierarchies.open(scratch.group.path()).unwrap().procs().unwrap(), [pid]);
        assert!(matches!(scratch.group.remove().unwrap_err(), CgroupError::Busy { .. }));
        assert!(matches!(scratch.group.add(u32::MAX >> 1).unwrap_err(), CgroupError::Write { .. }));
        let gone = scratch.hierarchies.of_process(u32::MAX >> 1).unwrap_err();
        assert!(matches!(gone, CgroupError::NoProcess { .. }), "{gone}");
    }

    #[test]
    fn what_a_process_uses_is_counted_and_limited() {
        let Some(mut scratch) = Scratch::new() else { return };
        scratch.group.set_limit(mib(24)).unwrap();
        match scratch.group.set_swap_limit(mib(0)) {
            Ok(()) | Err(CgroupError::Unsupported { .. }) => {}
            Err(err) => panic!("{err}"),
        }
        assert_eq!(scratch.group.events().unwrap().oom_kill, Some(0));
        // One block: all of it has to be in memory at once.
        scratch.child("exec dd if=/dev/zero of=/dev/null bs=512M count=1");
        scratch.go();
        let killed = poll(|| scratch.group.events().unwrap().oom_kill == Some(1));
        assert!(killed, "{:?} {:?}", scratch.group.events(), scratch.group.stat());
        let stat = scratch.group.stat().unwrap();
        let pages_of_8_mib = 2048;
        assert!(stat.faults.unwrap() > pages_of_8_mib, "{stat:?}");
        assert!(scratch.group.usage().unwrap() <= Bytes::mib(24));
        assert!(scratch.group.swap_usage().unwrap_or_default() <= Bytes::mib(1));
    }

    #[test]
    fn reaching_the_limit_is_counted() {
        let Some(mut scratch) = Scratch::new() else { return };
        scratch.group.set_limit(mib(24)).unwrap();
        scratch.child("exec dd if=/dev/zero of=/dev/null bs=64M count=1");
        scratch.go();
        assert!(poll(|| scratch.group.events().unwrap().max.unwrap() > 0), "{:?}", scratch.group.events());
    }

    #[test]
    fn the_twin_tells_pressure() {
        let Some(mut scratch) = Scratch::new() else { return };
        let twin = match scratch.group.pressure_group() {
            Ok(twin) => twin,
            Err(err) => {
                writeln!(std::io::stderr(), "SKIPPED: pressure of a group: {err}").unwrap();
                return;
            }
        };
        assert_eq!(scratch.group.pressure_path(), Some(twin.file()));
        let text = std::fs::read_to_string(twin.file()).unwrap();
        assert!(text.starts_with("some avg10="), "{text}");
        let pid = scratch.child("true");
        twin.add(pid).unwrap();
        assert_eq!(scratch.group.procs().unwrap(), [pid], "still in the memory group");
        let expected = format!("0::{}", scratch.group.path());
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups.lines().any(|line| line == expected), "{groups}");
    }

    #[test]
    fn a_removed_group_is_gone_and_files_of_the_other_version_are_named() {
        let Some(scratch) = Scratch::new() else { return };
        let group = scratch.group.clone();
        if scratch.hierarchies.version() == Version::V1 {
            let error = group.set_min(mib(1)).unwrap_err();
            assert!(matches!(error, CgroupError::Unsupported { file: "memory.min", .. }), "{error}");
            let error = group.reclaim(Bytes::mib(1)).unwrap_err();
            assert!(matches!(error, CgroupError::Unsupported { file: "memory.reclaim", .. }), "{error}");
            let error = group.set_swap_limit(mib(1)).unwrap_err();
            assert!(matches!(error, CgroupError::Unsupported { .. }), "{error}");
        }
        let nested = scratch.hierarchies.create(&format!("{}/a/b", group.path())).unwrap();
        nested.remove().unwrap();
        scratch.hierarchies.open(&format!("{}/a", group.path())).unwrap().remove().unwrap();
        drop(scratch);
        assert!(matches!(group.usage().unwrap_err(), CgroupError::NoGroup { .. }));
        assert!(matches!(group.remove().unwrap_err(), CgroupError::NoGroup { .. }));
        let missing = Hierarchies::discover().unwrap().open(group.path()).unwrap_err();
        assert!(matches!(missing, CgroupError::NoGroup { .. }), "{missing}");
    }
}
