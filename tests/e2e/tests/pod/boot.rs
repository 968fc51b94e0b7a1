//! A guest that believes in all it was told of boots within what it is granted.

use plimsoll_e2e::{Bed, CALM, PATIENCE, Vm, mib};

use crate::kit::{MAXMEM, MEMORY, Meter, boot, pager, possible, said};

/// What a kernel keeps for itself of what it is told of, at most: its image, and what describes each page.
const KERNELS: u64 = 64;

/// Boots, and is ballooned down to its target. Its resident memory is never above that.
fn boots(test: &str, append: &str, check: impl FnOnce(&Vm<'_>, &Meter)) {
    let Some(()) = possible(test) else { return };
    let Some(bed) = Bed::new(test, CALM) else { return };
    let append = format!("loglevel=5 {append}");
    let Some((vm, meter)) = boot(&bed, "web", &["--append", &append]) else { return };
    let total = vm.meminfo("total");
    assert!(total >= mib(MAXMEM - KERNELS) && total <= mib(MAXMEM), "the guest believes in {total}");
    // The driver covers what was promised and not granted: what the guest could still touch, it may have.
    let view = vm.wait("its balloon to cover the rest", PATIENCE, |view| {
        view.actual.0 == mib(MEMORY)
            && said(view).is_some_and(|pager| {
                pager.resident.plus(pager.outstanding.bytes()) <= mib(MEMORY) && pager.limit == mib(MEMORY)
            })
    });
    assert_eq!((view.target.0, view.state.to_string().as_str()), (mib(MEMORY), "ok"), "{view:#?}");
    check(&vm, &meter);
    meter.never_above(mib(MEMORY));
    assert_eq!(bed.count("web", "target"), 0, "{:#?}", bed.events(Some("web")));

    // What is told is what is counted.
    let (told, counted) = (pager(&vm).resident, vm.resident());
    assert!(told.0.abs_diff(counted.0) <= mib(8).0, "{told} told, {counted} counted");
    bed.ok(&["stop", "web", "--kill"]);
    bed.only_the_daemon_is_left();
}

#[test]
fn a_guest_boots_within_half_of_what_it_is_told_of() {
    boots("a_guest_boots_within_half_of_what_it_is_told_of", "", |vm, _| {
        let pager = pager(vm);
        let whole = pager.populated_frames * 512;
        let all = whole + pager.populated_pages;
        assert!(whole * 10 >= all * 9, "{whole} of {all} pages came in whole frames: {pager:?}");
        assert_eq!(pager.stalls, 0, "{pager:?}");
    });
}

#[test]
fn a_guest_that_zeroes_all_its_memory_boots_within_half_of_it() {
    boots("a_guest_that_zeroes_all_its_memory_boots_within_half_of_it", "memtest=1", |vm, meter| {
        let pager = pager(vm);
        assert!(pager.sweeps > 0 && pager.swept_pages > 0, "{pager:?}");
        // Without a sweep that would be all it was told of.
        assert!(meter.most() > mib(MEMORY / 2), "it has touched {} only", meter.most());
    });
}

#[test]
fn a_guest_that_is_only_ballooned_later_touches_what_it_likes_until_then() {
    const TEST: &str = "a_guest_that_is_only_ballooned_later_touches_what_it_likes_until_then";
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    let Some((vm, _meter)) = boot(&bed, "web", &["--no-pod", "--append", "loglevel=5"]) else { return };
    vm.reaches(mib(MEMORY));
    let view = vm.view();
    assert_eq!((view.pager, view.keeper), (None, None), "{view:#?}");
}
