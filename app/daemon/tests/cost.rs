//! What the daemon costs: 35 VMs, one tick a second, real sockets, the real control protocol.
//!
//! `cargo test -p plimsolld --release --test cost -- --nocapture` measures and prints one JSON line; the limits are
//! those of the issue (1 % of a core, 30 MiB). A build without optimisation is held to ten times the time, so that
//! every run of the tests can fail here.

#[cfg(test)]
#[path = "daemon/common/mod.rs"]
#[expect(dead_code, reason = "shared with the other tests, which use the rest")]
mod common;

#[cfg(test)]
mod test {
    use std::fs;

    use plimsoll_units::Bytes;

    use crate::common::{Daemon, backend::Backend, sizes, wait_for};

    const VMS: u64 = 35;

    /// Ticks over which is measured.
    const TICKS: u64 = 20;

    /// User and system time of a process in microseconds, by /proc/PID/schedstat's exact count where there is
    /// one, else by clock ticks (proc_pid_stat(5), fields 14 and 15).
    fn cpu_us(pid: u32) -> u64 {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let Ok(text) = fs::read_to_string(task.unwrap().path().join("schedstat")) else {
                return ticks_us(pid);
            };
            sum += text.split(' ').next().unwrap().parse::<u64>().unwrap() / 1000;
        }
        sum
    }

    fn ticks_us(pid: u32) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks * 1_000_000 / rustix::param::clock_ticks_per_second()
    }

    fn status_kib(pid: u32, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn thirty_five_vms_cost_less_than_a_hundredth_of_a_core_and_30_mib() {
        let place = tempfile::tempdir().unwrap();
        // The journal is part of the cost.
        let config = format!(
            "[host]\nbudget = \"16G\"\nlow = \"1M\"\n[journal]\ndir = {:?}\n",
            place.path().join("journal").to_str().unwrap()
        );
        let daemon = Daemon::start_logging(&config, "info");
        let backends: Vec<Backend> =
            (0..VMS).map(|n| Backend::start(daemon.dir.path(), &format!("vm{n}"), 512, 60 + n)).collect();
        for (n, backend) in backends.iter().enumerate() {
            daemon.register(&format!("vm{n}"), &backend.path, sizes(256, 512, 128));
        }
        wait_for("every VM to be where it should be", || {
            daemon.list().vms.iter().all(|vm| vm.actual.0 == Bytes::mib(256)).then_some(())
        });
        let steady = measure(&daemon, &backends, "steady", || {});
        // A third of the guests want more, then less, so that every tick has targets to change.
        let mut turn = 0;
        let busy = measure(&daemon, &backends, "busy", || {
            turn += 1;
            for (n, backend) in (0u64..).zip(&backends) {
                backend.guest().used = Bytes::mib(60 + if (n + turn) % 3 == 0 { 200 } else { 0 });
            }
        });
        let allowed = if cfg!(debug_assertions) { 100_000 } else { 10_000 };
        assert!(steady < allowed, "{steady} millionths of a core");
        // There are up to ten ticks a second then.
        assert!(busy < 5 * allowed, "{busy} millionths of a core");
        let peak = status_kib(daemon.process.0.id(), "VmHWM");
        assert!(peak < 30 * 1024, "{peak} KiB");
    }

    /// The share of a core it takes in [`TICKS`] ticks, in millionths.
    fn measure(daemon: &Daemon, backends: &[Backend], phase: &str, mut meddle: impl FnMut()) -> u64 {
        let pid = daemon.process.0.id();
        let requests = || backends.iter().map(|b| b.guest().requests).sum::<u64>();
        let asked = requests();
        let (ticks, cpu, begun) = (daemon.ticks(), cpu_us(pid), std::time::Instant::now());
        // Looked at seldom, since looking is paid by the daemon.
        while daemon.ticks() < ticks + TICKS {
            meddle();
            std::thread::park_timeout(std::time::Duration::from_secs(2));
        }
        let (used, wall) = (cpu_us(pid) - cpu, u64::try_from(begun.elapsed().as_micros()).unwrap());
        let ticks = daemon.ticks() - ticks;
        let (rss, peak) = (status_kib(pid, "VmRSS"), status_kib(pid, "VmHWM"));
        let answered = requests() - asked;
        let ppm = used * 1_000_000 / wall;
        report(&format!(
            "{{\"phase\":\"{phase}\",\"vms\":{VMS},\"ticks\":{ticks},\"wall_us\":{wall},\"cpu_us\":{used},\
             \"cpu_ppm\":{ppm},\"cpu_us_per_tick\":{},\"rss_kib\":{rss},\"peak_kib\":{peak},\"requests\":{answered}}}",
            used / ticks
        ));
        // At ticks that come early only those are asked that have something to say; each is asked once a second.
        let least = VMS * (wall / 1_000_000) * 8 / 10;
        assert!(answered >= least, "{answered} requests were answered in {wall} us");
        ppm
    }

    #[expect(clippy::print_stdout, reason = "the measurement is what this is for")]
    fn report(line: &str) {
        println!("{line}");
    }
}
