//! QEMU's command line.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use plimsoll_agent_proto::PORT_NAME;
use plimsoll_model::{Sizes, VmName};

use super::check::{absolute, foreign_program};
use super::kvm::Acceleration;
use super::pod::Pod;
use super::start::Launch;
use crate::args::RunArgs;
use crate::output;
use crate::record::VmDir;

/// QEMU's program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// What QEMU calls its guest's memory.
const RAM: &str = "plimsoll-ram";

/// A QEMU to be started.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    accel: Acceleration,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: Option<String>,
    disks: Vec<PathBuf>,
    /// The guest gets a port for its agent.
    agent: bool,
    extra: Vec<String>,
    /// Its memory is populated on demand.
    pod: Option<Pod>,
}

impl Qemu {
    /// What was typed, with absolute paths.
    pub(super) fn plan(args: &RunArgs, accel: Acceleration, pod: Option<Pod>) -> anyhow::Result<Self> {
        let own_port = args.qemu_arg.iter().any(|arg| arg.contains(PORT_NAME));
        if own_port && !args.no_agent {
            output::note(&format!(
                "--qemu-arg has a port {PORT_NAME} already: it stays as it is, and no agent is listened to"
            ));
        }
        let path = |file: &Option<PathBuf>| file.as_deref().map(absolute).transpose();
        Ok(Self {
            program: foreign_program(PROGRAM, "qemu-system-x86")?,
            accel,
            kernel: path(&args.kernel)?,
            initrd: path(&args.initrd)?,
            append: args.append.clone(),
            disks: args.disk.iter().map(|disk| absolute(disk)).collect::<Result<_, _>>()?,
            agent: !args.no_agent && !own_port,
            extra: args.qemu_arg.clone(),
            pod,
        })
    }

    /// Its memory, where that is populated on demand.
    pub(super) fn pod(&self) -> Option<&Pod> {
        self.pod.as_ref()
    }

    /// Whether the agent in the guest has a port, which is heard at [`VmDir::agent_socket`].
    pub(super) fn has_agent_port(&self) -> bool {
        self.agent
    }

    /// The command line. Memory is a shared memfd, so that the host can count and punch it from outside;
    /// there is nothing but what is named: no network card, no display.
    pub(super) fn launch(&self, name: &VmName, sizes: Sizes, dir: &VmDir) -> Launch {
        let maxmem = sizes.maxmem().0;
        let mut args: Vec<OsString> = Vec::new();
        let mut put = |option: &str, value: OsString| args.extend([OsString::from(option), value]);
        put("-name", format!("guest={name}").into());
        // A core file of it would have every page that was ever promised.
        put("-machine", format!("q35,memory-backend={RAM},dump-guest-core=off").into());
        for (option, value) in self.accel.arguments() {
            put(option, value.into());
        }
        put("-m", format!("{maxmem}B").into());
        put(
            "-object",
            match &self.pod {
                Some(pod) => pod.backend_option(RAM, sizes),
                None => format!("memory-backend-memfd,id={RAM},share=on,size={maxmem}").into(),
            },
        );
        put(
            "-device",
            "virtio-balloon-pci,id=plimsoll-balloon,free-page-reporting=on,deflate-on-oom=on".into(),
        );
        put("-qmp", with_path("unix:", &dir.qmp_socket(), ",server=on,wait=off"));
        put("-display", "none".into());
        // Ctrl-C in the guest's console is the guest's.
        put("-chardev", "stdio,id=plimsoll-console,signal=off".into());
        put("-serial", "chardev:plimsoll-console".into());
        if self.agent {
            let socket = dir.agent_socket();
            put("-device", "virtio-serial-pci,id=plimsoll-serial".into());
            put("-chardev", with_path("socket,id=plimsoll-agent,server=on,wait=off,path=", &socket, ""));
            let at = "virtserialport,bus=plimsoll-serial.0,chardev=plimsoll-agent";
            put("-device", format!("{at},name={PORT_NAME}").into());
        }
        if let Some(kernel) = &self.kernel {
            put("-kernel", kernel.into());
            put("-append", self.command_line().into());
        }
        if let Some(initrd) = &self.initrd {
            put("-initrd", initrd.into());
        }
        for disk in &self.disks {
            put("-drive", with_path("if=virtio,format=raw,file=", disk, ""));
        }
        args.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
        args.extend(self.extra.iter().map(OsString::from));
        let env = self.pod.as_ref().map_or_else(Vec::new, |pod| pod.environment(dir));
        Launch { program: self.program.clone(), args, env }
    }

    /// The kernel's words; its console goes where ours is, unless the words say otherwise.
    fn command_line(&self) -> String {
        let words = self.append.as_deref().unwrap_or_default();
        if words.split_whitespace().any(|word| word.starts_with("console=")) {
            words.to_string()
        } else {
            format!("console=ttyS0 {words}").trim_end().to_string()
        }
    }
}

/// A path inside one of QEMU's comma-separated options, where a comma is written twice.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend(after.as_bytes());
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::*;

    fn qemu(append: Option<&str>) -> Qemu {
        Qemu {
            program: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            accel: Acceleration::Tcg,
            kernel: Some(PathBuf::from("/boot/vmlinuz")),
            initrd: None,
            append: append.map(ToString::to_string),
            disks: vec![PathBuf::from("/a,b.img")],
            agent: true,
            extra: vec!["-smp".to_string(), "2".to_string()],
            pod: None,
        }
    }

    #[test]
    fn commas_in_paths_do_not_become_options() {
        let sizes = Sizes::new(Bytes::mib(64), Bytes::mib(256), None, None).unwrap();
        let dir = VmDir::new(PathBuf::from("/run/x,server=off"));
        let args = qemu(None).launch(&"web".parse().unwrap(), sizes, &dir).args;
        let text: Vec<&str> = args.iter().map(|a| a.to_str().unwrap()).collect();
        assert!(text.contains(&"unix:/run/x,,server=off/qmp.sock,server=on,wait=off"), "{text:?}");
        let chardev = "socket,id=plimsoll-agent,server=on,wait=off,path=/run/x,,server=off/agent.sock";
        assert!(text.contains(&chardev), "{text:?}");
        assert!(text.contains(&"if=virtio,format=raw,file=/a,,b.img"), "{text:?}");
        assert!(text.contains(&"memory-backend-memfd,id=plimsoll-ram,share=on,size=268435456"), "{text:?}");
        assert_eq!(text[text.len() - 2..], ["-smp", "2"]);
    }

    #[test]
    fn the_console_is_the_serial_line_unless_said_otherwise() {
        assert_eq!(qemu(None).command_line(), "console=ttyS0");
        assert_eq!(qemu(Some("root=/dev/vda")).command_line(), "console=ttyS0 root=/dev/vda");
        assert_eq!(qemu(Some("quiet console=hvc0")).command_line(), "quiet console=hvc0");
    }
}
