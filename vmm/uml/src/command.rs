//! The command line.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use plimsoll_units::Bytes;

use crate::{UmlCommandError, mconsole::mconsole_path};

/// A UML to be started. The fields are what was asked for; [`UmlCommand::build`] checks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UmlCommand {
    /// The kernel, an executable file.
    pub binary: PathBuf,
    /// The memory the guest is told of.
    pub mem: Bytes,
    /// The guest's first file system.
    pub initrd: Option<PathBuf>,
    /// The machine's name among those of `uml_dir`: letters, digits, `.`, `_` and `-`, at most 63.
    pub umid: String,
    /// Where UML makes a directory `umid` with its pid file and its management console.
    pub uml_dir: PathBuf,
    /// Where UML keeps the guest's memory, as an unlinked file: must be a tmpfs, or every page is written to disk.
    pub tmpdir: PathBuf,
    /// Devices over vhost-user, in order.
    pub devices: Vec<VhostUserDevice>,
    /// Files as UML's own disks `/dev/ubda`, `/dev/ubdb`, ...; at most 8.
    pub disks: Vec<PathBuf>,
    /// Where the guest's console goes.
    pub console: Console,
    /// What the guest may mount of the host.
    pub host_files: HostFiles,
    /// More for the kernel's command line, as a person writes it.
    pub append: String,
}

/// A device whose back end listens at a vhost-user socket (`virtio_uml.device=`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserDevice {
    /// The back end's socket.
    pub socket: PathBuf,
    /// The device's virtio id (virtio 1.3, section 5).
    pub virtio_id: u32,
}

/// The guest's first console, as descriptors of the UML process. All other consoles lead nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Output to standard output, no input. Standard input must not be a regular file all the same: UML waits
    /// for it with epoll, which has no regular files. `/dev/null` will do.
    Output,
    /// Input from standard input, which must be a pipe, a FIFO or a terminal; output to standard output.
    InputOutput,
}

/// What of the host's files the guest's `hostfs` can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostFiles {
    /// None.
    Nothing,
    /// This directory and what is in it.
    Only(PathBuf),
    /// Everything the user who runs UML can reach.
    All,
}

/// What to run. The caller adds standard input, output and error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
}

/// `COMMAND_LINE_SIZE` of `arch/um` is 4096, with the final NUL; UML itself adds `root=98:0` (and a blank).
pub(crate) const LONGEST_COMMAND_LINE: usize = 4096 - 1 - 10;

/// The kernel itself needs some 12 MiB before there is an init.
const LEAST_MEM: Bytes = Bytes::mib(16);

/// `sun_path` less its NUL (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;

/// What [`UmlCommand::append`] may not set. A key ending in `=` is a whole parameter, others are beginnings.
const RESERVED: [&str; 9] =
    ["mem=", "initrd=", "umid=", "uml_dir=", "virtio_uml.device=", "hostfs=", "con=", "con0=", "ubd"];

impl VhostUserDevice {
    /// A balloon (virtio id 5).
    pub fn balloon(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), virtio_id: 5 }
    }

    /// A disk (virtio id 2).
    pub fn block(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), virtio_id: 2 }
    }
}

