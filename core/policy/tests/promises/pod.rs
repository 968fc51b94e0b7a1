//! Guests whose memory is populated on demand.

mod test {
    use plimsoll_model::*;
    use plimsoll_policy::{Config, History};
    use plimsoll_units::*;

    use crate::kit::*;
    use crate::world::vm;

    /// A VM that boots: no driver yet, `resident` populated of what it may have.
    fn booting(id: u64, memory: Bytes, maxmem: Bytes, resident: Bytes) -> VmSample {
        let pager =
            PagerSample { limit: memory, resident, stalled_ms: None, on_exhausted: OnExhausted::Grow };
        VmSample {
            link: Link::NoDriver,
            actual: MemTarget(maxmem),
            pager: Some(pager),
            ..vm(id, M(64), memory, maxmem)
        }
    }

    /// The same, waiting for memory.
    fn stalled(id: u64, memory: Bytes, maxmem: Bytes, on_exhausted: OnExhausted) -> VmSample {
        let mut vm = booting(id, memory, maxmem, memory);
        vm.pager = vm.pager.map(|pager| PagerSample { stalled_ms: Some(7), on_exhausted, ..pager });
        vm
    }

    /// What was decided is in force, in the pager too.
    fn follow(vm: &mut VmSample, plan: &Plan) {
        if let Some(target) = to(plan, vm.id.0) {
            vm.target = MemTarget(target);
            vm.pager = vm.pager.map(|pager| PagerSample { limit: target.max(pager.resident), ..pager });
        }
    }

    fn word(plan: &Plan, index: usize) -> (VmState, Reason) {
        (plan.verdicts[index].state, plan.verdicts[index].reason)
    }

    #[test]
    fn what_a_pager_allows_is_claimed_and_not_all_that_was_told() {
        let vms = vec![booting(1, M(256), M(1024), M(40)), booting(2, M(256), M(1024), M(256))];
        let plan = plan_twice(&snapshot(0, M(600), vms), &Config::default(), &mut History::default());
        assert_eq!((plan.claimed, plan.host, plan.actions.len()), (M(512), HostState::Ample, 0), "{plan:?}");
        assert_eq!(word(&plan, 0), (VmState::NoDriver, Reason::NoDriver));
    }

    #[test]
    fn a_guest_that_waits_is_given_more_in_the_same_tick_and_twice_that_each_time() {
        let (config, mut history) = (Config::default(), History::default());
        let mut a = stalled(1, M(256), M(1024), OnExhausted::Grow);
        let mut targets = Vec::new();
        for tick in 0..6 {
            let plan = plan_twice(&snapshot(tick * 100, M(4096), vec![a.clone()]), &config, &mut history);
            assert_eq!(plan.verdicts[0].state, if tick < 4 { VmState::Distressed } else { VmState::Stalled });
            follow(&mut a, &plan);
            targets.push(a.target.0);
            // It uses that up at once.
            a.pager = a.pager.map(|pager| PagerSample { resident: pager.limit, ..pager });
        }
        // 32M more, then 72M, then 180M (an eighth of what it has, doubled and doubled), then all there is.
        assert_eq!(targets, [288, 360, 540, 1024, 1024, 1024].map(M));
        // Once it has been quiet for a while it begins with little again.
        let mut quiet = booting(1, M(256), M(1024), M(256));
        plan_twice(&snapshot(10_000, M(4096), vec![quiet.clone()]), &config, &mut history);
        quiet.pager = stalled(1, M(256), M(1024), OnExhausted::Grow).pager;
        let plan = plan_twice(&snapshot(10_100, M(4096), vec![quiet]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(288)));
        assert!(matches!(
            plan.actions[0].reason,
            Reason::Exhausted { granted, wanted, stalled_ms: 7, .. } if granted == M(32) && wanted == M(288)
        ));
    }

    #[test]
    fn nothing_new_is_asked_for_before_the_pager_has_what_was_granted() {
        let (config, mut history) = (Config::default(), History::default());
        let mut a = stalled(1, M(256), M(1024), OnExhausted::Grow);
        let plan = plan_twice(&snapshot(0, M(4096), vec![a.clone()]), &config, &mut history);
        a.target = MemTarget(to(&plan, 1).unwrap());
        for now in [20, 40, 60] {
            let plan = plan_twice(&snapshot(now, M(4096), vec![a.clone()]), &config, &mut history);
            assert_eq!((plan.actions.len(), plan.verdicts[0].state), (0, VmState::Distressed), "{plan:?}");
        }
        follow(&mut a, &plan);
        let plan = plan_twice(&snapshot(80, M(4096), vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(288 + 72)));
    }

