//! One scene after the other: what is done, and what is left alone.

mod test {
    use plimsoll_model::*;
    use plimsoll_policy::{Config, History};
    use plimsoll_units::*;

    use crate::kit::*;
    use crate::world::vm;

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
    fn who_is_owed_memory_is_not_asked_for_it() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(160), M(256));
        a.stats = stats(0, M(100));
        plan_twice(&snapshot(0, M(176), vec![a.clone()]), &config, &mut history);
        a.sizes = a.sizes.with_memory(M(240)).unwrap();
        a.stats = stats(1000, M(100));
        let plan = plan_twice(&snapshot(1000, M(176), vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(176)), "{plan:?}");
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
        let mut early = None;
        for second in 0..200 {
            // At first nobody waits for it; then little is free.
            let budget = if second < 30 { M(1024) } else { M(310) };
            early = early.or((second == 30).then_some(v.target.0));
            v.stats = stats(second * 1000, v.actual.0.minus(M(40)));
            let plan = plan_twice(&snapshot(second * 1000, budget, vec![v.clone()]), &config, &mut history);
            if let Some(target) = to(&plan, 1) {
                assert!(target < v.target.0, "slowly, and one way");
                v.target = MemTarget(target);
                v.actual = v.target;
            }
        }
        assert!(early.unwrap() > M(200), "slower while nobody waits: {early:?}");
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
        // To the last: the other is in distress and wants all it was told of. Half as much again as the margin is left.
        assert_eq!(to(&plan, 1), Some(M(55)));
        a.target = MemTarget(M(55));
        for (now, actual) in [(100, 160), (200, 100), (300, 55)] {
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
}
