//! A QEMU of straw for tests: it listens where a QEMU would, answers as QEMU 7.2 answers, and misbehaves on
//! demand. `tests/conformance.rs` holds it and a real QEMU to the same assertions.
//!
//! Only with the feature `testing`. Like QEMU it serves one connection at a time; the next waits ungreeted.

mod machine;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinHandle,
};

pub use machine::{Greeting, Machine};

/// A listening fake. Dropping it ends it and removes its socket.
#[derive(Debug)]
pub struct FakeQemu {
    path: PathBuf,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    machine: Mutex<Machine>,
    /// Something is to be written, or the connection is to be ended.
    wake: Notify,
}

impl Shared {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeQemu {
    /// Listens at `path`. Must be called within a tokio runtime.
    pub fn start(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { path: path.to_path_buf(), shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the machine, or changes it.
    pub fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        let result = act(&mut self.shared.machine());
        self.shared.wake.notify_one();
        result
    }

    /// Writes these bytes to whoever is connected, or to the next one who is.
    pub fn say(&self, bytes: &[u8]) {
        self.with(|machine| machine.outbox.extend_from_slice(bytes));
    }

    /// Ends the present connection; the listener stays.
    pub fn hang_up(&self) {
        self.with(|machine| machine.hang_up = true);
    }
}

impl Drop for FakeQemu {
    fn drop(&mut self) {
        self.task.abort();
        // Nobody can be told if this fails; the test's folder goes anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.machine().greet();
        // An error means that the client went: the next one is served.
        let _ = serve(stream, &shared).await;
        shared.machine().hung_up();
    }
}

async fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    loop {
        let outbox = std::mem::take(&mut shared.machine().outbox);
        write.write_all(&outbox).await?;
        if shared.machine().hang_up {
            return Ok(());
        }
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => shared.machine().hear(&line),
                None => return Ok(()),
            },
            () = shared.wake.notified() => {}
        }
    }
}