    #[test]
    fn who_is_to_wait_waits_until_an_operator_gives_it_more() {
        let (config, mut history) = (Config::default(), History::default());
        for (on_exhausted, why) in
            [(OnExhausted::Wait, Standstill::Wait), (OnExhausted::Stop, Standstill::Stop)]
        {
            let mut a = stalled(1, M(256), M(1024), on_exhausted);
            let plan = plan_twice(&snapshot(0, M(4096), vec![a.clone()]), &config, &mut history);
            assert_eq!(plan.actions, []);
            let numbers = Reason::Stalled { limit: M(256), resident: M(256), stalled_ms: 7, why };
            assert_eq!(word(&plan, 0), (VmState::Stalled, numbers));
            a.sizes = a.sizes.with_memory(M(512)).unwrap();
            let plan = plan_twice(&snapshot(100, M(4096), vec![a]), &config, &mut history);
            assert_eq!((to(&plan, 1), plan.verdicts[0].state), (Some(M(512)), VmState::Distressed));
        }
    }

    #[test]
    fn others_are_asked_and_where_they_have_nothing_it_stands_still() {
        let (config, mut history) = (Config::default(), History::default());
        let a = stalled(1, M(256), M(1024), OnExhausted::Grow);
        let mut b = vm(2, M(64), M(256), M(512));
        b.stats = stats(0, M(200));
        let vms = |b: &VmSample| vec![a.clone(), b.clone()];
        let plan = plan_twice(&snapshot(0, M(512), vms(&b)), &config, &mut history);
        assert_eq!((to(&plan, 1), plan.verdicts[0].state), (None, VmState::Distressed), "{plan:?}");
        let given = to(&plan, 2).unwrap();
        assert!(given <= M(256 - 32) && plan.waiting == M(32), "{plan:?}");
        // It arrives, and is granted by the tick that sees it arrive: by now more is wanted.
        b.target = MemTarget(given);
        b.actual = MemTarget(given);
        b.stats = stats(100, M(10));
        let plan = plan_twice(&snapshot(100, M(512), vms(&b)), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(512).minus(given)));

