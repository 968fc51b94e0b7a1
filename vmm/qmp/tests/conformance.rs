//! The same assertions on the fake and on a real QEMU, so that what is tested against the fake elsewhere holds.

#[cfg(test)]
mod test {
    use std::{
        io::Write,
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use plimsoll_qmp::{Event, QmpClient, QmpError, QmpSocket, testing::FakeQemu};
    use plimsoll_units::{Bytes, MemTarget};

    const WITHIN: Duration = Duration::from_secs(10);

    /// A QEMU that never runs a guest instruction; ended whatever happens.
    struct RealQemu {
        child: Child,
        dir: tempfile::TempDir,
    }

    impl RealQemu {
        /// `None` where QEMU is not installed, said loudly.
        fn start(devices: &[&str]) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let qmp = format!("unix:{},server=on,wait=off", dir.path().join("qmp").display());
            let spawned = Command::new("qemu-system-x86_64")
                .args([
                    "-accel",
                    "tcg",
                    "-machine",
                    "pc",
                    "-m",
                    "128",
                    "-display",
                    "none",
                    "-S",
                    "-nodefaults",
                    "-qmp",
                    &qmp,
                ])
                .args(devices)
                .stdin(Stdio::null())
                .spawn();
            match spawned {
                Ok(child) => Some(Self { child, dir }),
                Err(err) => {
                    // Not eprintln: the harness would swallow it.
                    let skipped = "SKIPPED: the half of this test that needs qemu-system-x86_64";
                    writeln!(std::io::stderr(), "{skipped}: {err}").unwrap();
                    None
                }
            }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("qmp")
        }
    }

    impl Drop for RealQemu {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    /// Connects as soon as QEMU listens.
    async fn socket(path: &Path) -> QmpSocket {
        let deadline = Instant::now() + WITHIN;
        loop {
            match QmpSocket::connect(path, WITHIN).await {
                Ok(socket) => return socket,
                Err(QmpError::NoSocket { .. } | QmpError::NobodyListens { .. })
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(err) => panic!("{err}"),
            }
        }
    }

    async fn connect(path: &Path) -> QmpClient {
        let mut client = socket(path).await.handshake(WITHIN).await.unwrap();
        client.set_timeout(WITHIN);
        client
    }

