//! The host's line, the table of VMs, and a VM in one line.

use plimsoll_api::http::{HostView, Life, ListView, VmView};
use plimsoll_model::{Reason, Standstill, VmState};

use super::size::{maybe, short};
use super::table::{Align, Table, cut};
use super::{clean, time};

/// The host's line and the table of `list` and `top`.
pub(crate) fn list(list: &ListView, width: Option<usize>) -> String {
    let head = cut(&host_line(&list.host), width);
    if list.vms.is_empty() {
        return format!("{head}\nno VMs; `plimsoll run` starts one, `plimsoll adopt` takes one that runs\n");
    }
    format!("{head}\n{}", vm_table(&list.vms).render(width))
}

/// How the host stands, in one line.
pub(crate) fn host_line(host: &HostView) -> String {
    let mut line = format!(
        "host {}: {} of {} claimed, {} available",
        host.state,
        short(host.claimed),
        short(host.sample.budget),
        short(host.sample.available)
    );
    if host.waiting.0 > 0 {
        line.push_str(&format!(", {} waited for", short(host.waiting)));
    }
    if let Some(cgroup) = &host.cgroup {
        line.push_str(&format!(" (cgroup {})", clean(cgroup)));
    }
    line
}

fn vm_table(vms: &[VmView]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("NAME", Left),
        ("STATE", Left),
        ("TARGET", Right),
        ("ACTUAL", Right),
        ("RESIDENT", Right),
        ("NEED", Right),
        ("FLOOR", Right),
        ("MAXMEM", Right),
        ("WEIGHT", Right),
        ("WHY", Left),
    ]);
    for vm in vms {
        table.row(vec![
            vm.name.to_string(),
            state(vm),
            short(vm.target.0),
            short(vm.actual.0),
            maybe(vm.resident),
            maybe(vm.need),
            short(vm.sizes.floor()),
            short(vm.sizes.maxmem()),
            vm.sizes.weight().to_string(),
            why(vm),
        ]);
    }
    table
}

/// Life and state in one word: the life where it is not simply running, else the arbiter's word.
pub(crate) fn state(vm: &VmView) -> String {
    match vm.life {
        Life::Running => vm.state.to_string(),
        Life::Starting | Life::Unreachable | Life::Unprotected | Life::Stopping | Life::Gone => {
            life(vm.life).to_string()
        }
    }
}

/// A life in one word.
pub(crate) const fn life(life: Life) -> &'static str {
    match life {
        Life::Starting => "starting",
        Life::Running => "running",
        Life::Unreachable => "unreachable",
        Life::Unprotected => "unprotected",
        Life::Stopping => "stopping",
        Life::Gone => "gone",
    }
}

/// Why the target is what it is, in a few words; a problem in speaking to the VM goes before.
fn why(vm: &VmView) -> String {
    match (&vm.problem, vm.life) {
        (_, Life::Gone) => "its VMM has ended".to_string(),
        (Some(problem), _) => clean(problem),
        (None, Life::Unprotected) => "its keeper has ended: the target cannot be enforced".to_string(),
        (None, Life::Starting | Life::Running | Life::Unreachable | Life::Stopping) => reason(&vm.reason),
    }
}

/// A reason in a few words.
pub(crate) fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Steady => "steady".to_string(),
        Reason::Held { hold } => format!("held at {}", short(hold.0)),
        Reason::Baseline { .. } => "baseline".to_string(),
        Reason::Distress { granted, .. } if granted.0 == 0 => "distressed, nothing to grant".to_string(),
        Reason::Distress { granted, .. } => format!("distressed, +{}", short(*granted)),
        Reason::Exhausted { granted, .. } if granted.0 == 0 => "waits for memory, which comes".to_string(),
        Reason::Exhausted { granted, .. } => format!("waited for memory, +{}", short(*granted)),
        Reason::Stalled { stalled_ms, why, .. } => {
            format!("waits for memory since {}: {}", time::span(*stalled_ms), standstill(*why))
        }
        Reason::GivesToOthers { .. } => "gives to others".to_string(),
        Reason::BackToBaselineForOthers { .. } => "back to baseline".to_string(),
        Reason::OverBudget { .. } => "over budget".to_string(),
        Reason::HostShort { .. } => "host short".to_string(),
        Reason::Idle { .. } => "idle".to_string(),
        Reason::WorkingSet { .. } => "working set".to_string(),
        Reason::SelfBalloon { goal, .. } => format!("self-ballooning to {}", short(*goal)),
        Reason::Stuck { retry_ms, .. } => format!("does not move, again in {} s", retry_ms.div_ceil(1000)),
        Reason::NoDriver => "no balloon driver".to_string(),
        Reason::Unreachable => "no answer".to_string(),
    }
}

