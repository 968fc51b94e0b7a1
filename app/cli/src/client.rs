//! The daemon's HTTP API, asked over its Unix socket: one connection a request, every wait with a deadline.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes as Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use plimsoll_api::http::{ListView, Problem};
use plimsoll_model::VmName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::rundir::RunDir;
use crate::suggest;

/// How long an ordinary request may take. The slowest, an adoption, gives a QMP socket 2 s to answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes: 10,000 VMs of 2 KiB and room.
const MAX_ANSWER: usize = 64 << 20;

/// What helps whoever typed a name that no VM has.
const LIST: &str = "`plimsoll list` shows those there are";

/// Why the daemon could not be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No socket, or nobody listens.
    #[error("no daemon answers at {}: {source}; start it with `{start}`", socket.display())]
    NotRunning {
        /// The API socket.
        socket: PathBuf,
        /// The command that starts a daemon there.
        start: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket may not be used by this user.
    #[error(
        "you may not use {}: {source}; only root and members of the group `plimsoll` may (`usermod -aG plimsoll USER`, then log in again)",
        socket.display()
    )]
    Forbidden {
        /// The API socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing within the deadline.
    #[error("the daemon at {} did not answer {what} within {} s; see its log", socket.display(), after.as_secs())]
    TimedOut {
        /// The API socket.
        socket: PathBuf,
        /// Method and path.
        what: String,
        /// The deadline.
        after: Duration,
    },
    /// Something that is not this API listens, or the connection broke.
    #[error("{} does not answer as a plimsoll daemon does ({what}): {why}; is another program listening there, or another version?", socket.display())]
    Broken {
        /// The API socket.
        socket: PathBuf,
        /// Method and path.
        what: String,
        /// What was seen.
        why: String,
    },
    /// The daemon's refusal, in its own words.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// For people.
        message: String,
    },
}

impl ClientError {
    /// Whether the daemon said that there is no such VM.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    /// Whether the daemon said that the name is taken.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::CONFLICT, .. })
    }

    /// Whether nobody could be asked at all.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self, Self::NotRunning { .. })
    }
}

/// Asks one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    start: String,
}

impl Client {
    /// For the daemon of this run folder.
    pub(crate) fn new(run_dir: &RunDir) -> Self {
        Self { socket: run_dir.socket(), start: run_dir.daemon_command() }
    }

    /// `GET path`, the answer as it is.
    pub(crate) async fn text(&self, path: &str) -> Result<String, ClientError> {
        self.ask(Method::GET, path, None, REQUEST_DEADLINE).await
    }

    /// `GET path`, read as `T`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let text = self.text(path).await?;
        self.read(path, &text)
    }

    /// `GET path`, which the daemon may answer as late as `wait` from now.
    pub(crate) async fn poll<T: DeserializeOwned>(
        &self,
        path: &str,
        wait: Duration,
    ) -> Result<T, ClientError> {
        let text = self.ask(Method::GET, path, None, wait.saturating_add(REQUEST_DEADLINE)).await?;
        self.read(path, &text)
    }

    /// Sends `body` and reads the answer as `T`.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, ClientError> {
        let json = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|e| self.broken(path, format!("cannot write the request: {e}")))?;
        let text = self.ask(method, path, json, REQUEST_DEADLINE).await?;
        self.read(path, &text)
    }

    /// Adds the names that may have been meant to a refusal with 404.
    pub(crate) async fn with_suggestion(&self, name: &VmName, error: ClientError) -> ClientError {
        let ClientError::Refused { status: StatusCode::NOT_FOUND, message } = error else {
            return error;
        };
        let known = match self.get::<ListView>("/v1/vms").await {
            Ok(list) => list.vms,
            Err(_) => Vec::new(),
        };
        let hint = suggest::did_you_mean(name.as_str(), known.iter().map(|vm| vm.name.as_str()));
        let message = match hint {
            Some(hint) => format!("{message}; {hint}"),
            None if message.contains(LIST) => message,
            None => format!("{message}; {LIST}"),
        };
        ClientError::Refused { status: StatusCode::NOT_FOUND, message }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<String, ClientError> {
        let what = format!("{method} {path}");
        match tokio::time::timeout(deadline, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut { socket: self.socket.clone(), what, after: deadline }),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<String, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(e))?;
        let what = format!("{method} {path}");
        let broken = |e: hyper::Error| self.broken(&what, describe(&e));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "plimsoll")
            .header("content-type", "application/json")
            .body(Full::new(Body::from(body.unwrap_or_default())))
            .map_err(|e| self.broken(&what, e.to_string()))?;
        // The connection's future moves the bytes of both directions; it ends with the exchange.
        let talk = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            self.collect(&what, response).await
        };
        tokio::pin!(talk);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            answer = &mut talk => answer,
            ended = &mut connection => match ended {
                // What had arrived before the connection closed is still to be read.
                Ok(()) => talk.await,
                Err(e) => Err(broken(e)),
            },
        }
    }

    async fn collect(&self, what: &str, response: Response<Incoming>) -> Result<String, ClientError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| self.broken(what, e.to_string()))?
            .to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => Err(ClientError::Refused { status, message: problem.error }),
            Err(_) => {
                let seen: String = text.chars().take(200).collect();
                Err(self.broken(what, format!("status {status}, `{}`", seen.escape_debug())))
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, what: &str, text: &str) -> Result<T, ClientError> {
        serde_json::from_str(text).map_err(|e| self.broken(what, format!("its answer cannot be read: {e}")))
    }

    fn broken(&self, what: &str, why: String) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), what: what.to_string(), why }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let (socket, start) = (self.socket.clone(), self.start.clone());
        if source.kind() == io::ErrorKind::PermissionDenied {
            ClientError::Forbidden { socket, source }
        } else {
            ClientError::NotRunning { socket, start, source }
        }
    }
}

/// An error of hyper with what is behind it.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
