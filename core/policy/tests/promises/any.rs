//! Any input at all, and a closed loop.

mod test {
    use plimsoll_model::*;
    use plimsoll_policy::{Config, History};
    use plimsoll_units::*;
    use proptest::prelude::*;

    use crate::kit::*;
    use crate::world::World;

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
        /// Anything a pager could say; often what it could be true.
        fn any_pager(maxmem: Bytes)(
            limit in any_bytes(),
            could_be: bool,
            resident in any_bytes(),
            stalled_ms in prop::option::of(prop_oneof![0u64..5_000, any::<u64>()]),
            on_exhausted in prop::sample::select(&OnExhausted::ALL[..]),
        ) -> PagerSample {
            let limit = if could_be { Bytes(limit.0 % (maxmem.0 + 1)).pages_floor().bytes() } else { limit };
            PagerSample { limit, resident, stalled_ms, on_exhausted }
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
            pager in prop::option::weighted(0.4, any_pager(Bytes::gib(4)).boxed()),
        ) -> VmSample {
            // Most targets are ones that the arbiter could have set, but not all.
            let target = if settled { sizes.clamp(target) } else { MemTarget(target) };
            let actual = MemTarget(if settled { actual.min(sizes.maxmem()) } else { actual });
            let name = VmName::new(&format!("vm{id}")).unwrap();
            VmSample { id: VmId(id), name, sizes, overhead, link, target, actual, resident, hold: hold.map(MemTarget), stats, agent, tunables, pager }
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
            _ if vm.pager.is_some() => vm.pager.unwrap().limit.min(vm.sizes.maxmem()),
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
            if let Reason::Distress { wanted, .. } | Reason::Exhausted { wanted, .. } = verdict.reason
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