        let mut history = History::default();
        b = vm(2, M(256), M(256), M(512));
        b.stats = stats(0, M(40));
        let plan = plan_twice(&snapshot(0, M(512), vms(&b)), &config, &mut history);
        assert_eq!(plan.actions, []);
        let nothing = |r: &Reason| matches!(r, Reason::Stalled { why: Standstill::NothingFree, .. });
        assert!(plan.verdicts[0].state == VmState::Stalled && nothing(&plan.verdicts[0].reason), "{plan:?}");
        assert_eq!(plan.host, HostState::Tight);
    }

    #[test]
    fn a_pin_wins_over_a_guest_that_waits_and_is_shown_as_the_reason() {
        let mut a = stalled(1, M(256), M(1024), OnExhausted::Grow);
        a.hold = Some(MemTarget(M(256)));
        let plan =
            plan_twice(&snapshot(0, M(4096), vec![a.clone()]), &Config::default(), &mut History::default());
        assert_eq!(plan.actions, []);
        assert!(matches!(word(&plan, 0), (VmState::Stalled, Reason::Stalled { why: Standstill::Held, .. })));
        a.hold = Some(MemTarget(M(512)));
        let plan = plan_twice(&snapshot(0, M(4096), vec![a]), &Config::default(), &mut History::default());
        assert_eq!((to(&plan, 1), plan.verdicts[0].state), (Some(M(512)), VmState::Held));
    }

    #[test]
    fn a_kernel_without_memory_is_named() {
        let a = stalled(1, M(512), M(512), OnExhausted::Grow);
        let plan = plan_twice(&snapshot(0, M(4096), vec![a]), &Config::default(), &mut History::default());
        assert!(matches!(
            word(&plan, 0),
            (VmState::Stalled, Reason::Stalled { why: Standstill::AtMaxmem, .. })
        ));
    }

    #[test]
    fn without_a_driver_a_baseline_is_set_both_ways_and_nothing_is_counted_on() {
        let (config, mut history) = (Config::default(), History::default());
        let mut a = booting(1, M(512), M(1024), M(300));
        let mut b = vm(2, M(64), M(128), M(512));
        b.stats = stats(0, M(1));
        let vms = |a: &VmSample| vec![a.clone(), b.clone()];
        plan_twice(&snapshot(0, M(640), vms(&a)), &config, &mut history);
        a.sizes = a.sizes.with_memory(M(256)).unwrap();
        let plan = plan_twice(&snapshot(100, M(640), vms(&a)), &config, &mut history);
        assert_eq!((to(&plan, 1), plan.waiting), (Some(M(256)), Bytes::ZERO), "{plan:?}");
        assert_eq!(plan.actions[0].reason, Reason::Baseline { memory: M(256) });
        // The pager keeps what is populated; the rest is free now.
        follow(&mut a, &plan);
        assert_eq!(a.pager.unwrap().limit, M(300));
        let plan = plan_twice(&snapshot(200, M(640), vms(&a)), &config, &mut history);
        assert_eq!((plan.claimed, to(&plan, 2)), (M(300 + 128), Some(M(340))), "{plan:?}");
        a.sizes = a.sizes.with_memory(M(600)).unwrap();
        let plan = plan_twice(&snapshot(300, M(4096), vms(&a)), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(M(600)));
    }

    #[test]
    fn a_guest_that_boots_again_gets_what_it_was_promised_to_begin_with() {
        let mut a = booting(1, M(256), M(512), M(30));
        a.target = MemTarget(M(100));
        a.pager = a.pager.map(|pager| PagerSample { limit: M(100), ..pager });
        let plan = plan_twice(&snapshot(0, M(4096), vec![a]), &Config::default(), &mut History::default());
        assert_eq!(to(&plan, 1), Some(M(256)));
    }

    #[test]
    fn a_short_host_counts_on_nothing_that_stands_still() {
        // The one that waits holds far more than its floor, but cannot give it.
        let a = stalled(1, M(256), M(1024), OnExhausted::Grow);
        let mut b = vm(2, M(64), M(256), M(512));
        b.stats = stats(0, M(10));
        let plan = plan_twice(&snapshot(0, M(448), vec![a, b]), &Config::default(), &mut History::default());
        assert_eq!((to(&plan, 1), to(&plan, 2)), (None, Some(M(192))), "{plan:?}");
    }

    #[test]
    fn a_guest_that_goes_on_is_not_asked_at_once_for_what_ended_its_wait() {
        let (config, mut history) = (Config::default(), History::default());
        let mut a = stalled(1, M(128), M(1024), OnExhausted::Grow);
        a.link = Link::Up;
        a.stats = stats(0, M(60));
        let plan = plan_twice(&snapshot(0, M(400), vec![a.clone()]), &config, &mut history);
        follow(&mut a, &plan);
        a.actual = a.target;
        a.pager = a.pager.map(|pager| PagerSample { stalled_ms: None, ..pager });
        let asked = |now: u64, history: &mut History| {
            let mut a = a.clone();
            a.stats = stats(now, M(100));
            let plan = plan_twice(&snapshot(now, a.target.0, vec![a]), &config, history);
            to(&plan, 1)
        };
        assert_eq!(asked(1_000, &mut history), None);
        assert!(asked(9_000, &mut history).is_some(), "later it is as idle as any other");
    }

    #[test]
    fn journals_of_before_there_were_pagers_are_read() {
        let (config, mut history) = (Config::default(), History::default());
        let past = snapshot(0, M(1024), vec![vm(1, M(64), M(128), M(512))]);
        plan_twice(&past, &config, &mut history);
        let text = serde_json::to_string(&(&past, &history)).unwrap();
        let older = text.replace(",\"exhausted\":null", "");
        assert!(older.len() < text.len() && !older.contains("pager"), "{older}");
        assert_eq!(serde_json::from_str::<(Snapshot, History)>(&older).unwrap(), (past, history));
        serde_json::from_str::<Config>("{\"distress-share\":62500}").unwrap();
    }
}
