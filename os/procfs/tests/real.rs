//! Against the real `/proc`, and processes that come and go.

#[cfg(test)]
mod test {
    use std::{
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use plimsoll_procfs::{Pidfd, ProcError, ProcessId, Procfs};
    use plimsoll_units::Bytes;

    const WITHIN: Duration = Duration::from_secs(10);

    /// Waits for its input to end; ended whatever happens.
    struct Cat(Child);

    impl Cat {
        fn new() -> Self {
            Self(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }
    }

    impl Drop for Cat {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_host() {
        let mut proc = Procfs::new();
        let info = proc.meminfo().unwrap();
        assert!(Bytes::ZERO < info.free && info.free <= info.total, "{info:?}");
        assert!(info.available <= info.total && info.swap_free <= info.swap_total, "{info:?}");
        assert!(info.committed_as > Bytes::ZERO, "{info:?}");
        let before = proc.vmstat().unwrap();
        let after = proc.vmstat().unwrap();
        assert!(after.pgmajfault >= before.pgmajfault && after.pgmajfault > 0, "{before:?} {after:?}");
    }

    #[test]
    fn this_process() {
        let mut proc = Procfs::new();
        let held = vec![1u8; 32 << 20];
        let pid = std::process::id();
        let memory = proc.memory(pid).unwrap();
        assert!(memory.rss_anon >= Bytes(held.len().try_into().unwrap()), "{memory:?}");
        assert_eq!(memory.rss, memory.rss_anon.plus(memory.rss_file).plus(memory.rss_shmem));
        let statm = proc.statm(pid).unwrap();
        assert!(statm.resident >= Bytes::mib(31) && statm.resident <= statm.size, "{statm:?}");
        let cmdline = proc.cmdline(pid).unwrap();
        assert_eq!(cmdline, std::env::args().collect::<Vec<_>>());
        drop(held);
    }

    #[test]
    fn a_process_that_ends() {
        let mut proc = Procfs::new();
        let mut cat = Cat::new();
        let process = proc.identify(cat.pid()).unwrap();
        let pidfd = Pidfd::open(&mut proc, process).unwrap();
        assert!(proc.is_alive(process).unwrap() && !pidfd.has_exited().unwrap());
        assert!(!pidfd.wait(Duration::from_millis(20)).unwrap());
        pidfd.terminate().unwrap();
        assert!(pidfd.wait(WITHIN).unwrap());
        assert!(!proc.is_alive(process).unwrap(), "a zombie is not alive");
        assert!(matches!(Pidfd::open(&mut proc, process).unwrap_err(), ProcError::NoProcess { .. }));
        assert_eq!(proc.cmdline(cat.pid()).unwrap(), Vec::<String>::new());
        assert_eq!(proc.memory(cat.pid()).unwrap(), plimsoll_procfs::Memory::default());
        cat.0.wait().unwrap();
        assert!(!proc.is_alive(process).unwrap());
        assert!(matches!(pidfd.kill().unwrap_err(), ProcError::NoProcess { .. }));
        assert!(matches!(proc.stat(cat.pid()).unwrap_err(), ProcError::NoProcess { .. }));
    }

    #[test]
    fn a_number_in_other_hands_is_not_the_process() {
        let mut proc = Procfs::new();
        let cat = Cat::new();
        let now = proc.identify(cat.pid()).unwrap();
        let before = ProcessId { start_time: now.start_time - 1, ..now };
        assert!(!proc.is_alive(before).unwrap());
        assert!(matches!(Pidfd::open(&mut proc, before).unwrap_err(), ProcError::NoProcess { .. }));
        for pid in [0, u32::MAX, 1 << 31] {
            let never = ProcessId { pid, start_time: 0 };
            assert!(matches!(Pidfd::open(&mut proc, never).unwrap_err(), ProcError::NoProcess { .. }));
        }
    }

    #[test]
    fn a_long_command_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("7")).unwrap();
        std::fs::write(dir.path().join("7/cmdline"), vec![b'x'; 1 << 20]).unwrap();
        let mut proc = Procfs::at(dir.path().to_str().unwrap());
        let cmdline = proc.cmdline(7).unwrap();
        assert_eq!((cmdline.len(), cmdline[0].len()), (1, 256 << 10));
        assert!(matches!(proc.stat(7).unwrap_err(), ProcError::NoProcess { .. }));
        assert!(matches!(proc.meminfo().unwrap_err(), ProcError::Read { .. }));
    }
}
