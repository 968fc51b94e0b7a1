//! What the arbiter promises, for any input: raw values, hostile guests, any order of events.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod world;

mod test {
    use plimsoll_model::*;
    use plimsoll_policy::{Config, History, decide};
    use plimsoll_units::*;
    use proptest::prelude::*;

    use crate::world::{World, vm};

    const M: fn(u64) -> Bytes = Bytes::mib;

    fn host(budget: Bytes) -> HostSample {
        HostSample {
            budget,
            available: budget,
            low: Bytes::ZERO,
            psi: None,
            swap_in_pages: 0,
            swap_out_pages: 0,
        }
    }

    fn snapshot(now_ms: u64, budget: Bytes, vms: Vec<VmSample>) -> Snapshot {
        Snapshot { now: MonoTime(now_ms * 1000), host: host(budget), vms }
    }

    fn stats(at_ms: u64, available: Bytes) -> Option<StatsSample> {
        let stats = GuestStats { available: Some(available), ..GuestStats::default() };
        Some(StatsSample { at: MonoTime(at_ms * 1000), stats })
    }

    fn to(plan: &Plan, id: u64) -> Option<Bytes> {
        plan.actions.iter().find(|a| a.vm == VmId(id)).map(|a| a.to.0)
    }

    /// What an honest agent says of a guest of which `available` is available.
    fn agent(at_ms: u64, total: Bytes, available: Bytes, committed: Bytes) -> Option<AgentSample> {
        let stats = AgentStats {
            total: Some(total),
            free: Some(available),
            available: Some(available),
            committed: Some(committed),
            cached: Some(available),
            ..AgentStats::default()
        };
        Some(AgentSample { at: MonoTime(at_ms * 1000), stats })
    }

    /// Twice the same snapshot in the same history gives the same plan, also after a trip through JSON.
    fn plan_twice(snapshot: &Snapshot, config: &Config, history: &mut History) -> Plan {
        let text = serde_json::to_string(&(snapshot, &*history)).unwrap();
        let (copy, mut past): (Snapshot, History) = serde_json::from_str(&text).unwrap();
        let plan = decide(snapshot, config, history);
        assert_eq!(decide(&copy, config, &mut past), plan);
        assert_eq!(&past, &*history);
        plan
    }

    #[test]
    fn distress_is_answered_in_the_same_tick_where_there_is_room() {
        let mut a = vm(1, M(64), M(128), M(512));
        a.stats = stats(0, M(1));
        let plan = plan_twice(&snapshot(0, M(1024), vec![a]), &Config::default(), &mut History::default());
        assert_eq!(to(&plan, 1), Some(M(512)));
        assert_eq!(plan.host, HostState::Ample);
        assert!(
            matches!(plan.verdicts[0].reason, Reason::Distress { signal: Signal::Available, .. }),
            "{plan:?}"
        );
    }

    #[test]
    fn without_room_others_are_asked_at_once_and_nothing_is_granted_before_it_is_free() {
        let (mut a, mut b) = (vm(1, M(64), M(256), M(512)), vm(2, M(64), M(256), M(512)));
        a.stats = stats(0, M(1));
        b.stats = stats(0, M(200));
        let (config, mut history) = (Config::default(), History::default());
        let plan = plan_twice(&snapshot(0, M(512), vec![a.clone(), b.clone()]), &config, &mut history);
        assert_eq!(to(&plan, 1), None);
        let shrunk = to(&plan, 2).unwrap();
        assert!(shrunk < M(128) && shrunk >= M(64), "{shrunk}");
        assert!(plan.waiting > Bytes::ZERO);
        assert_eq!(plan.host, HostState::Tight);
        // The memory arrives, and is granted by the tick that sees it.
        b.target = MemTarget(shrunk);
        b.actual = MemTarget(shrunk);
        b.stats = stats(100, M(30));
        let plan = plan_twice(&snapshot(100, M(512), vec![a, b]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(512).minus(shrunk)));
    }

