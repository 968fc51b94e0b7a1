//! Whole reports or none, and never waiting.

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};

/// How much of what the host says is read at a time: more than it has to say.
const MOST_HEARD: usize = 256;

/// A port that does not block.
#[derive(Debug)]
pub(crate) struct Line {
    port: File,
    /// The end of a report whose beginning the port has taken. It goes first.
    rest: Vec<u8>,
}

impl Line {
    /// The port was opened with `O_NONBLOCK`.
    pub(crate) fn new(port: File) -> Self {
        Self { port, rest: Vec::with_capacity(plimsoll_agent_proto::MAX_FRAME) }
    }

    /// Sends a report, or leaves it out when the port takes nothing: the host reads nothing, and when it does again
    /// it wants the next one and not this. Returns whether it is on its way.
    ///
    /// # Errors
    /// The port is gone.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        let taken = self.write(frame)?;
        if taken > 0 {
            self.rest.extend_from_slice(frame.get(taken..).unwrap_or_default());
        }
        Ok(taken > 0)
    }

    /// Sends what is left of the last report. Returns whether nothing is left.
    ///
    /// # Errors
    /// The port is gone.
    pub(crate) fn flush(&mut self) -> Result<bool> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            let taken = self.write(&rest);
            self.rest = rest;
            self.rest.drain(..taken?);
        }
        Ok(self.rest.is_empty())
    }

    /// Hands on what the host has said. Errors are not told here: the next report meets them.
    pub(crate) fn hear(&mut self, mut heard: impl FnMut(&[u8])) {
        let mut bytes = [0; MOST_HEARD];
        // 0 is no end here: a virtio port has it while the host has not opened its side.
        if let Ok(n @ 1..) = self.port.read(&mut bytes) {
            heard(bytes.get(..n).unwrap_or_default());
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        loop {
            match self.port.write(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod test {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use plimsoll_agent_proto::{Decoder, Report, encode};
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    use super::*;

    /// A line through a pipe of one page, which takes a part of a report when it is nearly full.
    fn narrow() -> (Line, File) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).expect("makes");
        fcntl_setpipe_size(&writer, 4096).expect("sets");
        (Line::new(writer.into()), reader.into())
    }

    fn frame(seq: u64) -> Vec<u8> {
        let mut frame = Vec::new();
        encode(&Report { session: 1, seq, ..Report::default() }, &mut frame);
        frame
    }

    /// A pipe promises to take small writes whole, so that a torn one is made by hand.
    #[test]
    fn the_end_of_a_report_goes_before_the_next() {
        let (mut line, mut reader) = narrow();
        let (first, second) = (frame(1), frame(2));
        line.port.write_all(&first[..5]).expect("writes");
        line.rest.extend(&first[5..]);
        assert!(line.send(&second).expect("open"));
        let mut got = vec![0; 1000];
        let n = reader.read(&mut got).expect("reads");
        assert_eq!(got[..n], [first, second].concat());
    }

    #[test]
    fn a_host_that_does_not_read_loses_whole_reports() {
        let (near, far) = UnixStream::pair().expect("makes");
        near.set_nonblocking(true).expect("sets");
        let mut line = Line::new(OwnedFd::from(near).into());
        let sent = (1..20_000).filter(|seq| line.send(&frame(*seq)).expect("open")).count();
        assert!((10..19_000).contains(&sent), "{sent}");
        let (mut decoder, mut seqs) = (Decoder::new(), Vec::new());
        let mut far = far;
        far.set_nonblocking(true).expect("sets");
        let mut bytes = [0; 1000];
        while let Ok(n @ 1..) = far.read(&mut bytes) {
            decoder.feed(&bytes[..n], |report| seqs.push(report.seq));
            line.flush().expect("open");
        }
        assert!(line.send(&frame(30_000)).expect("open"), "it is heard again");
        while let Ok(n @ 1..) = far.read(&mut bytes) {
            decoder.feed(&bytes[..n], |report| seqs.push(report.seq));
        }
        assert_eq!(seqs.len(), sent + 1);
        assert_eq!(seqs.last(), Some(&30_000));
        assert_eq!((decoder.counters().bad_frames, decoder.counters().skipped_bytes), (0, 0));
    }

    #[test]
    fn a_port_that_is_gone_is_an_error() {
        let (mut line, reader) = narrow();
        drop(reader);
        assert_eq!(line.send(&frame(1)).expect_err("is gone").kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_host_is_heard_and_its_silence_is_not_the_end() {
        let (near, mut far) = UnixStream::pair().expect("makes");
        near.set_nonblocking(true).expect("sets");
        let mut line = Line::new(OwnedFd::from(near).into());
        line.hear(|bytes| panic!("{bytes:?}"));
        far.write_all(b"words").expect("writes");
        let mut heard = Vec::new();
        line.hear(|bytes| heard.extend_from_slice(bytes));
        assert_eq!(heard, b"words");
        drop(far);
        line.hear(|bytes| panic!("{bytes:?}"));
    }
}
