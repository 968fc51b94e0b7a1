//! What an agent changes, and a guest that proposes its own target.

mod test {
    use plimsoll_model::*;
    use plimsoll_policy::{Config, History};
    use plimsoll_units::*;

    use crate::kit::*;
    use crate::world::vm;

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
        // A host that was stalled did not listen itself.
        assert_eq!(source(7000, &a, &mut history.clone()), Source::Agent, "one tick without a word");
        for now in [1000, 2000, 3000] {
            assert_eq!(source(now, &a, &mut history), Source::Agent);
        }
        a.stats = stats(3001, M(100));
        assert_eq!(source(3001, &a, &mut history), Source::Device, "silent for three ticks");
        a.agent = agent(4000, M(480), M(481), M(90));
        assert_eq!(source(4000, &a, &mut history), Source::Device, "more available than there is");
        a.agent = agent(4100, M(480), M(40), M(90));
        assert_eq!(source(4100, &a, &mut history), Source::Agent);
        a.stats = None;
        let later = [60_000, 61_000, 62_000].map(|now| source(now, &a, &mut history));
        assert_eq!(later[2], Source::Nobody);
    }

    #[test]
    fn others_are_asked_for_what_a_measured_guest_grows_by_and_not_for_all_it_was_told_of() {
        let config = Config::default();
        let mut history = History::default();
        let (mut a, mut b) = (vm(1, M(64), M(128), M(512)), vm(2, M(64), M(384), M(512)));
        a.agent = agent(0, M(480), M(60), M(90));
        b.stats = stats(0, M(320));
        plan_twice(&snapshot(0, M(512), vec![a.clone(), b.clone()]), &config, &mut history);
        // It grew by 50M in half a second: in three it would use 418M, of which it is given half of what it holds now.
        a.agent = agent(500, M(480), M(10), M(90));
        let plan = plan_twice(&snapshot(500, M(512), vec![a, b]), &config, &mut history);
        assert_eq!(to(&plan, 2), Some(M(384 - 54)), "{plan:?}");
        assert!(matches!(
            plan.verdicts[0].reason,
            Reason::Distress { source: Source::Agent, wanted, .. } if wanted == M(118 + 64)
        ));
    }

    #[test]
    fn a_guest_that_pleads_again_is_given_more_each_time_up_to_half_of_what_it_holds() {
        let config = Config::default();
        let mut history = History::default();
        let mut a = vm(1, M(64), M(128), M(1024));
        a.stats = stats(0, M(2));
        let mut wanted = Vec::new();
        for plea in 0..5u64 {
            // Held back: it uses all it has and shows no slope.
            a.agent = agent(plea * 200, M(1000), M(2), M(90));
            let plan = plan_twice(&snapshot(plea * 200, M(1024), vec![a.clone()]), &config, &mut history);
            let Reason::Distress { wanted: now, .. } = plan.verdicts[0].reason else { panic!("{plan:?}") };
            wanted.push(now.minus(M(126)).whole_mib());
            let again =
                plan_twice(&snapshot(plea * 200 + 100, M(1024), vec![a.clone()]), &config, &mut history);
            assert_eq!(again.verdicts[0].reason, plan.verdicts[0].reason, "the same word is one plea");
        }
        assert_eq!(wanted, [21, 32, 64, 64, 64]);
        a.agent = agent(2000, M(1000), M(70), M(90));
        plan_twice(&snapshot(2000, M(1024), vec![a.clone()]), &config, &mut history);
        a.agent = agent(9000, M(1000), M(2), M(90));
        a.actual = MemTarget(M(256));
        a.target = a.actual;
        let plan = plan_twice(&snapshot(9000, M(1024), vec![a]), &config, &mut history);
        assert!(
            matches!(plan.verdicts[0].reason, Reason::Distress { wanted, .. } if wanted < M(256 + 64)),
            "a clean sheet after the end of distress: {plan:?}"
        );
    }

    #[test]
    fn a_guest_that_reads_back_what_it_had_swapped_out_with_plenty_available_is_not_in_distress() {
        let config = Config::default();
        for (available, state) in [(M(20), VmState::Distressed), (M(190), VmState::Ok)] {
            let mut history = History::default();
            let mut a = vm(1, M(64), M(128), M(256));
            (a.actual, a.target) = (MemTarget(M(256)), MemTarget(M(256)));
            let mut said = agent(0, M(240), M(40), M(90)).unwrap();
            said.stats.swap_in = Some(0);
            a.agent = Some(said);
            plan_twice(&snapshot(0, M(512), vec![a.clone()]), &config, &mut history);
            let mut said = agent(1000, M(240), available, M(90)).unwrap();
            said.stats.swap_in = Some(5000);
            a.agent = Some(said);
            let plan = plan_twice(&snapshot(1000, M(512), vec![a]), &config, &mut history);
            assert_eq!(plan.verdicts[0].state, state, "{plan:?}");
        }
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
        a.agent = agent(6000, M(480), M(200), Bytes(1 << 50));
        let budget = before.plus(M(10));
        let plan = plan_twice(&snapshot(6000, budget, vec![a]), &config, &mut history);
        assert_eq!(to(&plan, 1), Some(budget), "{plan:?}");
    }
}
