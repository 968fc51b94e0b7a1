//! Which hierarchies there are, and the groups in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    CgroupError, MemCgroup, file,
    mountinfo::{Mount, Mounts},
};

/// Which version holds the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes` and its kin.
    V1,
    /// `memory.max` and its kin.
    V2,
}

/// The mounted hierarchies of a host that has a memory controller.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    version: Version,
    /// Where the memory controller is.
    memory: Mount,
    /// Version 2, with or without the memory controller: where pressure is.
    unified: Option<Mount>,
    proc: PathBuf,
}

impl Hierarchies {
    /// Finds the hierarchies of this host.
    pub fn discover() -> Result<Self, CgroupError> {
        Self::discover_under(Path::new("/"))
    }

    /// Finds the hierarchies of a host whose `/` is at `root`: mount points and `/proc` are looked for below it.
    pub fn discover_under(root: &Path) -> Result<Self, CgroupError> {
        let proc = root.join("proc");
        let mountinfo = proc.join("self/mountinfo");
        let text = fs::read_to_string(&mountinfo)
            .map_err(|source| CgroupError::Read { path: mountinfo.clone(), source })?;
        let mut mounts = Mounts::parse(&text);
        for mount in [&mut mounts.v1_memory, &mut mounts.v2].into_iter().flatten() {
            let below = mount.point.strip_prefix("/").map(|point| root.join(point));
            mount.point = below.unwrap_or_else(|_relative| mount.point.clone());
        }
        match (mounts.v1_memory, mounts.v2) {
            (Some(memory), unified) => Ok(Self { version: Version::V1, memory, unified, proc }),
            (None, Some(v2)) if lists_memory(&v2.point, "cgroup.controllers")? => {
                Ok(Self { version: Version::V2, memory: v2.clone(), unified: Some(v2), proc })
            }
            _ => Err(CgroupError::NoController { mountinfo }),
        }
    }

    /// Which version holds the memory controller.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// A group that exists. Paths are as `/proc/PID/cgroup` has them; the leading `/` may be left out.
    pub fn open(&self, path: &str) -> Result<MemCgroup, CgroupError> {
        let (path, dir) = self.locate(path)?;
        if !dir.is_dir() {
            return Err(CgroupError::NoGroup { path: dir });
        }
        Ok(self.group(path, dir))
    }

    /// A group that is made if it does not exist, with all the groups it lies in. On version 2 the memory controller
    /// is enabled on the way down. What was made before an error stays.
    pub fn create(&self, path: &str) -> Result<MemCgroup, CgroupError> {
        let (path, dir) = self.locate(path)?;
        let mut at = self.memory.point.clone();
        for name in inside(&path) {
            if self.version == Version::V2 && !lists_memory(&at, "cgroup.subtree_control")? {
                enable_memory(&at)?;
            }
            at.push(name);
            make(&at)?;
        }
        Ok(self.group(path, dir))
    }

    /// The path of the group a process is in, as `open` takes it (`/proc/PID/cgroup`, cgroups(7)).
    pub fn of_process(&self, pid: u32) -> Result<String, CgroupError> {
        const FILE: &str = "cgroup";
        let dir = self.proc.join(pid.to_string());
        let text = match file::read(&dir, FILE) {
            Err(CgroupError::NoGroup { .. }) => return Err(CgroupError::NoProcess { pid }),
            text => text?,
        };
        let group = match self.version {
            Version::V1 => v1_group(&text),
            Version::V2 => text.lines().find_map(|line| line.strip_prefix("0::")),
        };
        let group = group.ok_or_else(|| file::parse_error(&dir, FILE, &text, "list of groups"))?;
        let elsewhere =
            || CgroupError::Elsewhere { pid, group: group.to_owned(), mount: self.memory.point.clone() };
        let below = group.strip_prefix(self.memory.root.trim_end_matches('/')).ok_or_else(elsewhere)?;
        match below.is_empty() || below.starts_with('/') {
            true => Ok(format!("/{}", below.trim_start_matches('/'))),
            false => Err(elsewhere()),
        }
    }

    fn group(&self, path: String, dir: PathBuf) -> MemCgroup {
        let twin = self.unified.as_ref().map(|mount| mount.point.join(path.trim_start_matches('/')));
        let top = self.memory.point.clone();
        MemCgroup::new(self.version, path, dir, top, twin)
    }

    /// The checked path with its leading `/`, and its directory.
    fn locate(&self, path: &str) -> Result<(String, PathBuf), CgroupError> {
        let bad = |why| CgroupError::BadPath { path: path.to_owned(), why };
        let below = path.strip_prefix('/').unwrap_or(path);
        if below.is_empty() {
            return Ok(("/".to_owned(), self.memory.point.clone()));
        }
        for name in below.split('/') {
            match name {
                "" => return Err(bad("a part of it is empty")),
                "." | ".." => return Err(bad("`.` and `..` are no groups")),
                name if name.len() > 255 => return Err(bad("a part of it is longer than 255 bytes")),
                name if name.contains(|c: char| c.is_control()) => {
                    return Err(bad("it has control characters"));
                }
                _ => {}
            }
        }
        Ok((format!("/{below}"), self.memory.point.join(below)))
    }
}

/// `4:memory:/a/b`, also `4:cpu,memory:/a/b`; the path may hold colons.
fn v1_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers.split(',').any(|c| c == "memory").then(|| fields.next())?
    })
}

fn inside(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

fn lists_memory(dir: &Path, file: &'static str) -> Result<bool, CgroupError> {
    Ok(file::read(dir, file)?.split_whitespace().any(|controller| controller == "memory"))
}

/// Version 2: hands the memory controller to the groups inside `dir`.
fn enable_memory(dir: &Path) -> Result<(), CgroupError> {
    let written = file::write(dir, "cgroup.subtree_control", "+memory");
    // The "no internal processes" rule of cgroup-v2.rst.
    let busy = matches!(&written, Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy);
    if busy { Err(CgroupError::HasProcesses { path: dir.to_path_buf() }) } else { written }
}

pub(crate) fn make(dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(source) => Err(CgroupError::Directory { what: "make", path: dir.to_path_buf(), source }),
    }
}

pub(crate) fn remove(dir: &Path) -> Result<(), CgroupError> {
    let path = || dir.to_path_buf();
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(CgroupError::NoGroup { path: path() }),
        Err(err) if err.kind() == io::ErrorKind::ResourceBusy => Err(CgroupError::Busy { path: path() }),
        Err(source) => Err(CgroupError::Directory { what: "remove", path: path(), source }),
    }
}