impl UmlCommand {
    /// The kernel `linux.uml` of the PATH, memory in `/dev/shm`, console to standard output, and no devices.
    pub fn new(mem: Bytes, umid: impl Into<String>, uml_dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: PathBuf::from("linux.uml"),
            mem,
            initrd: None,
            umid: umid.into(),
            uml_dir: uml_dir.into(),
            tmpdir: PathBuf::from("/dev/shm"),
            devices: Vec::new(),
            disks: Vec::new(),
            console: Console::Output,
            host_files: HostFiles::Nothing,
            append: String::new(),
        }
    }

    /// Where its management console will be.
    #[must_use]
    pub fn mconsole(&self) -> PathBuf {
        mconsole_path(&self.uml_dir, &self.umid)
    }

    /// Checks everything and gives what to run. Looks at no file.
    pub fn build(&self) -> Result<Invocation, UmlCommandError> {
        if self.binary.as_os_str().is_empty() {
            return Err(UmlCommandError::EmptyPath("the kernel"));
        }
        let mut args = vec![self.mem_arg()?];
        if let Some(initrd) = &self.initrd {
            args.push(path_arg("initrd=", "the initrd", initrd, "")?);
        }
        self.check_umid()?;
        args.push(format!("umid={}", self.umid).into());
        args.push(path_arg("uml_dir=", "the directory", &self.uml_dir, "")?);
        fits_socket(&self.mconsole())?;
        self.push_devices(&mut args)?;
        args.push("con=null".into());
        args.push(self.console.arg().into());
        args.extend(self.host_files_arg()?);
        args.extend(self.appended()?);
        let length = args.iter().map(|arg| arg.len().saturating_add(1)).sum();
        if length > LONGEST_COMMAND_LINE {
            return Err(UmlCommandError::TooLong(length));
        }
        // Not on the command line, so only UML itself must understand it.
        let tmpdir = path_arg("", "the directory for memory", &self.tmpdir, "")?;
        Ok(Invocation { program: self.binary.clone(), args, env: vec![("TMPDIR".into(), tmpdir)] })
    }

    fn mem_arg(&self) -> Result<OsString, UmlCommandError> {
        if self.mem < LEAST_MEM || !self.mem.is_page_multiple() {
            return Err(UmlCommandError::Mem(self.mem));
        }
        Ok(format!("mem={}K", self.mem.0 >> 10).into())
    }

    fn check_umid(&self) -> Result<(), UmlCommandError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        // UMID_LEN is 64 with the final NUL (arch/um/os-Linux/umid.c).
        let fits = (1..64).contains(&self.umid.len());
        if !fits || !self.umid.chars().all(allowed) || self.umid.starts_with(['.', '-']) {
            return Err(UmlCommandError::Umid(self.umid.clone()));
        }
        Ok(())
    }

    fn push_devices(&self, args: &mut Vec<OsString>) -> Result<(), UmlCommandError> {
        for device in &self.devices {
            fits_socket(&device.socket)?;
            let mut arg = path_arg("virtio_uml.device=", "the socket", &device.socket, ":,")?;
            arg.push(format!(":{}", device.virtio_id));
            args.push(arg);
        }
        if self.disks.len() > 8 {
            return Err(UmlCommandError::Disks(self.disks.len()));
        }
        for (n, disk) in self.disks.iter().enumerate() {
            args.push(path_arg(&format!("ubd{n}="), "the disk", disk, ":,")?);
        }
        Ok(())
    }

    fn host_files_arg(&self) -> Result<Option<OsString>, UmlCommandError> {
        let root = match &self.host_files {
            HostFiles::All => return Ok(None),
            HostFiles::Only(root) => root.clone(),
            // Nobody makes it, and what is not there cannot be mounted.
            HostFiles::Nothing => self.uml_dir.join("no-host-files"),
        };
        path_arg("hostfs=", "the host's directory", &root, ",").map(Some)
    }

    fn appended(&self) -> Result<impl Iterator<Item = OsString>, UmlCommandError> {
        if self.append.contains(|c: char| c.is_control() && !c.is_whitespace()) {
            return Err(UmlCommandError::Append);
        }
        for word in self.append.split_whitespace() {
            if let Some(key) = RESERVED.into_iter().find(|key| word.starts_with(key)) {
                return Err(UmlCommandError::Reserved { word: word.to_owned(), key });
            }
        }
        Ok(self.append.split_whitespace().map(OsString::from))
    }
}

impl Console {
    const fn arg(self) -> &'static str {
        match self {
            Self::Output => "con0=null,fd:1",
            Self::InputOutput => "con0=fd:0,fd:1",
        }
    }
}

impl Invocation {
    /// A command with exactly this environment; nothing of the caller's is inherited. It will lead a process group of
    /// its own, by which [`crate::kill_remains`] finds all its processes; a terminal's Ctrl-C does not reach it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().cloned()).process_group(0);
        command
    }
}

/// `key` and `path` as one argument, which stays one: UML joins its arguments with blanks into the kernel's command
/// line, where blanks, quotes and what separates the parts of a value (`separators`) mean something.
fn path_arg(
    key: &str,
    what: &'static str,
    path: &Path,
    separators: &str,
) -> Result<OsString, UmlCommandError> {
    let text = path.as_os_str();
    if text.is_empty() {
        return Err(UmlCommandError::EmptyPath(what));
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '"' || separators.contains(c);
    if let Some(char) = lossy(text).chars().find(|c| bad(*c)) {
        return Err(UmlCommandError::Path { what, path: path.to_path_buf(), char });
    }
    let mut arg = OsString::from(key);
    arg.push(text);
    Ok(arg)
}

/// Bytes that are no text become U+FFFD, which is allowed in paths.
fn lossy(text: &OsStr) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(text.as_bytes())
}

