//! Peers that are no QEMU, or a QEMU that its guest took over.

#[cfg(test)]
mod test {
    use std::{
        os::unix::net::UnixListener,
        path::PathBuf,
        time::{Duration, Instant},
    };

    use plimsoll_qmp::{
        Event, MAX_EVENTS, MAX_LINE, MAX_OUTSTANDING, QmpClient, QmpError, QmpSocket,
        testing::{FakeQemu, Greeting, Machine},
    };
    use plimsoll_units::{Bytes, MemTarget};
    use proptest::prelude::*;

    /// For what is expected to happen.
    const WITHIN: Duration = Duration::from_secs(10);
    /// For what is expected not to happen.
    const SOON: Duration = Duration::from_millis(50);

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    struct Straw {
        fake: FakeQemu,
        _dir: tempfile::TempDir,
    }

    impl Straw {
        fn new(set: impl FnOnce(&mut Machine)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let fake = FakeQemu::start(&dir.path().join("qmp")).unwrap();
            fake.with(set);
            Self { fake, _dir: dir }
        }

        async fn handshake(&self, within: Duration) -> Result<QmpClient, QmpError> {
            QmpSocket::connect(self.fake.path(), WITHIN).await?.handshake(within).await
        }

        async fn client(&self) -> QmpClient {
            let mut client = self.handshake(WITHIN).await.unwrap();
            client.set_timeout(WITHIN);
            client
        }
    }

    async fn greeted_with(bytes: &[u8]) -> QmpError {
        let straw = Straw::new(|m| m.greeting = Greeting::Bytes(bytes.to_vec()));
        straw.handshake(SOON).await.unwrap_err()
    }

    #[test]
    fn whoever_speaks_something_else_is_quoted() {
        run(async {
            let error = greeted_with(b"SSH-2.0-OpenSSH_9.2\r\n").await;
            assert!(
                matches!(&error, QmpError::NotQmp { seen, .. } if seen == "SSH-2.0-OpenSSH_9.2"),
                "{error}"
            );
            let error = greeted_with(b"QEMU 7.2 monitor - type 'help' (qemu) ").await;
            assert!(
                matches!(&error, QmpError::NotQmp { seen, .. } if seen.starts_with("QEMU 7.2")),
                "{error}"
            );
            let error = greeted_with(b"{\"QMP\": {\"version\": 7}}\n").await;
            assert!(matches!(error, QmpError::NotQmp { .. }), "{error}");
            let error = greeted_with(b"{\"QMP\": {").await;
            assert!(matches!(error, QmpError::NotQmp { .. }), "half a greeting: {error}");
            let error = greeted_with(b"").await;
            assert!(matches!(error, QmpError::NoGreeting { .. }), "{error}");
        });
    }

