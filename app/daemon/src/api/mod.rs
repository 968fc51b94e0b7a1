//! The HTTP API on the Unix socket: routes, and nothing that decides.

mod answer;
mod listener;
pub(crate) mod view;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use plimsoll_api::http::{
    EventList, Explain, Hold, HostView, ListView, MAX_BODY, Patch, Register, Stop, VmView,
};
use plimsoll_model::VmName;
use serde::Deserialize;

use crate::{daemon::Daemon, ops::Refusal};
use answer::{Args, Asked, Named};
use listener::Client;
pub(crate) use listener::Listener;

/// The longest a client may wait for events.
const EVENTS_WAIT: Duration = Duration::from_secs(30);

/// The longest a request may take, reading it included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);

type App = State<Arc<Daemon>>;
type Who = ConnectInfo<Client>;
type Answer<T> = Result<Json<T>, Refusal>;

/// Serves until `stop` is done; connections that are open then get a moment to end.
pub(crate) async fn serve(
    daemon: Arc<Daemon>,
    listener: Listener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = routes(daemon).into_make_service_with_connect_info::<Client>();
    axum::serve(listener, service).with_graceful_shutdown(stop).await
}

fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/vms", get(list).post(register))
        .route("/v1/vms/{name}", get(show).patch(patch).delete(forget))
        .route("/v1/vms/{name}/hold", put(hold).delete(release))
        .route("/v1/vms/{name}/stop", post(stop_vm))
        .route("/v1/vms/{name}/explain", get(explain))
        .route("/v1/events", get(events))
        .route("/v1/config", get(config))
        .route("/metrics", get(metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(in_time))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(daemon)
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal { status: 408, message: "the request took too long".into() }.into_response(),
    }
}

async fn host(State(daemon): App) -> Json<HostView> {
    Json(daemon.host())
}

async fn list(State(daemon): App) -> Json<ListView> {
    Json(daemon.list())
}

async fn register(
    State(daemon): App,
    ConnectInfo(who): Who,
    Asked(request): Asked<Register>,
) -> Result<(StatusCode, Json<VmView>), Refusal> {
    daemon.register(request, who.uid).await.map(|view| (StatusCode::CREATED, Json(view)))
}

async fn show(State(daemon): App, Named(name): Named) -> Answer<VmView> {
    daemon.show(&name).map(Json)
}

async fn patch(
    State(daemon): App,
    ConnectInfo(who): Who,
    Named(name): Named,
    Asked(patch): Asked<Patch>,
) -> Answer<VmView> {
    daemon.patch(&name, patch, who.uid).await.map(Json)
}

async fn forget(State(daemon): App, ConnectInfo(who): Who, Named(name): Named) -> Answer<VmView> {
    daemon.forget(&name, who.uid).map(Json)
}

async fn hold(
    State(daemon): App,
    ConnectInfo(who): Who,
    Named(name): Named,
    Asked(hold): Asked<Hold>,
) -> Answer<VmView> {
    daemon.hold(&name, hold, who.uid).await.map(Json)
}

async fn release(State(daemon): App, ConnectInfo(who): Who, Named(name): Named) -> Answer<VmView> {
    daemon.release(&name, who.uid).await.map(Json)
}

async fn stop_vm(
    State(daemon): App,
    ConnectInfo(who): Who,
    Named(name): Named,
    Asked(stop): Asked<Stop>,
) -> Answer<VmView> {
    daemon.stop(&name, stop.how, who.uid).await.map(Json)
}

async fn explain(State(daemon): App, Named(name): Named) -> Answer<Explain> {
    daemon.explain(&name).map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventArgs {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
    vm: Option<VmName>,
}

async fn events(State(daemon): App, Args(args): Args<EventArgs>) -> Json<EventList> {
    let until = tokio::time::Instant::now() + EVENTS_WAIT.min(Duration::from_millis(args.wait_ms));
    let mut newest = daemon.event_seq.subscribe();
    let mut after = args.after;
    loop {
        let seen = *newest.borrow_and_update();
        let answer = daemon.lock().events().after(after, args.vm.as_ref());
        if !answer.events.is_empty() || answer.lost > 0 {
            return Json(answer);
        }
        // Events of other VMs have been passed over; what was asked from before a restart begins anew.
        after = answer.last_seq;
        let more = newest.wait_for(|seq| *seq > seen.max(after));
        if tokio::time::timeout_at(until, more).await.is_err() {
            return Json(answer);
        }
    }
}

async fn config(State(daemon): App) -> Response {
    ([(header::CONTENT_TYPE, "application/toml; charset=utf-8")], daemon.config.to_toml()).into_response()
}

async fn metrics(State(daemon): App) -> Response {
    match daemon.metrics_text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            Refusal { status: 500, message: format!("cannot write the metrics: {error}") }.into_response()
        }
    }
}

async fn no_such_path(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(100).collect();
    Refusal::not_found(format!("there is nothing at `{path}`; the API's paths begin with /v1"))
}

async fn wrong_method(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(100).collect();
    Refusal { status: 405, message: format!("{} is not possible at `{path}`", request.method()) }
}
