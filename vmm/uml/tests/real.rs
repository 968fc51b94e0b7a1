//! A real UML, where it is installed; said loudly where it is not.

#[cfg(test)]
mod test {
    use std::{
        fs::{self, File},
        io::Write,
        path::{Path, PathBuf},
        process::{Child, Stdio},
        time::{Duration, Instant},
    };

    use plimsoll_uml::{Mconsole, MconsoleError, UmlCommand, kill_remains, remains};
    use plimsoll_units::Bytes;

    const WITHIN: Duration = Duration::from_secs(30);

    const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo 0 > /proc/sys/kernel/ctrl-alt-del
trap 'echo heard-cad; /bin/busybox poweroff -f' INT
/bin/busybox mkdir /h
/bin/busybox mount -t hostfs none /h && echo host-is-open || echo host-is-shut
/bin/busybox grep MemTotal /proc/meminfo
echo init-is-up
while :; do
    echo tick
    /bin/busybox usleep 20000
done
";

    /// One file of a newc archive (the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`).
    fn newc(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
        let inode = u32::try_from(archive.len()).unwrap();
        let (size, name_size) =
            (u32::try_from(content.len()).unwrap(), u32::try_from(name.len() + 1).unwrap());
        archive.extend_from_slice(b"070701");
        for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        pad(archive);
        archive.extend_from_slice(content);
        pad(archive);
    }

    fn initramfs(busybox: &[u8]) -> Vec<u8> {
        let mut archive = Vec::new();
        for dir in ["bin", "dev", "proc"] {
            newc(&mut archive, dir, 0o040_755, (0, 0), b"");
        }
        newc(&mut archive, "dev/console", 0o020_600, (5, 1), b"");
        newc(&mut archive, "bin/busybox", 0o100_755, (0, 0), busybox);
        newc(&mut archive, "init", 0o100_755, (0, 0), INIT.as_bytes());
        newc(&mut archive, "TRAILER!!!", 0, (0, 0), b"");
        archive
    }

    /// A UML; ended whatever happens.
    struct Uml {
        umid: &'static str,
        child: Child,
        console: PathBuf,
        mconsole: Mconsole,
        dir: tempfile::TempDir,
    }

    impl Uml {
        /// `None`, said loudly, where UML or busybox is not installed.
        fn boot(umid: &'static str) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let initrd = dir.path().join("initrd.cpio");
            let busybox = fs::read("/bin/busybox");
            let written = busybox.and_then(|busybox| fs::write(&initrd, initramfs(&busybox)));
            let console = dir.path().join("console.log");
            let mut uml = UmlCommand::new(Bytes::mib(64), umid, dir.path());
            uml.initrd = Some(initrd);
            let spawned = written.and_then(|()| {
                let log = File::create(&console)?;
                let mut command = uml.build().unwrap().command();
                command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
            });
            match spawned {
                Ok(child) => {
                    let mconsole = Mconsole::new(uml.mconsole()).with_timeout(WITHIN);
                    let uml = Self { umid, child, console, mconsole, dir };
                    uml.wait_for(|text| text.contains("init-is-up"));
                    Some(uml)
                }
                Err(err) => {
                    // Not eprintln: the harness would swallow it.
                    writeln!(std::io::stderr(), "SKIPPED: a test on a real UML: {err}").unwrap();
                    None
                }
            }
        }

        fn text(&self) -> String {
            String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
        }

        fn ticks(&self) -> usize {
            self.text().matches("tick").count()
        }

        fn wait_for(&self, wanted: impl Fn(&str) -> bool) {
            assert!(poll(|| wanted(&self.text())), "the guest's console so far:\n{}", self.text());
        }

        fn wait_for_exit(&mut self) {
            let ended = poll(|| self.child.try_wait().unwrap().is_some());
            assert!(ended, "UML goes on; its console:\n{}", self.text());
        }
    }

    impl Drop for Uml {
        fn drop(&mut self) {
            let (pid, umid) = (self.child.id(), self.umid);
            let _ = kill_remains(pid, umid);
            let _ = self.child.wait();
            let _ = poll(|| remains(pid, umid).is_ok_and(|left| left == 0));
        }
    }

    fn poll(mut done: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            if done() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn is_there(path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    #[test]
    fn asked_stopped_resumed_and_shut_down() {
        let Some(mut uml) = Uml::boot("talk") else { return };
        let version = uml.mconsole.version().unwrap();
        assert!(version.starts_with("Linux ") && version.contains("x86_64"), "{version}");
        assert!(uml.text().contains("host-is-shut"), "{}", uml.text());
        let pid = fs::read_to_string(plimsoll_uml::pid_path(uml.dir.path(), "talk")).unwrap();
        assert_eq!(pid.trim(), uml.child.id().to_string());

        uml.mconsole.stop().unwrap();
        let stopped_at = uml.ticks();
        assert_eq!(uml.mconsole.version().unwrap(), version, "the console works while the guest stands");
        // Ten times a tick's time: that nothing happens can only be seen by waiting.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(uml.ticks(), stopped_at);
        uml.mconsole.go().unwrap();
        uml.wait_for(|text| text.matches("tick").count() > stopped_at);

        let refused = uml.mconsole.command("no-such-command").unwrap_err();
        assert!(matches!(refused, MconsoleError::Refused { .. }), "{refused}");
        let help = uml.mconsole.sysrq('h').unwrap();
        assert!(help.contains("HELP"), "{help}");

        uml.mconsole.cad().unwrap();
        uml.wait_for_exit();
        assert!(uml.text().contains("heard-cad"), "{}", uml.text());
        assert!(
            !is_there(&plimsoll_uml::mconsole_path(uml.dir.path(), "talk")),
            "UML cleans up after itself"
        );
    }

    #[test]
    fn halted() {
        let Some(mut uml) = Uml::boot("halt") else { return };
        uml.mconsole.halt().unwrap();
        uml.wait_for_exit();
        let gone = uml.mconsole.version().unwrap_err();
        assert!(matches!(gone, MconsoleError::NoSocket { .. }), "{gone}");
    }

    #[test]
    fn rebooted() {
        let Some(uml) = Uml::boot("again") else { return };
        let pid = uml.child.id();
        uml.mconsole.reboot().unwrap();
        uml.wait_for(|text| text.matches("init-is-up").count() == 2);
        assert!(uml.mconsole.version().is_ok(), "the same socket answers");
        assert!(is_there(Path::new(&format!("/proc/{pid}"))), "the process stays");
    }

    #[test]
    fn killed() {
        let Some(mut uml) = Uml::boot("kill") else { return };
        let pid = uml.child.id();
        assert!(remains(pid, "kill").unwrap() >= 1);
        assert_eq!(remains(pid, "another").unwrap(), 0);
        uml.child.kill().unwrap();
        uml.child.wait().unwrap();
        // The helpers outlive it, and hold what it held.
        let left = remains(pid, "kill").unwrap();
        // Those that it traced are ended by the kernel, a moment later.
        assert!(left >= 1 && kill_remains(pid, "kill").unwrap() <= left, "{left}");
        assert!(poll(|| remains(pid, "kill").unwrap() == 0));
        // The kernel takes down sockets and memory a moment after the process was seen to end.
        let mconsole = uml.mconsole.clone().with_timeout(Duration::from_millis(100));
        let refused = || matches!(mconsole.version(), Err(MconsoleError::NobodyListens { .. }));
        assert!(poll(refused), "the socket stays behind: {:?}", mconsole.version());
    }
}