fn fits_socket(path: &Path) -> Result<(), UmlCommandError> {
    if path.as_os_str().len() > LONGEST_SOCKET_PATH {
        return Err(UmlCommandError::SocketPath { path: path.to_path_buf() });
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn web() -> UmlCommand {
        UmlCommand::new(Bytes::mib(64), "web", "/run/vm")
    }

    fn line(uml: &UmlCommand) -> String {
        let args = uml.build().unwrap().args;
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_whole_command_line() {
        let uml = UmlCommand {
            initrd: Some("/i.cpio".into()),
            devices: vec![VhostUserDevice::balloon("/b.sock"), VhostUserDevice::block("/d.sock")],
            disks: vec!["/a.img".into(), "/b.img".into()],
            console: Console::InputOutput,
            host_files: HostFiles::Only("/srv/share".into()),
            append: " quiet  init=/bin/sh ".to_owned(),
            ..web()
        };
        assert_eq!(
            line(&uml),
            "mem=65536K initrd=/i.cpio umid=web uml_dir=/run/vm virtio_uml.device=/b.sock:5 virtio_uml.device=/d.sock:2 \
             ubd0=/a.img ubd1=/b.img con=null con0=fd:0,fd:1 hostfs=/srv/share quiet init=/bin/sh"
        );
        let invocation = uml.build().unwrap();
        assert_eq!(invocation.env, [("TMPDIR".into(), "/dev/shm".into())]);
        assert_eq!(invocation.program, Path::new("linux.uml"));
    }

    #[test]
    fn hostfs_is_shut_unless_opened() {
        assert!(line(&web()).contains("hostfs=/run/vm/no-host-files"));
        assert!(!line(&UmlCommand { host_files: HostFiles::All, ..web() }).contains("hostfs"));
    }

    #[test]
    fn what_would_become_another_argument_is_refused() {
        use UmlCommandError as E;
        let error = |uml: UmlCommand| uml.build().unwrap_err();
        for umid in ["", "a b", "a,b", "../x", ".", "-x", "ä", &"x".repeat(64)] {
            assert_eq!(error(UmlCommand { umid: umid.into(), ..web() }), E::Umid(umid.into()));
        }
        let initrd = PathBuf::from("/a b mem=1G");
        let wanted = E::Path { what: "the initrd", path: initrd.clone(), char: ' ' };
        assert_eq!(error(UmlCommand { initrd: Some(initrd), ..web() }), wanted);
        let device = VhostUserDevice::balloon("/a:9");
        assert!(matches!(error(UmlCommand { devices: vec![device], ..web() }), E::Path { char: ':', .. }));
        assert!(matches!(
            error(UmlCommand { disks: vec!["/a,b".into()], ..web() }),
            E::Path { char: ',', .. }
        ));
        assert!(matches!(error(UmlCommand { tmpdir: "".into(), ..web() }), E::EmptyPath(_)));
        assert!(matches!(error(UmlCommand { disks: vec!["/d".into(); 9], ..web() }), E::Disks(9)));
        assert!(matches!(
            error(UmlCommand { append: "x mem=1G".into(), ..web() }),
            E::Reserved { key: "mem=", .. }
        ));
        assert_eq!(error(UmlCommand { append: "a\0b".into(), ..web() }), E::Append);
        for mem in [Bytes::ZERO, Bytes::mib(1), Bytes(Bytes::mib(64).0 + 1)] {
            assert_eq!(error(UmlCommand { mem, ..web() }), E::Mem(mem));
        }
        let long = "/x".repeat(52);
        assert!(matches!(error(UmlCommand { uml_dir: long.into(), ..web() }), E::SocketPath { .. }));
        assert!(matches!(error(UmlCommand { append: "x ".repeat(2100), ..web() }), E::TooLong(_)));
    }

    proptest! {
        #[test]
        fn no_text_adds_or_changes_an_argument(
            umid in ".{0,8}", initrd in "[a-z/ ,:\"\n\t=]{0,12}", socket in "[a-z/ ,:\"\n=]{0,12}", tmp in ".{0,8}",
        ) {
            let uml = UmlCommand {
                umid,
                initrd: Some(initrd.into()),
                devices: vec![VhostUserDevice::balloon(socket)],
                tmpdir: tmp.into(),
                ..web()
            };
            if let Ok(invocation) = uml.build() {
                let keys = ["mem=", "initrd=", "umid=", "uml_dir=", "virtio_uml.device=", "con=", "con0=", "hostfs="];
                prop_assert_eq!(invocation.args.len(), keys.len());
                for (arg, key) in invocation.args.iter().zip(keys) {
                    let arg = arg.to_str().unwrap();
                    prop_assert!(arg.starts_with(key) && arg.split_whitespace().count() == 1, "{arg:?}");
                }
                let device = invocation.args[4].to_str().unwrap();
                prop_assert_eq!(device.matches(':').count(), 1);
            }
        }
    }
}
