//! How a VM is described: `run` and `adopt`.

use std::path::PathBuf;

use clap::{Args as Group, ValueEnum};
use plimsoll_model::VmName;
use plimsoll_units::Bytes;

use super::{PodArgs, TuningArgs};

/// Which VMM runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VmmChoice {
    /// By the kernel: a bzImage runs in QEMU, an executable (linux.uml) by itself
    Auto,
    /// QEMU, with its own balloon
    Qemu,
    /// User Mode Linux: the kernel is an ordinary process, no hardware virtualization is needed
    Uml,
}

/// How QEMU runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// KVM where a trial boot shows that it works, else TCG
    Auto,
    /// Hardware virtualization; fails where it does not work
    Kvm,
    /// Software emulation: works everywhere, slow
    Tcg,
}

/// `run`.
#[derive(Debug, Group)]
#[command(
    after_help = "The VM is registered first: what does not fit on the host is not started. It runs in a session of its own, \
with the rights of whoever types this. Its files are in RUN_DIR/run/NAME: console.log (what it says), console.in \
(a FIFO: what is written there is typed on its console) and its sockets.\n\n\
A plimsoll-agent in the guest has a line to the host: in QEMU the virtio-serial port org.plimsoll.agent.0, in User Mode \
Linux the serial line /dev/ttyS0. A guest without one is managed by what its balloon driver tells.\n\n\
Where --memory is less than --maxmem, QEMU's guest is told of maxmem and its memory is populated on demand: it cannot come \
to hold more than it is granted, whatever it does before its balloon driver is up, and waits where it tries. It needs a \
userfaultfd; --no-pod does without, and leaves the limit to the balloon driver.\n\n\
--disk hands plain raw images to the VMM (QEMU: virtio, UML: ubd); Plimsoll does not serve disks itself yet.\n\n\
Examples:\n  \
plimsoll run --name web --memory 256M --maxmem 1G --vmm uml --initrd web.cpio\n  \
plimsoll run --name db --memory 512M --kernel vmlinuz --append 'root=/dev/vda1' --disk db.raw\n  \
plimsoll run --name low --memory 256M --maxmem 512M --disk low.raw --on-exhausted wait\n  \
plimsoll run --name try --memory 128M --kernel vmlinuz --initrd try.img --foreground\n  \
plimsoll run --name own --memory 1G --disk own.raw --selfballooning --tune min_usable_mb=96\n  \
plimsoll run --name net --memory 1G --disk net.raw --qemu-arg -nic --qemu-arg user"
)]
pub(crate) struct RunArgs {
    /// What to call it: 1 to 63 letters, digits, `.`, `_` and `-`
    #[arg(long, value_name = "NAME")]
    pub(crate) name: VmName,
    /// Its baseline: the first target, from which the daemon may go up and down
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Bytes,
    /// What the guest is told it has [default: as memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) maxmem: Option<Bytes>,
    /// What it is guaranteed; fixed from now on [default: half of memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) floor: Option<Bytes>,
    /// Its share beside others, 1 to 10000 [default: 100]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) weight: Option<u32>,
    /// What runs it
    #[arg(long, value_enum, default_value_t = VmmChoice::Auto, value_name = "VMM")]
    pub(crate) vmm: VmmChoice,
    /// The guest's kernel; for uml the User Mode Linux program [default for uml: linux.uml in PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The guest's initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// More words for the guest's kernel command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,
    /// A raw disk image, handed to the VMM as it is; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Vec<PathBuf>,
    /// For uml: the host's folder that the guest may mount with hostfs [default: none]
    #[arg(long, value_name = "DIR")]
    pub(crate) hostfs: Option<PathBuf>,
    /// Give the guest no line to the host for plimsoll-agent
    #[arg(long, conflicts_with = "selfballooning")]
    pub(crate) no_agent: bool,
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
    /// Put VMM and keeper into the memory cgroup GROUP/NAME; GROUP must exist
    #[arg(long, value_name = "GROUP")]
    pub(crate) cgroup: Option<String>,
    /// Show the console until the VM ends; Ctrl-C stops it
    #[arg(long)]
    pub(crate) foreground: bool,
    /// How QEMU runs the guest's instructions
    #[arg(long, value_enum, default_value_t = Accel::Auto, value_name = "ACCEL")]
    pub(crate) accel: Accel,
    /// One more argument for QEMU; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<String>,
}

/// `adopt`.
#[derive(Debug, Group)]
#[command(
    after_help = "The QEMU must have a virtio-balloon device (`-device virtio-balloon-pci`) and a free QMP socket (`-qmp \
unix:PATH,server=on,wait=off`), and must belong to whoever types this, unless that is root.\n\n\
Without sizes: maxmem is what QEMU says, memory what the guest holds now, floor half of that.\n\n\
For a plimsoll-agent in the guest: `-device virtio-serial-pci -chardev socket,id=agent,path=PATH,server=on,wait=off \
-device virtserialport,chardev=agent,name=org.plimsoll.agent.0`.\n\n\
Examples:\n  \
plimsoll adopt --name db --qmp /run/db/qmp.sock\n  \
plimsoll adopt --name db --qmp /run/db/qmp.sock --agent /run/db/agent.sock\n  \
plimsoll adopt --name db --qmp /run/db/qmp.sock --memory 2G --floor 1G"
)]
pub(crate) struct AdoptArgs {
    /// What to call it
    #[arg(long, value_name = "NAME")]
    pub(crate) name: VmName,
    /// Its QMP socket
    #[arg(long, value_name = "PATH")]
    pub(crate) qmp: PathBuf,
    /// The socket of the character device behind its virtio-serial port org.plimsoll.agent.0 [default: no agent]
    #[arg(long, value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,
    /// Its baseline [default: what the guest holds now]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<Bytes>,
    /// The most it may have [default: what QEMU gave the guest]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) maxmem: Option<Bytes>,
    /// What it is guaranteed [default: half of memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) floor: Option<Bytes>,
    /// Its share beside others, 1 to 10000 [default: 100]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) weight: Option<u32>,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
}
