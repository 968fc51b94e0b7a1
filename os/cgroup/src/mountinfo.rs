//! `/proc/self/mountinfo`, as far as it lists cgroup hierarchies (`proc_pid_mountinfo(5)`).

use std::path::PathBuf;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Which group its root shows: `/`, or a group inside where a container sees but its own part.
    pub(crate) root: String,
}

/// The hierarchies of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mounts {
    /// Version 1 with the memory controller.
    pub(crate) v1_memory: Option<Mount>,
    /// Version 2, with or without controllers.
    pub(crate) v2: Option<Mount>,
}

impl Mounts {
    /// Reads the table; lines that are none are passed over. Of several mounts of a hierarchy the first that
    /// shows it whole is taken, else the first.
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((kind, mount)) = parse_line(line) else { continue };
            let slot = match kind {
                Kind::V1Memory => &mut found.v1_memory,
                Kind::V2 => &mut found.v2,
            };
            let better = slot.as_ref().is_none_or(|old| old.root != "/" && mount.root == "/");
            if better {
                *slot = Some(mount);
            }
        }
        found
    }
}

enum Kind {
    V1Memory,
    V2,
}

/// `35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory`
fn parse_line(line: &str) -> Option<(Kind, Mount)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (fs_type, options) = (right.next()?, right.nth(1)?);
    let kind = match fs_type {
        "cgroup2" => Kind::V2,
        "cgroup" if options.split(',').any(|option| option == "memory") => Kind::V1Memory,
        _ => return None,
    };
    Some((kind, Mount { point: PathBuf::from(unescape(point)), root: unescape(root) }))
}

/// Space, tab, line end and backslash are written as `\040`, `\011`, `\012` and `\134`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, after.get(3..)) {
            (Some(code), Some(tail)) if code.is_ascii() => {
                out.push(char::from(code));
                rest = tail;
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn mount(point: &str, root: &str) -> Option<Mount> {
        Some(Mount { point: point.into(), root: root.into() })
    }

    #[test]
    fn hybrid() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:1 master:2 - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let got = Mounts::parse(text);
        assert_eq!(got.v1_memory, mount("/sys/fs/cgroup/memory", "/"));
        assert_eq!(got.v2, mount("/sys/fs/cgroup/unified", "/"));
    }

    #[test]
    fn version_2_alone_and_a_container() {
        let text =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(Mounts::parse(text), Mounts { v1_memory: None, v2: mount("/sys/fs/cgroup", "/") });
        let text = "9 8 0:5 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
            10 8 0:5 / /mnt/with\\040space ro - cgroup cgroup rw,memory\n";
        assert_eq!(Mounts::parse(text).v1_memory, mount("/mnt/with space", "/"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "([0-9]{1,2} |/ |- |cgroup2? |rw,memory|\\\\[0-9]{0,3}|\n|.){0,60}") {
            let _ = Mounts::parse(&text);
        }

        #[test]
        fn escapes_come_back(text in "[ -~ä\n\t]{0,40}") {
            let escaped: String = text.chars().map(|c| match c {
                ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unescape(&escaped), text);
        }
    }
}