    #[test]
    fn a_guest_that_does_not_move_is_not_counted_on_and_is_left_alone_longer_each_time() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        a.actual = MemTarget(M(512));
        let mut found = Vec::new();
        for tick in 0..120 {
            let plan = plan_twice(&snapshot(tick * 1000, M(1024), vec![a.clone()]), &config, &mut history);
            if let Some(target) = to(&plan, 1) {
                a.target = MemTarget(target);
            }
            if let (VmState::Stuck, Reason::Stuck { retry_ms, .. }) =
                (plan.verdicts[0].state, plan.verdicts[0].reason)
            {
                assert_eq!(a.target, a.actual, "a stuck guest is asked for nothing");
                found.push(retry_ms);
            } else if a.target == a.actual {
                // Somebody asks again.
                a.target = MemTarget(M(128));
            }
        }
        assert!(found.contains(&10_000) && found.contains(&20_000) && found.contains(&40_000), "{found:?}");
    }

    #[test]
    fn one_page_a_second_is_not_progress() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        a.actual = MemTarget(M(512));
        let mut states = Vec::new();
        for tick in 0..6 {
            states.push(
                plan_twice(&snapshot(tick * 1000, M(1024), vec![a.clone()]), &config, &mut history).verdicts
                    [0]
                .state,
            );
            a.actual = MemTarget(a.actual.0.minus(Bytes(4096)));
        }
        assert!(states.contains(&VmState::Stuck), "{states:?}");
    }

    #[test]
    fn a_slow_but_moving_guest_is_not_stuck() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        a.actual = MemTarget(M(512));
        for tick in 0..60 {
            let plan = plan_twice(&snapshot(tick * 1000, M(1024), vec![a.clone()]), &config, &mut history);
            assert_ne!(plan.verdicts[0].state, VmState::Stuck);
            a.actual = MemTarget(a.actual.0.minus(M(2)));
        }
    }

    #[test]
    fn a_hold_wins_and_a_release_ends_it() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        a.hold = Some(MemTarget(M(100)));
        a.stats = stats(0, M(0));
        let plan = plan_twice(&snapshot(0, M(1024), vec![a.clone()]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(100)));
        assert_eq!(plan.verdicts[0].state, VmState::Held);
        a.hold = None;
        a.target = MemTarget(M(100));
        a.actual = MemTarget(M(100));
        let plan = plan_twice(&snapshot(1000, M(1024), vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(512)), "distress is answered once the hold is off");
    }

    #[test]
    fn a_new_baseline_is_sought_at_once() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        plan_twice(&snapshot(0, M(1024), vec![a.clone()]), &config, &mut history);
        a.sizes = a.sizes.with_memory(M(300)).unwrap();
        let plan = plan_twice(&snapshot(1000, M(1024), vec![a.clone()]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(300)));
        a.target = MemTarget(M(300));
        a.actual = MemTarget(M(300));
        a.sizes = a.sizes.with_memory(M(80)).unwrap();
        let plan = plan_twice(&snapshot(2000, M(1024), vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(80)));
    }

    #[test]
    fn a_short_host_takes_spare_first_then_baselines_then_floors() {
        let config = Config::default();
        let (mut a, mut b) = (vm(1, M(64), M(128), M(512)), vm(2, M(64), M(128), M(512)));
        for v in [&mut a, &mut b] {
            v.target = MemTarget(M(256));
            v.actual = MemTarget(M(256));
        }
        a.stats = stats(0, M(128));
        b.stats = stats(0, M(30));
        let over = |budget: u64| {
            plan_twice(&snapshot(0, M(budget), vec![a.clone(), b.clone()]), &config, &mut History::default())
        };
        let plan = over(480);
        assert_eq!((to(&plan, 1), to(&plan, 2)), (Some(M(224)), None), "spare of the one that has some");
        assert!(matches!(plan.actions[0].reason, Reason::OverBudget { .. }));
        let plan = over(300);
        assert!(to(&plan, 2).unwrap() >= M(128) && to(&plan, 1).unwrap() >= M(128), "baselines: {plan:?}");
        let plan = over(10);
        assert_eq!((to(&plan, 1), to(&plan, 2)), (Some(M(64)), Some(M(64))), "never below the floor");
    }

    #[test]
    fn a_guest_that_has_freed_its_memory_gives_it_at_once_to_one_in_distress() {
        let config = Config::default();
        let mut history = History::default();
        let (mut a, mut b) = (vm(1, M(64), M(128), M(512)), vm(2, M(64), M(128), M(512)));
        a.target = MemTarget(M(384));
        a.actual = MemTarget(M(384));
        a.stats = stats(0, M(2));
        b.stats = stats(0, M(60));
        let first = plan_twice(&snapshot(0, M(512), vec![a.clone(), b.clone()]), &config, &mut history);
        assert_eq!(first.verdicts[0].state, VmState::Distressed);
        a.stats = stats(1000, M(300));
        b.stats = stats(1000, M(1));
        let plan = plan_twice(&snapshot(1000, M(512), vec![a.clone(), b.clone()]), &config, &mut history);
        assert!(to(&plan, 1).is_some_and(|target| target < M(128)), "{plan:?}");
        // While it had nothing to spare it gave nothing, and after an OOM kill it is left in peace for a while.
        assert_eq!(to(&first, 1), None);
        if let Some(s) = &mut a.stats {
            s.stats.oom_kills = Some(1);
        }
        let mut history = History::default();
        let mut before = a.clone();
        before.stats = Some(StatsSample {
            at: MonoTime(0),
            stats: GuestStats { oom_kills: Some(0), ..before.stats.unwrap().stats },
        });
        plan_twice(&snapshot(0, M(512), vec![before, b.clone()]), &config, &mut history);
        let plan = plan_twice(&snapshot(1000, M(512), vec![a, b]), &config, &mut history);
        assert_eq!(plan.verdicts[0].state, VmState::Distressed, "{plan:?}");
    }

    #[test]
    fn an_idle_guest_comes_to_rest_at_its_baseline() {
        let config = Config::default();
        let mut history = History::default();
        let mut v = vm(1, M(64), M(128), M(512));
        v.target = MemTarget(M(300).minus(Bytes(4096)));
        v.actual = v.target;
        for second in 0..60 {
            v.stats = stats(second * 1000, v.actual.0.minus(M(40)));
            let plan = plan_twice(&snapshot(second * 1000, M(1024), vec![v.clone()]), &config, &mut history);
            if let Some(target) = to(&plan, 1) {
                assert!(target < v.target.0, "slowly, and one way");
                v.target = MemTarget(target);
                v.actual = v.target;
            }
        }
        assert_eq!(v.target.0, M(128));
    }

    #[test]
    fn stalls_count_only_where_memory_is_scarce() {
        let config = Config::default();
        for (available, short) in [(M(120), true), (M(1000), false)] {
            let mut history = History::default();
            let mut v = vm(1, M(64), M(256), M(512));
            v.stats = stats(0, M(150));
            let mut s = snapshot(0, M(1024), vec![v]);
            s.host.available = available;
            s.host.low = M(50);
            s.host.psi = Some(PsiTotals::default());
            plan_twice(&s, &config, &mut history);
            s.now = MonoTime(1_000_000);
            s.host.psi = Some(PsiTotals { some_us: 500_000, full_us: 0 });
            let plan = plan_twice(&s, &config, &mut history);
            assert_eq!(plan.host == HostState::Short, short, "{available} available");
            assert_eq!(to(&plan, 1).is_some(), short);
        }
    }

    #[test]
    fn old_statistics_are_not_read_as_if_the_balloon_had_not_moved() {
        let config = Config::default();
        let mut history = History::default();
        let (mut a, mut b) = (vm(1, M(48), M(80), M(256)), vm(2, M(48), M(80), M(256)));
        a.target = MemTarget(M(223));
        a.actual = MemTarget(M(223));
        a.stats = stats(0, M(183));
        b.stats = stats(0, M(1));
        let plan = plan_twice(&snapshot(0, M(310), vec![a.clone(), b.clone()]), &config, &mut history);
        // It uses 40M, and 24M are its headroom.
        assert_eq!(to(&plan, 1), Some(M(64)));
        a.target = MemTarget(M(64));
        for (now, actual) in [(100, 160), (200, 100), (300, 64)] {
            a.actual = MemTarget(M(actual));
            let plan = plan_twice(&snapshot(now, M(310), vec![a.clone(), b.clone()]), &config, &mut history);
            assert_eq!(
                (to(&plan, 1), plan.verdicts[0].need),
                (None, Some(M(64))),
                "with {actual}M: {plan:?}"
            );
        }
    }

    #[test]
    fn the_agent_is_heard_before_the_statistics_until_it_falls_silent_or_lies() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        a.stats = stats(0, M(100));
        a.agent = agent(0, M(480), M(30), M(90));
        let source = |now, a: &VmSample, history: &mut History| {
            plan_twice(&snapshot(now, M(1024), vec![a.clone()]), &config, history).verdicts[0].source
        };
        assert_eq!(source(0, &a, &mut history), Source::Agent);
        assert_eq!(source(3000, &a, &mut history), Source::Agent);
        a.stats = stats(3001, M(100));
        assert_eq!(source(3001, &a, &mut history), Source::Device, "silent for three ticks");
        a.agent = agent(4000, M(480), M(481), M(90));
        assert_eq!(source(4000, &a, &mut history), Source::Device, "more available than there is");
        a.agent = agent(4100, M(480), M(40), M(90));
        assert_eq!(source(4100, &a, &mut history), Source::Agent);
        a.stats = None;
        assert_eq!(source(60_000, &a, &mut history), Source::Nobody);
    }

    #[test]
    fn others_are_asked_for_what_a_measured_guest_grows_by_and_not_for_all_it_was_told_of() {
        let config = Config::default();
        let mut history = History::default();
        let (mut a, mut b) = (vm(1, M(64), M(128), M(512)), vm(2, M(64), M(384), M(512)));
        a.agent = agent(0, M(480), M(60), M(90));
        b.stats = stats(0, M(320));
        plan_twice(&snapshot(0, M(512), vec![a.clone(), b.clone()]), &config, &mut history);
        // It grew by 50M in half a second: 100M a second, so that it will use 218M in a second.
        a.agent = agent(500, M(480), M(10), M(90));
        let plan = plan_twice(&snapshot(500, M(512), vec![a, b]), &config, &mut history);
        assert_eq!(to(&plan, 2), Some(M(384 - 90)), "{plan:?}");
        assert!(matches!(
            plan.verdicts[0].reason,
            Reason::Distress { source: Source::Agent, wanted, .. } if wanted == M(218)
        ));
    }

    #[test]
    fn page_cache_that_is_read_again_is_needed_and_what_is_not_is_idle() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        let mut need = Vec::new();
        for second in 0..120u64 {
            // For 20 seconds it reads 2 MiB a second again; then it rests.
            let mut said = agent(second * 1000, M(480), M(60), M(0)).unwrap();
            said.stats.refaults = Some(512 * second.min(20));
            a.agent = Some(said);
            let plan = plan_twice(&snapshot(second * 1000, M(128), vec![a.clone()]), &config, &mut history);
            need.push(plan.verdicts[0].need.unwrap());
        }
        assert!(
            need[20] > need[0].plus(M(20)) && need[20] <= need[0].plus(M(62)),
            "{} {}",
            need[0],
            need[20]
        );
        assert!(need[119] < need[0].plus(M(3)), "forgotten: {}", need[119]);
        // Where there is room it gets what it works with at once.
        let mut history = History::default();
        for (second, refaults) in [(0, 0), (1, 16_384)] {
            let mut said = agent(second * 1000, M(480), M(60), M(0)).unwrap();
            said.stats.refaults = Some(refaults);
            a.agent = Some(said);
            let plan = plan_twice(&snapshot(second * 1000, M(1024), vec![a.clone()]), &config, &mut history);
            if second == 1 {
                assert_eq!(to(&plan, 1), plan.verdicts[0].need, "{plan:?}");
                assert!(matches!(plan.verdicts[0].reason, Reason::WorkingSet { .. }));
            }
        }
    }

    fn self_ballooning() -> VmSample {
        let mut a = vm(1, M(64), M(512), M(512));
        a.tunables.set("selfballooning", "on").unwrap();
        a.tunables.set("reserved_mb", "0").unwrap();
        a
    }

    #[test]
    fn a_self_ballooning_guest_shrinks_slowly_and_grows_at_once() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = self_ballooning();
        let mut at_second = Vec::new();
        for second in 0..30 {
            a.agent = agent(second * 1000, M(480), M(300), M(100));
            let plan = plan_twice(&snapshot(second * 1000, M(1024), vec![a.clone()]), &config, &mut history);
            if let Some(target) = to(&plan, 1) {
                assert!(
                    matches!(plan.verdicts[0].reason, Reason::SelfBalloon { goal, .. } if goal == M(132))
                );
                (a.target, a.actual) = (MemTarget(target), MemTarget(target));
            }
            at_second.push(a.target.0);
        }
        // 512 - (512 - 132) / 8 at 5 s, again at 10 s, ...
        assert_eq!(at_second[4], M(512));
        assert_eq!(at_second[5].0 / 4096, (512 * 256) - (380 * 256) / 8);
        assert!(at_second[10] < at_second[5] && at_second[10] == at_second[14]);
        a.agent = agent(29_300, M(480), M(280), M(400));
        let plan = plan_twice(&snapshot(29_300, M(1024), vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(432)), "at once, and all of it");
    }

    #[test]
    fn a_proposal_yields_to_a_pin_to_distress_and_to_a_short_host_and_never_takes_what_is_not_free() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = self_ballooning();
        for second in 0..6 {
            a.agent = agent(second * 1000, M(480), M(300), M(100));
            let plan = plan_twice(&snapshot(second * 1000, M(1024), vec![a.clone()]), &config, &mut history);
            if let Some(target) = to(&plan, 1) {
                (a.target, a.actual) = (MemTarget(target), MemTarget(target));
            }
        }
        let before = a.target.0;
        assert!(before < M(512));
        let mut held = a.clone();
        held.hold = Some(MemTarget(M(500)));
        let mut past = history.clone();
        let plan = plan_twice(&snapshot(6000, M(1024), vec![held]), &config, &mut past);
        assert_eq!((to(&plan, 1), plan.verdicts[0].state), (Some(M(500)), VmState::Held));
        let mut hurt = a.clone();
        hurt.agent = agent(6000, M(480), M(1), M(100));
        let mut past = history.clone();
        let plan = plan_twice(&snapshot(6000, M(1024), vec![hurt]), &config, &mut past);
        assert_eq!((to(&plan, 1), plan.verdicts[0].state), (Some(M(512)), VmState::Distressed));
        let mut past = history.clone();
        let plan = plan_twice(&snapshot(6000, M(300), vec![a.clone()]), &config, &mut past);
        assert_eq!(to(&plan, 1), Some(M(300)), "the host may go lower: {plan:?}");
        // What it proposes beyond what is free it does not get.
        a.agent = agent(6000, M(480), M(200), Bytes(1 << 63));
        let budget = before.plus(M(10));
        let plan = plan_twice(&snapshot(6000, budget, vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(budget), "{plan:?}");
    }

    #[test]
    fn memory_that_a_guest_takes_back_by_itself_is_distress() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(512));
        plan_twice(&snapshot(0, M(1024), vec![a.clone()]), &config, &mut history);
        a.actual = MemTarget(M(140));
        let plan = plan_twice(&snapshot(1000, M(1024), vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(512)));
        assert!(matches!(plan.actions[0].reason, Reason::Distress { signal: Signal::TookBack, .. }));
    }

    prop_compose! {
        fn any_sizes()(pages in prop::array::uniform3(256u64..1 << 22), weight in 1u32..10_000) -> Sizes {
            let mut pages = pages;
            pages.sort_unstable();
            let [floor, memory, maxmem] = pages.map(|p| PageCount(p).bytes());
            Sizes::new(memory, maxmem, Some(floor), Some(weight)).unwrap()
        }
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            (0u64..1 << 34).prop_map(Bytes),
            any::<u64>().prop_map(Bytes),
            Just(Bytes::ZERO),
            Just(Bytes(u64::MAX))
        ]
    }

    prop_compose! {
        fn any_stats(now: u64)(
            at in prop_oneof![Just(now), any::<u64>()],
            available in prop::option::of(any_bytes()),
            swap_in in prop::option::of(any_bytes()),
            oom_kills: Option<u64>,
            alloc_stalls: Option<u64>,
        ) -> StatsSample {
            let stats = GuestStats { available, swap_in, oom_kills, alloc_stalls, ..GuestStats::default() };
            StatsSample { at: MonoTime(at), stats }
        }
    }

    prop_compose! {
        /// Anything an agent could say; half of the time something that could be true.
        fn any_agent(now: u64)(
            at in prop_oneof![Just(now), any::<u64>()],
            sizes in prop::array::uniform6(prop::option::of(any_bytes())),
            could_be: bool,
            counts in prop::array::uniform4(any::<Option<u64>>()),
            psi in prop::option::of((any::<u64>(), any::<u64>())),
        ) -> AgentSample {
            let [mut total, mut free, mut available, committed, cached, reserve] = sizes;
            if could_be {
                total = Some(Bytes(1 << 20));
                free = Some(Bytes(free.map_or(0, |b| b.0 & 0xf_ffff)));
                available = Some(Bytes(available.map_or(0, |b| b.0 & 0xf_ffff)));
            }
            let [swap_in, refaults, alloc_stalls, oom_kills] = counts;
            let (cached, reserve) = if could_be { (Some(Bytes(1 << 19)), None) } else { (cached, reserve) };
            let psi = psi.map(|(some_us, full_us)| PsiTotals { some_us, full_us });
            let stats = AgentStats {
                total, free, available, committed, cached, reserve, swap_in, refaults, alloc_stalls, oom_kills, psi,
                ..AgentStats::default()
            };
            AgentSample { at: MonoTime(at), stats }
        }
    }

    prop_compose! {
        fn any_tunables()(
            selfballooning: bool,
            numbers in prop::array::uniform4(prop_oneof![0u64..9, any::<u64>()]),
            reserved_mb: Option<u64>,
        ) -> Tunables {
            let [interval, down, up, min_usable_mb] = numbers;
            Tunables {
                selfballooning,
                selfballoon_interval: interval,
                selfballoon_downhysteresis: down,
                selfballoon_uphysteresis: up,
                min_usable_mb,
                reserved_mb,
                ..Tunables::default()
            }
        }
    }

    prop_compose! {
        fn any_vm(id: u64, now: u64)(
            sizes in any_sizes(),
            overhead in any_bytes(),
            link in prop_oneof![6 => Just(Link::Up), 1 => Just(Link::NoDriver), 1 => Just(Link::Unreachable)],
            target in any_bytes(),
            settled: bool,
            actual in any_bytes(),
            resident in prop::option::of(any_bytes()),
            hold in prop::option::weighted(0.2, any_bytes()),
            stats in prop::option::of(any_stats(now).boxed()),
            agent in prop::option::of(any_agent(now).boxed()),
            tunables in any_tunables().boxed(),
        ) -> VmSample {
            // Most targets are ones that the arbiter could have set, but not all.
            let target = if settled { sizes.clamp(target) } else { MemTarget(target) };
            let actual = MemTarget(if settled { actual.min(sizes.maxmem()) } else { actual });
            let name = VmName::new(&format!("vm{id}")).unwrap();
            VmSample { id: VmId(id), name, sizes, overhead, link, target, actual, resident, hold: hold.map(MemTarget), stats, agent, tunables }
        }
    }

    fn any_snapshot(now: u64) -> impl Strategy<Value = Snapshot> {
        // Boxed: these strategies are large, and a test's stack is not.
        let vms = prop::collection::vec(0u64..12, 0..8).prop_flat_map(move |mut ids| {
            ids.sort_unstable();
            ids.dedup();
            ids.into_iter().map(|id| any_vm(id, now).boxed()).collect::<Vec<_>>()
        });
        let psi = prop::option::of(
            (any::<u64>(), any::<u64>()).prop_map(|(some_us, full_us)| PsiTotals { some_us, full_us }),
        );
        (vms.boxed(), any_bytes(), any_bytes(), any_bytes(), psi).prop_map(
            move |(vms, budget, available, low, psi)| Snapshot {
                now: MonoTime(now),
                host: HostSample { budget, available, low, psi, swap_in_pages: 0, swap_out_pages: 0 },
                vms,
            },
        )
    }

    fn claim(vm: &VmSample, target: Bytes) -> u128 {
        let holds = match (vm.link, vm.resident) {
            (Link::NoDriver, Some(resident)) => resident.min(vm.sizes.maxmem()),
            (Link::NoDriver, None) => vm.sizes.maxmem(),
            _ => vm.actual.0,
        };
        u128::from(target.max(holds).0) + u128::from(vm.overhead.0)
    }

    /// Who is in distress and does not get what it wants lacks it because nothing is free any more.
    fn answered(snapshot: &Snapshot, plan: &Plan) -> Result<(), TestCaseError> {
        let target = |vm: &VmSample| {
            plan.actions.iter().find(|a| a.vm == vm.id).map_or(vm.sizes.clamp(vm.target.0).0, |a| a.to.0)
        };
        let sum = |of: &dyn Fn(&VmSample) -> Bytes| -> u128 {
            snapshot.vms.iter().map(|vm| claim(vm, of(vm))).sum()
        };
        let raised = |vm: &VmSample| vm.sizes.clamp(vm.target.0).0.max(target(vm));
        let before = sum(&|vm| vm.sizes.clamp(vm.target.0).0);
        let granted = sum(&raised) - before;
        let host = &snapshot.host;
        let free = u128::from(host.budget.0)
            .saturating_sub(before)
            .min(u128::from(host.available.minus(host.low).0));
        for (vm, verdict) in snapshot.vms.iter().zip(&plan.verdicts) {
            let lowered = target(vm) < vm.sizes.clamp(vm.target.0).0;
            if let Reason::Distress { wanted, .. } = verdict.reason
                && plan.host != HostState::Short
                && !lowered
                && target(vm) < wanted
            {
                let rest = free.saturating_sub(granted);
                prop_assert!(rest < 4096 * 16, "{} left, and {} lacks: {:?}", rest, vm.name, plan);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn for_any_input(
            snapshots in prop::collection::vec((0u64..20_000_000).prop_flat_map(any_snapshot).boxed(), 1..6),
        ) {
            let config = Config::default();
            let mut history = History::default();
            for snapshot in &snapshots {
                let plan = plan_twice(snapshot, &config, &mut history);
                prop_assert_eq!(plan.verdicts.len(), snapshot.vms.len());
                let mut before: u128 = 0;
                let mut after: u128 = 0;
                for vm in &snapshot.vms {
                    let action = plan.actions.iter().find(|a| a.vm == vm.id);
                    let old = vm.sizes.clamp(vm.target.0).0;
                    let new = action.map_or(old, |a| a.to.0);
                    if let Some(action) = action {
                        prop_assert!(action.to.0 >= vm.sizes.floor() && action.to.0 <= vm.sizes.maxmem());
                        prop_assert!(action.to.0.is_page_multiple());
                        prop_assert_eq!(action.from, vm.target);
                        prop_assert!(vm.link != Link::Unreachable);
                        if let Some(hold) = vm.hold {
                            let hold = vm.sizes.clamp(hold.0).0;
                            prop_assert!(action.to.0 == hold || action.to.0 == old || action.to.0 < hold, "held within its pin");
                        }
                    }
                    before += claim(vm, old);
                    after += claim(vm, new);
                }
                answered(snapshot, &plan)?;
                prop_assert!(after <= before.max(u128::from(snapshot.host.budget.0)), "granted beyond the budget: {before} -> {after}, {:?}", plan);
                let growing = plan.actions.iter().position(|a| a.to > a.from).unwrap_or(plan.actions.len());
                prop_assert!(plan.actions[growing..].iter().all(|a| a.to > a.from), "shrinking first");
            }
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Guests that obey, with loads that fit: after a while nobody is in distress and the budget holds.
        #[test]
        fn loads_that_fit_are_served(seed: u64, n in 2u64..9) {
            let mut world = World::new(seed, n, M(96 * n));
            for _ in 0..6 {
                world.draw_loads();
                let mut calm = 0;
                for _ in 0..400 {
                    let plan = world.tick(100);
                    prop_assert!(world.held() <= world.budget.0, "holds {} of {}", world.held(), world.budget.0);
                    calm = if plan.verdicts.iter().all(|v| v.state != VmState::Distressed) { calm + 1 } else { 0 };
                }
                prop_assert!(calm > 100, "still in distress after 40 s: {:?}", world.vms);
            }
        }
    }
}
