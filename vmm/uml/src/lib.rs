//! User Mode Linux (UML): how it is started, and its management console.
//!
//! Place in the map: `vmm/`, depends on `units` only; used by the command line and the testbed. UML is a Linux
//! kernel that runs as an ordinary process: no hardware virtualization, boots in a second or two. Its balloon is
//! ours, attached over vhost-user; nothing of it is here.
//!
//! [`UmlCommand`] turns a description into arguments and environment, and refuses what would end up as another
//! argument. [`Mconsole`] asks a running UML for its version, stops it, lets it go on, and ends it.
//!
//! **UML is no wall**: who is root in the guest can load a module into its kernel and is then the user who runs the
//! UML process. Run it as a user of its own. Its `hostfs` is confined by default all the same ([`HostFiles`]).
//!
//! **A killed UML leaves processes behind** that keep the guest's memory and sockets; [`kill_remains`] ends them.
//! Prefer [`Mconsole::halt`], and follow any SIGKILL with it.
//!
//! What it does not do: start processes, wait for them, read the console.
//!
//! Sources: `linux.uml --help`; the kernel's `arch/um/drivers/mconsole.h`, `arch/um/os-Linux/umid.c` and
//! `Documentation/virt/uml/user_mode_linux_howto_v2.rst`.
//!
//! ```
//! # fn main() -> Result<(), plimsoll_uml::UmlCommandError> {
//! use plimsoll_uml::{UmlCommand, VhostUserDevice};
//! use plimsoll_units::Bytes;
//!
//! let mut uml = UmlCommand::new(Bytes::mib(256), "web", "/run/vm/web");
//! uml.initrd = Some("/srv/web.cpio".into());
//! uml.devices.push(VhostUserDevice::balloon("/run/vm/web/balloon.sock"));
//! let invocation = uml.build()?;
//! assert!(invocation.args.contains(&"mem=262144K".into()));
//! let command: std::process::Command = invocation.command(); // to be given stdin, stdout and stderr
//! # let _ = command;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod command;
mod error;
mod mconsole;
mod remains;
mod wire;

pub use command::{Console, HostFiles, Invocation, UmlCommand, VhostUserDevice};
pub use error::UmlCommandError;
pub use mconsole::{Mconsole, MconsoleError, mconsole_path, pid_path};
pub use remains::{kill_remains, remains};
