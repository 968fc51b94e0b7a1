//! Both versions, on trees of plain files as kernels show them: what this machine is not can be tested too.

#[cfg(test)]
mod test {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use plimsoll_cgroup::{CgroupError, Hierarchies, Limit, MemEvents, Version};
    use plimsoll_units::Bytes;
    use proptest::{prelude::*, test_runner::TestRunner};

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new(mountinfo: &str) -> Self {
            let host = Self { dir: tempfile::tempdir().unwrap() };
            host.put("proc/self/mountinfo", mountinfo);
            host
        }

        fn put(&self, file: &str, text: &str) {
            let path = self.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn get(&self, file: &str) -> String {
            fs::read_to_string(self.path(file)).unwrap()
        }

        fn path(&self, file: &str) -> PathBuf {
            self.dir.path().join(file)
        }

        fn hierarchies(&self) -> Hierarchies {
            Hierarchies::discover_under(self.dir.path()).unwrap()
        }
    }

    fn v2() -> Host {
        let host = Host::new("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        host.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        host.put("sys/fs/cgroup/cgroup.subtree_control", "cpu memory\n");
        for (file, text) in [
            ("memory.current", "81920\n"),
            ("memory.max", "max\n"),
            ("memory.min", "0\n"),
            ("memory.high", "max\n"),
            ("memory.swap.current", "4096\n"),
            ("memory.swap.max", "1048576\n"),
            ("memory.stat", "anon 4096\nfile 0\npswpin 3\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n"),
            ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            ("memory.reclaim", ""),
            ("cgroup.procs", "77\n0\n78\n"),
            ("cgroup.subtree_control", ""),
        ] {
            host.put(&format!("sys/fs/cgroup/web/{file}"), text);
        }
        host.put("proc/77/cgroup", "0::/web\n");
        host
    }

    #[test]
    fn version_2_reads() {
        let host = v2();
        let hierarchies = host.hierarchies();
        assert_eq!(hierarchies.version(), Version::V2);
        let group = hierarchies.open(&hierarchies.of_process(77).unwrap()).unwrap();
        assert_eq!(group.path(), "/web");
        assert_eq!((group.usage().unwrap(), group.limit().unwrap()), (Bytes(81920), Limit::Max));
        assert_eq!(group.swap_usage().unwrap(), Bytes(4096));
        assert_eq!(group.swap_limit().unwrap(), Limit::Bytes(Bytes::mib(1)));
        assert_eq!(group.stat().unwrap().swap_in_pages, Some(3));
        let events = MemEvents { max: Some(9), oom: Some(2), oom_kill: Some(1), high: Some(0) };
        assert_eq!(group.events().unwrap(), events);
        assert_eq!(group.procs().unwrap(), [77, 78], "0 is a process we cannot see");
        let pressure = host.path("sys/fs/cgroup/web/memory.pressure");
        assert_eq!(group.pressure_path(), Some(pressure.clone()));
        let pressure_group = group.pressure_group().unwrap();
        assert_eq!(pressure_group.file(), pressure);
        pressure_group.remove().unwrap();
        assert!(group.dir().is_dir(), "the group that tells its own pressure stays");
    }

    #[test]
    fn version_2_writes() {
        let host = v2();
        let group = host.hierarchies().open("web").unwrap();
        let limit = Limit::Bytes(Bytes::mib(600));
        group.set_limit(limit).unwrap();
        group.set_swap_limit(Limit::Max).unwrap();
        group.set_min(Limit::Bytes(Bytes(4096))).unwrap();
        group.set_high(limit).unwrap();
        group.reclaim(Bytes(8192)).unwrap();
        group.add(79).unwrap();
        assert_eq!(group.limit().unwrap(), limit);
        assert_eq!(group.high().unwrap(), limit);
        // A plain file keeps its old end.
        assert!(host.get("sys/fs/cgroup/web/memory.swap.max").starts_with("max"));
        assert!(host.get("sys/fs/cgroup/web/memory.min").starts_with("4096"));
        assert_eq!(host.get("sys/fs/cgroup/web/memory.reclaim"), "8192");
        assert!(host.get("sys/fs/cgroup/web/cgroup.procs").starts_with("79"));
    }

    #[test]
    fn version_2_enables_the_controller_on_the_way_down() {
        let host = v2();
        let group = host.hierarchies().create("/web/vm1").unwrap();
        assert!(group.dir().is_dir());
        assert_eq!(host.get("sys/fs/cgroup/web/cgroup.subtree_control"), "+memory");
        assert_eq!(host.get("sys/fs/cgroup/cgroup.subtree_control"), "cpu memory\n", "was there already");
    }

    #[test]
    fn the_least_limit_above_holds() {
        let host = v2();
        for (group, limit) in [("web", "100"), ("web/a", "max"), ("web/a/b", "200")] {
            host.put(&format!("sys/fs/cgroup/{group}/memory.max"), limit);
        }
        let group = host.hierarchies().open("web/a/b").unwrap();
        assert_eq!(group.limit().unwrap(), Limit::Bytes(Bytes(200)));
        assert_eq!(group.effective_limit().unwrap(), Limit::Bytes(Bytes(100)));
    }

    const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn hybrid_makes_the_twin_with_its_parents() {
        let host = Host::new(HYBRID);
        host.put("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "4096\n");
        host.put("sys/fs/cgroup/unified/cgroup.controllers", "\n");
        let hierarchies = host.hierarchies();
        assert_eq!(hierarchies.version(), Version::V1);
        let group = hierarchies.open("a/b").unwrap();
        assert_eq!(group.pressure_path(), None);
        let twin = group.pressure_group().unwrap();
        assert_eq!(twin.dir(), host.path("sys/fs/cgroup/unified/a/b"));
        assert!(twin.dir().is_dir());
        twin.remove().unwrap();
        assert!(matches!(twin.remove().unwrap_err(), CgroupError::NoGroup { .. }));
        let error = group.swap_limit().unwrap_err();
        assert!(
            matches!(error, CgroupError::Unsupported { file: "memory.memsw.limit_in_bytes", .. }),
            "{error}"
        );
    }

    #[test]
    fn a_process_outside_of_what_a_container_sees() {
        let host = Host::new("9 8 0:5 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        fs::create_dir_all(host.path("sys/fs/cgroup/memory/web")).unwrap();
        for (pid, group) in [(1, "/docker/1/web"), (2, "/docker/1"), (3, "/docker/12"), (4, "/")] {
            host.put(&format!("proc/{pid}/cgroup"), &format!("5:cpu:/\n4:cpuset,memory:{group}\n0::/\n"));
        }
        let hierarchies = host.hierarchies();
        assert_eq!(hierarchies.of_process(1).unwrap(), "/web");
        assert_eq!(hierarchies.of_process(2).unwrap(), "/");
        for outside in [3, 4] {
            let error = hierarchies.of_process(outside).unwrap_err();
            assert!(matches!(error, CgroupError::Elsewhere { .. }), "{error}");
        }
        assert!(matches!(hierarchies.of_process(5).unwrap_err(), CgroupError::NoProcess { pid: 5 }));
    }

    #[test]
    fn version_2_without_the_controller_is_no_controller() {
        let host = Host::new("41 31 0:38 / /cg rw - cgroup2 cgroup2 rw\n");
        host.put("cg/cgroup.controllers", "hugetlb\n");
        let error = Hierarchies::discover_under(host.dir.path()).unwrap_err();
        assert!(matches!(error, CgroupError::NoController { .. }), "{error}");
        let error = Hierarchies::discover_under(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, CgroupError::Read { .. }), "{error}");
    }

    #[test]
    fn paths_that_leave_the_hierarchy_are_refused() {
        let hierarchies = v2().hierarchies();
        for bad in ["..", "a/../..", "a//b", "web/", "//", "a/./b", "a\nb", &"x".repeat(256)] {
            let error = hierarchies.create(bad).unwrap_err();
            assert!(matches!(error, CgroupError::BadPath { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn garbage_in_a_file_is_quoted() {
        let host = v2();
        host.put("sys/fs/cgroup/web/memory.current", "many\n");
        host.put("sys/fs/cgroup/web/memory.max", "-1\n");
        let group = host.hierarchies().open("web").unwrap();
        let error = group.usage().unwrap_err();
        assert!(matches!(&error, CgroupError::Parse { seen, .. } if seen == "many"), "{error}");
        assert!(matches!(group.limit().unwrap_err(), CgroupError::Parse { .. }));
    }

    #[test]
    fn no_path_leads_out_of_the_hierarchy() {
        let host = v2();
        let hierarchies = host.hierarchies();
        let top = host.path("sys/fs/cgroup").canonicalize().unwrap();
        let outcome = TestRunner::default().run(&"(/|\\.|\\.\\.|web|[a-c]|\n|ä){0,12}", |path| {
            if let Ok(group) = hierarchies.open(&path) {
                prop_assert!(group.dir().canonicalize().unwrap().starts_with(&top));
            }
            Ok(())
        });
        outcome.unwrap();
    }
}