/// Why nothing is done about a guest that waits, in a few words.
const fn standstill(why: Standstill) -> &'static str {
    match why {
        Standstill::Held => "held",
        Standstill::Wait => "on-exhausted=wait",
        Standstill::Stop => "to be stopped",
        Standstill::NothingFree => "nothing is free",
        Standstill::AtMaxmem => "the kernel has none",
    }
}

/// What `set`, `hold`, `release`, `adopt` answer: the VM as it is now.
pub(crate) fn one_line(vm: &VmView) -> String {
    let held = match vm.hold {
        Some(hold) => format!(", held at {}", hold.0),
        None => String::new(),
    };
    let state = match vm.state {
        VmState::Ok | VmState::Held => String::new(),
        VmState::Distressed
        | VmState::Stuck
        | VmState::Stalled
        | VmState::NoDriver
        | VmState::Unreachable => {
            format!(", {}", vm.state)
        }
    };
    format!(
        "{}: target {} (memory {}, floor {}, maxmem {}, weight {}){held}{state}",
        vm.name,
        vm.target,
        vm.sizes.memory(),
        vm.sizes.floor(),
        vm.sizes.maxmem(),
        vm.sizes.weight()
    )
}

#[cfg(test)]
pub(crate) mod test {
    use plimsoll_api::http::Endpoint;
    use plimsoll_model::{HostSample, HostState, Link, Sizes, VmId};
    use plimsoll_units::{Bytes, MemTarget};

    use super::*;

    /// A VM that runs at its baseline of 256M.
    pub(crate) fn vm(name: &str) -> VmView {
        VmView {
            id: VmId(1),
            name: name.parse().unwrap(),
            endpoint: Endpoint::Uml { control: format!("/run/plimsoll/run/{name}/control.sock") },
            life: Life::Running,
            state: VmState::Ok,
            link: Link::Up,
            sizes: Sizes::new(Bytes::mib(256), Bytes::gib(1), None, None).unwrap(),
            target: MemTarget(Bytes::mib(256)),
            actual: MemTarget(Bytes::mib(256)),
            resident: Some(Bytes::mib(201)),
            overhead: Bytes::mib(16),
            hold: None,
            tunables: plimsoll_model::Tunables::default(),
            source: plimsoll_model::Source::Device,
            need: Some(Bytes::mib(140)),
            spare: Bytes::mib(60),
            stats: None,
            stats_age_ms: None,
            agent: None,
            agent_line: None,
            reason: Reason::Baseline { memory: Bytes::mib(256) },
            reason_text: Reason::Baseline { memory: Bytes::mib(256) }.to_string(),
            owner_uid: 0,
            vmm: None,
            keeper: None,
            console: None,
            backend: None,
            pager: None,
            problem: None,
            last_change: None,
        }
    }

    /// A host with room.
    pub(crate) fn host() -> HostView {
        HostView {
            version: "0.1.0".to_string(),
            cgroup: None,
            state: HostState::Ample,
            sample: HostSample {
                budget: Bytes::gib(7),
                available: Bytes::gib(5),
                low: Bytes::mib(512),
                psi: None,
                swap_in_pages: 0,
                swap_out_pages: 0,
            },
            claimed: Bytes::mib(2048),
            guaranteed: Bytes::mib(512),
            told: Bytes::gib(3),
            waiting: Bytes::ZERO,
            ticks: 77,
            tick_us: 812,
        }
    }

    #[test]
    fn life_goes_before_state() {
        let mut one = vm("web");
        one.state = VmState::Stuck;
        assert_eq!(state(&one), "stuck");
        for (life, word) in
            [(Life::Gone, "gone"), (Life::Unprotected, "unprotected"), (Life::Starting, "starting")]
        {
            one.life = life;
            assert_eq!(state(&one), word);
        }
    }

    #[test]
    fn an_empty_host_says_what_to_do_next() {
        let text = list(&ListView { host: host(), vms: Vec::new() }, None);
        assert!(text.starts_with("host ample: 2048M of 7168M claimed, 5120M available\nno VMs;"), "{text}");
    }
}