    /// Runs the assertions on both.
    fn on_both(devices: &[&str], balloon: bool, check: impl AsyncFn(&Path)) {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let fake = FakeQemu::start(&dir.path().join("qmp")).unwrap();
            fake.with(|machine| machine.balloon = balloon);
            check(fake.path()).await;
        });
        if let Some(real) = RealQemu::start(devices) {
            run(check(&real.path()));
        }
    }

    const BALLOON: [&str; 2] = ["-device", "virtio-balloon-pci,id=balloon0"];

    async fn next(client: &mut QmpClient) -> Event {
        tokio::time::timeout(WITHIN, client.next_event()).await.expect("an event in time").unwrap()
    }

    async fn everything_plimsoll_asks(path: &Path) {
        let socket = socket(path).await;
        assert_eq!(socket.peer().unwrap().uid, own_uid());
        let mut client = socket.handshake(WITHIN).await.unwrap();
        assert!(client.version().major >= 5, "{}", client.version());
        let version = client.query_version().await.unwrap();
        assert_eq!((version.major, version.minor), (client.version().major, client.version().minor));
        assert_eq!(client.query_name().await.unwrap(), None);
        assert!(!client.query_status().await.unwrap().running);
        assert_eq!(client.query_memory_size().await.unwrap().total(), Bytes::mib(128));
        assert_eq!(client.query_balloon().await.unwrap(), MemTarget(Bytes::mib(128)));
        let balloon = client.find_balloon().await.unwrap();
        assert!(balloon.qom_path().starts_with("/machine/peripheral"), "{balloon:?}");
        client.set_stats_interval(&balloon, 1).await.unwrap();
        let stats = client.guest_stats(&balloon).await.unwrap();
        assert_eq!(stats, plimsoll_qmp::BalloonStats::default(), "no driver, no statistics");
        client.set_target(MemTarget(Bytes::mib(64))).await.unwrap();
        assert_eq!(client.query_balloon().await.unwrap(), MemTarget(Bytes::mib(128)), "no driver, no change");
        let refused = client.set_target(MemTarget(Bytes::ZERO)).await.unwrap_err();
        assert!(matches!(refused, QmpError::Refused { command: "balloon", .. }), "{refused}");
        assert!(!refused.is_fatal());
        assert_eq!(client.late_replies(), 0);
    }

    fn own_uid() -> u32 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/proc/self").unwrap().uid()
    }

    async fn events_of_the_run_state(path: &Path) {
        let mut client = connect(path).await;
        client.cont().await.unwrap();
        assert!(client.query_status().await.unwrap().running);
        assert_eq!(next(&mut client).await, Event::Resume);
        client.stop().await.unwrap();
        assert_eq!(next(&mut client).await, Event::Stop);
        assert!(!client.query_status().await.unwrap().running);
        client.system_reset().await.unwrap();
        let reset = next(&mut client).await;
        assert!(matches!(reset, Event::Reset { guest: false, at_us: Some(1..) }), "{reset:?}");
        client.system_powerdown().await.unwrap();
        assert_eq!(next(&mut client).await, Event::Powerdown);
        assert_eq!(client.events_dropped(), 0);
        client.quit().await.unwrap();
    }

    async fn a_machine_without_balloon(path: &Path) {
        let mut client = connect(path).await;
        for error in [
            client.query_balloon().await.unwrap_err(),
            client.set_target(MemTarget(Bytes::mib(64))).await.unwrap_err(),
            client.find_balloon().await.unwrap_err(),
        ] {
            assert!(matches!(error, QmpError::NoBalloon { .. }), "{error}");
        }
        assert!(client.query_status().await.is_ok(), "the connection is as good as before");
    }

    async fn one_client_at_a_time(path: &Path) {
        let first = connect(path).await;
        let error = socket(path).await.handshake(Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(error, QmpError::NoGreeting { .. }), "{error}");
        drop(first);
        // The refused one went before its turn; QEMU goes through it and greets the next.
        let again = connect(path).await;
        assert!(again.version().major >= 5);
    }

    async fn an_unknown_command_is_refused(path: &Path) {
        let mut client = connect(path).await;
        let error = client.execute::<()>("plimsoll-no-such", serde_json::json!({})).await.unwrap_err();
        let QmpError::Refused { class, .. } = &error else { panic!("{error}") };
        assert_eq!(class, "CommandNotFound");
    }

    #[test]
    fn asks_and_answers() {
        on_both(&BALLOON, true, everything_plimsoll_asks);
    }

    #[test]
    fn a_balloon_without_an_id_is_found() {
        if let Some(real) = RealQemu::start(&["-device", "virtio-balloon-pci"]) {
            run(async {
                let balloon = connect(&real.path()).await.find_balloon().await.unwrap();
                assert_eq!(balloon.qom_path(), "/machine/peripheral-anon/device[0]");
            });
        }
    }

    #[test]
    fn run_state_events_arrive() {
        on_both(&BALLOON, true, events_of_the_run_state);
    }

    #[test]
    fn without_balloon_device() {
        on_both(&[], false, a_machine_without_balloon);
    }

    #[test]
    fn a_second_client_waits_ungreeted() {
        on_both(&BALLOON, true, one_client_at_a_time);
    }

    #[test]
    fn unknown_commands() {
        on_both(&BALLOON, true, an_unknown_command_is_refused);
    }

    #[test]
    fn a_dead_qemu_is_told_from_a_missing_one() {
        let Some(real) = RealQemu::start(&BALLOON) else { return };
        let path = real.path();
        run(async {
            let mut client = connect(&path).await;
            let mut real = real;
            real.child.kill().unwrap();
            real.child.wait().unwrap();
            let error = client.query_status().await.unwrap_err();
            assert!(matches!(error, QmpError::Closed { .. }) && error.is_fatal(), "{error}");
            let error = client.query_status().await.unwrap_err();
            assert!(matches!(error, QmpError::Closed { .. }), "it stays closed: {error}");
            let error = QmpSocket::connect(&path, WITHIN).await.unwrap_err();
            assert!(matches!(error, QmpError::NobodyListens { .. }), "{error}");
            drop(real);
            let error = QmpSocket::connect(&path, WITHIN).await.unwrap_err();
            assert!(matches!(error, QmpError::NoSocket { .. }), "{error}");
        });
    }
}
