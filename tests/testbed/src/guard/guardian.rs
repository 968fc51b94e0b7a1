//! The shell that undoes what a killed process left.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::marked::RUN_VARIABLE;

/// Reads `add N COMMAND` and `done N`; at the end of its input it runs `$1` and then what was added and not done, last one first.
/// It ignores what ends a test, and is in a process group of its own, so that Ctrl-C does not reach it.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
list=
while IFS= read -r line; do
    case $line in
        'add '*) rest=${line#add }; n=${rest%% *}; eval "deed_$n=\${rest#* }"; list="$n $list" ;;
        'done '*) unset "deed_${line#done }" ;;
    esac
done
sh -c "$1"
for n in $list; do
    eval "deed=\${deed_$n-}"
    [ -z "$deed" ] || sh -c "$deed"
done
"#;

/// A running guardian.
pub(super) struct Guardian {
    input: ChildStdin,
    // Kept so that it is clear who owns it; it outlives this process by design and is never waited for.
    _child: Child,
}

impl Guardian {
    /// Starts one for this process, which runs `first` before it undoes what is registered.
    pub(super) fn start(first: &str) -> io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "plimsoll-test-guardian", first])
            // Its own mark would be its end.
            .env_remove(RUN_VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { input, _child: child })
    }

    /// From now on, undo this.
    pub(super) fn add(&mut self, id: u64, command: &str) -> io::Result<()> {
        self.input.write_all(format!("add {id} {command}\n").as_bytes())
    }

    /// It was undone.
    pub(super) fn done(&mut self, id: u64) -> io::Result<()> {
        self.input.write_all(format!("done {id}\n").as_bytes())
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use super::Guardian;
    use crate::guard::ShmDir;
    use crate::wait::poll_until;

    #[test]
    fn at_the_end_it_undoes_what_was_not_done_last_first() {
        let dir = ShmDir::create("guardian").expect("a directory");
        let log = dir.path().join("log");
        let mut guardian = Guardian::start(&format!("echo first >> '{}'", log.display())).expect("starts");
        for id in [1, 2, 3, 10] {
            guardian.add(id, &format!("echo 'deed {id}' >> '{}'", log.display())).expect("listens");
        }
        guardian.done(2).expect("listens");
        drop(guardian);
        let text = poll_until(Duration::from_secs(10), "three deeds undone", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.lines().count() == 4 { Ok(text) } else { Err(text) }
        });
        assert_eq!(text.expect("in time"), "first\ndeed 10\ndeed 3\ndeed 1\n");
    }
}
