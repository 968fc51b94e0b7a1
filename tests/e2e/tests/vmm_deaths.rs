//! VMMs killed again and again: gone at once, and others get their memory.
//!
//! The programs of Plimsoll are killed in `kills`.

mod test {
    use std::time::{Duration, Instant};

    use plimsoll_api::http::{Life, ProcessRef};
    use plimsoll_e2e::{Bed, Kind, PATIENCE, Vm, mib, sizes};
    use plimsoll_testbed::wait::poll_until;
    use rustix::process::{Pid, Signal, kill_process};

    /// How often each kind of process is killed.
    const KILLS: usize = 20;
    /// Configuration before all sections: a daemon that looks often, so that the tests wait less for it.
    const OFTEN: &str = "tick = \"200ms\"\n";

    /// SIGKILL to one process and nothing of its group.
    #[track_caller]
    fn kill(process: Option<ProcessRef>) {
        let pid = process.and_then(|process| Pid::from_raw(i32::try_from(process.pid).ok()?));
        kill_process(pid.expect("its process is known"), Signal::KILL).expect("it can be killed");
    }

    #[track_caller]
    fn verified(vm: &Vm<'_>) {
        let verdict = vm.send("verify");
        assert!(verdict.number("pages") > Some(0), "{}", verdict.text());
        assert_eq!(verdict.number("bad_pages"), Some(0), "{}", verdict.text());
    }

    #[test]
    fn a_killed_vmm_is_gone_at_once_and_others_get_its_memory() {
        // Both baselines do not fit, the first alone does.
        let config = format!(
            "{OFTEN}[host]\nbudget = \"248M\"\nlow = \"1M\"\noverhead-uml = \"16M\"\n[policy]\nhost-stall = \"100%\"\n"
        );
        let Some(bed) = Bed::new("a_killed_vmm", &config) else { return };
        let Some(other) = bed.run(Kind::Uml, "other", sizes(200, 224, 64), &[]) else { return };
        other.reaches(mib(200));
        other.send("fill 16M 9");
        for _ in 0..KILLS {
            let Some(victim) = bed.run(Kind::Uml, "victim", sizes(96, 128, 64), &[]) else { return };
            let squeezed = other.wait("to have given", PATIENCE, |view| view.target.0 < mib(150)).target.0;
            let view = victim.view();
            let begin = Instant::now();
            kill(view.vmm);
            victim.wait("to be gone", Duration::from_secs(10), |view| view.life == Life::Gone);
            assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
            other.wait("to get memory", PATIENCE, |view| view.actual.0 >= squeezed.plus(mib(16)));
            bed.ok(&["stop", "victim"]);
            // Its helper processes are ended too, so its memory is the host's again.
            let gone = || {
                let left: Vec<_> =
                    bed.processes().into_iter().filter(|line| line.contains("victim")).collect();
                if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
            };
            poll_until(PATIENCE, "nothing of the victim", gone).unwrap_or_else(|error| panic!("{error}"));
            assert!(!bed.vm_dir("victim").exists());
        }
        verified(&other);
    }
}
