//! From start to end: what is opened in which order, and closed in which.

use std::{
    env,
    io::{self, IsTerminal},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use plimsoll_api::http::RUN_DIR;
use plimsoll_policy::History;
use rustix::process::{Resource, getrlimit, setpriority_process, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing_subscriber::EnvFilter;

use crate::{
    api,
    args::Options,
    config::{Config, JOURNAL_DIR, JournalDir},
    daemon::Daemon,
    events::Kind,
    host::HostReader,
    journal::Journal,
    notify,
    rundir::{self, RunDir},
    state::StateDir,
    tick::Ticker,
};

/// How long open requests may go on after the daemon was told to end.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// Ends of processes that wait to be noted; whoever tells of one more waits.
const DEATHS: usize = 64;

/// It takes a few thousandths of a processor, and guests in distress wait for it while others compete for the processors.
const NICE: i32 = -10;

/// Serves until a signal.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    start_log(&options.log)?;
    let config = options.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let dir = options.run_dir.clone().map_or_else(rundir::default_dir, Ok)?;
    let run_dir = RunDir::take(&dir)?;
    raise_descriptors();
    // Without the rights to it ticks come when there is a turn for them.
    let _ = setpriority_process(None, NICE);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(serve(config, &dir, &run_dir))
}

async fn serve(config: Config, dir: &Path, run_dir: &RunDir) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let mut journal = open_journal(&config, dir)?;
    // The first line of a journal is where its replay begins.
    journal.before_tick(&config.policy, &History::default());
    let mut host = HostReader::new(config.host.clone())?;
    let (deaths, dead) = mpsc::channel(DEATHS);
    let state = StateDir::new(run_dir.vms());
    let saved = state.load().with_context(|| format!("cannot read {}", run_dir.vms().display()))?;
    let daemon = Arc::new(Daemon::new(config, state, journal, host.read(), deaths));
    let text = format!("plimsolld {} serves {}", env!("CARGO_PKG_VERSION"), dir.display());
    daemon.change(|inner| inner.tell(None, Kind::DaemonStarted, text));
    daemon.restore(saved);

    let listener = api::Listener::new(run_dir.listen()?).context("cannot listen")?;
    let mut told = stop.clone();
    let stopping = async move {
        // A sender that is gone means the end as well.
        let _ = told.wait_for(|stop| *stop).await;
    };
    let api = tokio::spawn(api::serve(Arc::clone(&daemon), listener, stopping));
    let ticker = Ticker::new(Arc::clone(&daemon), host, dead);
    let ticks = tokio::spawn(async move {
        ticker.settle().await;
        ticker.run().await;
    });
    notify::tell("READY=1");
    let mut told = stop;
    let _ = told.wait_for(|stop| *stop).await;

    notify::tell("STOPPING=1");
    tracing::info!("ending; the VMs go on with the targets they have");
    if tokio::time::timeout(LAST_REQUESTS, api).await.is_err() {
        tracing::debug!("some requests did not end in time");
    }
    ticks.abort();
    run_dir.close();
    Ok(())
}

/// Becomes true at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        sender.send_replace(true);
        // The receivers look at the value; a second signal is to find the sender still there.
        terminate.recv().await;
    });
    Ok(receiver)
}

fn open_journal(config: &Config, dir: &Path) -> anyhow::Result<Journal> {
    let at = match &config.journal.dir {
        JournalDir::Off => return Ok(Journal::off()),
        JournalDir::At(path) => path.as_path(),
        JournalDir::Auto if dir == Path::new(RUN_DIR) => Path::new(JOURNAL_DIR),
        JournalDir::Auto => {
            tracing::info!("no journal: this is not the default run folder, and journal.dir names no place");
            return Ok(Journal::off());
        }
    };
    let opened = Journal::open(at, config.journal.max_size, config.journal.keep);
    opened.with_context(|| format!("cannot write a journal in {}", at.display()))
}

/// Log lines go to stderr; under systemd without the time, which the journal adds.
fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("`{filter}` is no log level"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    if env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    Ok(())
}

/// Three descriptors for each VM: the usual 1024 would end at 300 VMs.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the number of descriptors");
    }
}