    #[test]
    fn a_stale_socket_a_missing_one_and_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let stale = dir.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let connect =
            |path: PathBuf| run(async move { QmpSocket::connect(&path, WITHIN).await.unwrap_err() });
        assert!(matches!(connect(stale), QmpError::NobodyListens { .. }));
        assert!(matches!(connect(dir.path().join("missing")), QmpError::NoSocket { .. }));
        assert!(matches!(connect(file), QmpError::NobodyListens { .. }));
        assert!(matches!(connect(PathBuf::from("x".repeat(200))), QmpError::Connect { .. }));
    }

    #[test]
    fn a_listener_that_accepts_nobody_ends_in_a_time_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let _listener = UnixListener::bind(&path).unwrap();
        run(async {
            let mut waiting = Vec::new();
            let error = loop {
                match QmpSocket::connect(&path, SOON).await {
                    Ok(socket) => waiting.push(socket),
                    Err(error) => break error,
                }
                assert!(waiting.len() < 100_000, "the listener's queue never fills");
            };
            assert!(matches!(error, QmpError::NobodyAccepts { .. }), "{error}");
        });
    }

    #[test]
    fn nobody_is_waited_for_longer_than_said() {
        run(async {
            let straw = Straw::new(|m| m.deaf = true);
            let begun = Instant::now();
            let error = straw.handshake(SOON).await.unwrap_err();
            assert!(matches!(error, QmpError::Timeout { command: "qmp_capabilities", .. }), "{error}");
            assert!(begun.elapsed() < WITHIN);
        });
    }

    #[test]
    fn a_late_reply_is_dropped_by_its_id() {
        run(async {
            let straw = Straw::new(|_| {});
            let mut client = straw.client().await;
            straw.fake.with(|m| m.hold = true);
            client.set_timeout(SOON);
            let error = client.query_balloon().await.unwrap_err();
            assert!(matches!(error, QmpError::Timeout { command: "query-balloon", .. }), "{error}");
            assert!(!error.is_fatal());
            straw.fake.with(Machine::release);
            client.set_timeout(WITHIN);
            assert_eq!(client.query_name().await.unwrap(), None, "not the reply to query-balloon");
            assert_eq!(client.late_replies(), 1);
        });
    }

    #[test]
    fn a_hanging_qemu_is_not_sent_ever_more() {
        run(async {
            let straw = Straw::new(|_| {});
            let mut client = straw.client().await;
            straw.fake.with(|m| (m.hold, m.heard) = (true, Vec::new()));
            client.set_timeout(SOON);
            for _ in 0..MAX_OUTSTANDING + 3 {
                client.set_target(MemTarget(Bytes::mib(64))).await.unwrap_err();
            }
            assert_eq!(straw.fake.with(|m| m.heard.len()), MAX_OUTSTANDING);
            straw.fake.with(Machine::release);
            client.set_timeout(WITHIN);
            client.set_target(MemTarget(Bytes::mib(32))).await.unwrap();
            assert_eq!(straw.fake.with(|m| m.target), Some(MemTarget(Bytes::mib(32))));
        });
    }

    #[test]
    fn cancelling_a_call_leaves_the_conversation_in_order() {
        run(async {
            let straw = Straw::new(|m| m.name = Some("web".to_owned()));
            let mut client = straw.client().await;
            straw.fake.with(|m| m.hold = true);
            let cancelled = tokio::time::timeout(SOON, client.query_balloon()).await;
            cancelled.unwrap_err();
            straw.fake.with(Machine::release);
            assert_eq!(client.query_name().await.unwrap().as_deref(), Some("web"));
            let cancelled = tokio::time::timeout(SOON, client.next_event()).await;
            cancelled.unwrap_err();
            assert_eq!(client.query_name().await.unwrap().as_deref(), Some("web"));
        });
    }

    #[test]
    fn hanging_up_in_the_middle_of_a_line() {
        run(async {
            let straw = Straw::new(|_| {});
            let mut client = straw.client().await;
            straw.fake.say(b"{\"return\": {\"act");
            straw.fake.hang_up();
            let error = client.query_balloon().await.unwrap_err();
            assert!(matches!(&error, QmpError::Closed { seen, .. } if seen.contains("act")), "{error}");
            assert!(matches!(client.next_event().await.unwrap_err(), QmpError::Closed { .. }));
        });
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        run(async {
            let straw = Straw::new(|_| {});
            let mut client = straw.client().await;
            straw.fake.say(&vec![b'['; MAX_LINE + 1]);
            let error = client.query_status().await.unwrap_err();
            assert!(matches!(error, QmpError::LineTooLong { .. }) && error.is_fatal(), "{error}");
        });
    }

    #[test]
    fn a_flood_of_events_costs_the_oldest_ones() {
        run(async {
            let straw = Straw::new(|_| {});
            let mut client = straw.client().await;
            straw.fake.with(|m| {
                for n in 0..1000u64 {
                    m.event("BALLOON_CHANGE", &serde_json::json!({ "actual": n }));
                }
            });
            client.query_status().await.unwrap();
            let dropped = 1000 - u64::try_from(MAX_EVENTS).unwrap();
            assert_eq!(client.events_dropped(), dropped);
            let actual = MemTarget(Bytes(dropped));
            assert_eq!(client.pop_event(), Some(Event::BalloonChange { actual }));
        });
    }

    #[test]
    fn replies_of_the_wrong_kind_name_the_command() {
        run(async {
            let straw = Straw::new(|m| {
                for (command, reply) in [
                    ("query-balloon", r#"{"actual": "134217728"}"#),
                    ("query-status", "[]"),
                    ("query-memory-size-summary", r#"{"base-memory": -1}"#),
                    ("qom-get", r#"{"stats": 7}"#),
                    ("qom-list", r#"[{"name": 7, "type": "child<virtio-balloon-pci>"}]"#),
                ] {
                    m.instead.insert(command.to_owned(), reply.to_owned());
                }
            });
            let mut client = straw.client().await;
            for error in [
                client.query_balloon().await.unwrap_err(),
                client.query_status().await.unwrap_err(),
                client.query_memory_size().await.unwrap_err(),
                client.find_balloon().await.unwrap_err(),
            ] {
                assert!(matches!(error, QmpError::BadReply { .. }) && !error.is_fatal(), "{error}");
            }
            straw.fake.with(|m| m.instead.remove("qom-list"));
            let balloon = client.find_balloon().await.unwrap();
            let error = client.guest_stats(&balloon).await.unwrap_err();
            assert!(matches!(error, QmpError::BadReply { command: "qom-get", .. }), "{error}");
        });
    }

    #[test]
    fn statistics_of_a_guest_arrive() {
        run(async {
            let straw = Straw::new(|m| {
                m.driver = true;
                m.last_update_s = 1_795_260_309;
                m.stats.insert("stat-available-memory".to_owned(), "4096".to_owned());
            });
            let mut client = straw.client().await;
            let balloon = client.find_balloon().await.unwrap();
            client.set_stats_interval(&balloon, 1).await.unwrap();
            assert_eq!(straw.fake.with(|m| m.stats_interval_s), 1);
            let got = client.guest_stats(&balloon).await.unwrap();
            assert_eq!(got.stats.available, Some(Bytes(4096)));
            assert_eq!(got.stats.total, None);
            client.set_target(MemTarget(Bytes::mib(64))).await.unwrap();
            let actual = MemTarget(Bytes::mib(64));
            assert_eq!(client.next_event().await.unwrap(), Event::BalloonChange { actual });
            assert_eq!(client.query_balloon().await.unwrap(), actual);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever a peer says after its greeting, each call returns in its time with a value or an error.
        #[test]
        fn any_bytes_end_in_an_error_or_a_value(
            chunks in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "\\{\"(return|error|event|id)\": [\\[\\]{}\",:0-9a-z]{0,20}, \"id\": [0-9]{1,3}\\}\n".prop_map(String::into_bytes),
                Just(b"{\"return\": {}, \"id\": 2}\n".to_vec()),
                Just(b"{\"event\": \"STOP\"}\n".to_vec()),
            ], 0..8),
        ) {
            run(async {
                let straw = Straw::new(|_| {});
                let mut client = straw.client().await;
                straw.fake.with(|m| m.deaf = true);
                straw.fake.say(&chunks.concat());
                straw.fake.hang_up();
                let begun = Instant::now();
                // The peer hangs up after that, so that even an endless reader comes to an end.
                let _ = client.execute::<serde_json::Value>("query-status", serde_json::json!({})).await;
                while client.next_event().await.is_ok() {}
                assert!(begun.elapsed() < WITHIN);
            });
        }
    }
}
