//! What is done inside a guest: Plimsoll's agent started, stopped and ended, other bytes sent in its place.

use std::time::Duration;

use plimsoll_api::http::VmView;
use plimsoll_e2e::{Kind, PATIENCE, Vm};
use plimsoll_model::Source;

/// Bytes a line of the console takes, in base64, beside the command.
const PIECE: usize = 2400;
/// Begins each script.
const SHELL: &str = "b=/bin/busybox";

/// The inside of a guest.
#[derive(Clone, Copy)]
pub(crate) struct Inside<'v, 'b>(pub(crate) &'v Vm<'b>);

impl Inside<'_, '_> {
    /// A line for its shell, which must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        self.0.send(&format!("sh {SHELL}; {line}")).text().to_owned()
    }

    /// Shell that finds the agent's end of its line and opens it as descriptor 3, set up as an agent does.
    fn open_line(&self) -> &'static str {
        match self.0.kind {
            Kind::Uml => "exec 3<>/dev/ttyS0; $b stty raw -echo <&3",
            Kind::Qemu => {
                "for port in /sys/class/virtio-ports/*; do \
                 if [ \"$($b cat $port/name)\" = org.plimsoll.agent.0 ]; then exec 3<>/dev/${port##*/}; fi; done"
            }
        }
    }

    /// Starts Plimsoll's agent.
    #[track_caller]
    pub(crate) fn start_agent(&self) {
        let port = match self.0.kind {
            Kind::Uml => " --port /dev/ttyS0",
            Kind::Qemu => "",
        };
        self.sh(&format!("$b setsid /bin/plimsoll-agent{port} </dev/null >/tmp/agent.log 2>&1 &"));
    }

    /// Starts it and waits until it is heard.
    #[track_caller]
    pub(crate) fn agent_is_heard(&self) -> VmView {
        self.start_agent();
        self.is_heard()
    }

    /// Waits until it is heard.
    #[track_caller]
    pub(crate) fn is_heard(&self) -> VmView {
        self.0.wait("its agent to be heard", PATIENCE, |view| view.source == Source::Agent)
    }

    /// Sends it a signal, named as for kill(1).
    #[track_caller]
    pub(crate) fn signal_agent(&self, signal: &str) {
        self.sh(&format!("$b killall -{signal} plimsoll-agent"));
    }

    /// Writes a file.
    #[track_caller]
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.sh(&format!(": > {path}"));
        for piece in bytes.chunks(PIECE) {
            self.sh(&format!("echo {} | $b base64 -d >> {path}", base64(piece)));
        }
    }

    /// Runs a script in the background with the agent's line as descriptor 3; [`Inside::hush`] ends it.
    #[track_caller]
    fn speak(&self, script: &str) {
        self.put("/tmp/speak", format!("{SHELL}\n{}\n{script}\n", self.open_line()).as_bytes());
        self.sh("$b setsid $b sh /tmp/speak </dev/null >/tmp/speak.log 2>&1 & echo $! > /tmp/speak.pid");
    }

    /// Sends frames in the place of an agent, one after the other, with pauses.
    #[track_caller]
    pub(crate) fn say(&self, frames: &[Vec<u8>], pause: Duration) {
        let length = frames[0].len();
        assert!(frames.iter().all(|frame| frame.len() == length), "frames of one length were expected");
        self.put("/tmp/frames", &frames.concat());
        let (count, pause_us) = (frames.len(), pause.as_micros());
        self.speak(&format!(
            "i=0; while [ $i -lt {count} ]; do $b dd if=/tmp/frames bs={length} skip=$i count=1 2>/dev/null >&3; \
             i=$((i+1)); $b usleep {pause_us}; done"
        ));
    }

    /// Sends frames over and over, as fast as the line takes them.
    #[track_caller]
    pub(crate) fn repeat(&self, frames: &[Vec<u8>]) {
        self.put("/tmp/frames", &frames.concat());
        // Larger pieces, so that the guest is not busy with starting `cat`.
        self.sh("for i in 1 2 3 4 5 6 7 8 9; do $b cat /tmp/frames; done > /tmp/many");
        self.speak("while $b dd if=/tmp/many bs=4096 >&3; do :; done");
    }

    /// Sends random bytes, as fast as the line takes them.
    #[track_caller]
    pub(crate) fn rave(&self) {
        // By ordinary writes: `cat` hands the kernel 16 MiB at once, and is not to be ended before the host has read them.
        self.speak("$b dd if=/dev/urandom bs=4096 >&3");
    }

    /// Ends what speaks in the agent's place: the whole session.
    #[track_caller]
    pub(crate) fn hush(&self) {
        self.sh(
            "p=$($b cat /tmp/speak.pid); $b kill -KILL -$p 2>/dev/null || $b kill -KILL $p 2>/dev/null; :",
        );
    }
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let byte = |at: usize| usize::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        (0..4)
            .map(move |at| {
                let missing = at > three.len();
                if missing { '=' } else { char::from(DIGITS[bits >> (18 - 6 * at) & 63]) }
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[cfg(test)]
mod test {
    use super::base64;

    #[test]
    fn as_in_rfc_4648_section_10() {
        let is = |text: &str, code: &str| assert_eq!(base64(text.as_bytes()), code);
        is("", "");
        is("f", "Zg==");
        is("fo", "Zm8=");
        is("foo", "Zm9v");
        is("foob", "Zm9vYg==");
        is("foobar", "Zm9vYmFy");
    }
}
