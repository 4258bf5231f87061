//! The routes of the admin API and what they answer.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use berth_host::{AppSnapshot, Host, InvalidWorkspace};
use berth_mount::LocalPaths;
use berth_workspace::AppName;
use serde::{Deserialize, Serialize};

use crate::{error::ApiError, metrics, session, stream};

/// What the API works on.
#[derive(Clone)]
pub struct Api {
    /// The apps.
    pub host: Host,
    /// Where each app has a folder of logs.
    pub log_dir: PathBuf,
    /// Describes the daemon at the moment of the call.
    pub status: Arc<dyn Fn() -> DaemonStatus + Send + Sync>,
    /// What a workspace has on this host only. Looks at all its names: not to be asked from a thread that others wait for.
    pub local: Arc<dyn Fn(&AppName) -> LocalPaths + Send + Sync>,
}

/// One app, as `berth inspect` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppDetail {
    /// Its state.
    #[serde(flatten)]
    pub app: AppSnapshot,
    /// What of its workspace lives on this host only.
    #[serde(default)]
    pub local: LocalPaths,
}

/// The daemon itself, as `berth status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it came up.
    pub uptime_s: u64,
    /// The site's name.
    pub domain: String,
    /// Where the edge listens.
    pub edge: Vec<String>,
    /// Where the bucket is mounted.
    pub mount: PathBuf,
    /// The S3 server.
    pub s3_endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// Files that live on this host only, never in S3.
    pub local: berth_mount::LocalUsage,
    /// Saves that are not yet in S3.
    pub pending: berth_mount::Pending,
    /// Objects of the bucket that the mount does not show.
    #[serde(default)]
    pub unshown: berth_mount::Unshown,
    /// Changes made elsewhere that raised no inotify event: too many at once, or no helper to announce them.
    #[serde(default)]
    pub unannounced: u64,
    /// The journal of saves; none before the mount is up.
    #[serde(default)]
    pub journal: Option<berth_mount::JournalUsage>,
    /// How the S3 server gets on.
    #[serde(default)]
    pub s3: S3Status,
}

/// How the S3 server gets on with the daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct S3Status {
    /// Why saves do not get there at this moment, in words; none when they do.
    pub trouble: Option<String>,
    /// How changes made elsewhere come to be known.
    pub feed: Option<berth_store::Feed>,
    /// What became of the hints that hosts give each other, where they do.
    pub hints: Option<berth_store::HintCounts>,
}

/// All workspaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppList {
    /// Those that are apps, or could be.
    pub apps: Vec<AppSnapshot>,
    /// Folders whose names no app can have.
    pub invalid: Vec<InvalidWorkspace>,
    /// Saves that are not yet in S3.
    #[serde(default)]
    pub pending: berth_mount::Pending,
    /// Why they do not get there at this moment, in words.
    #[serde(default)]
    pub s3_trouble: Option<String>,
}

/// The API's router.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .route("/v1/apps", get(list))
        .route("/v1/apps/{name}", get(one))
        .route("/v1/apps/{name}/start", post(start))
        .route("/v1/apps/{name}/stop", post(stop))
        .route("/v1/apps/{name}/restart", post(restart))
        .route("/v1/apps/{name}/logs", get(logs))
        .route("/v1/apps/{name}/exec", get(session::exec))
        .route("/v1/apps/{name}/run", get(session::run))
        .route("/v1/events", get(events))
        .fallback(nothing)
        .with_state(api)
}

/// The app's name in a path, checked: only a valid name is ever made a path of the log folder.
pub(crate) fn parse_name(name: &str) -> Result<AppName, ApiError> {
    AppName::parse(name).map_err(|error| ApiError::new(StatusCode::NOT_FOUND, error.to_string()))
}

pub(crate) fn snapshot(api: &Api, name: &AppName) -> Result<AppSnapshot, ApiError> {
    api.host.app(name).ok_or_else(|| ApiError::no_such_app(name.as_str()))
}

async fn nothing() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no such call; is the command line as new as the daemon?",
    )
}

async fn status(State(api): State<Api>) -> Json<DaemonStatus> {
    Json((api.status)())
}

async fn metrics(State(api): State<Api>) -> Response {
    metrics::answer(&(api.status)(), &api.host.apps(), SystemTime::now())
}

async fn list(State(api): State<Api>) -> Json<AppList> {
    let status = (api.status)();
    Json(AppList {
        apps: api.host.apps(),
        invalid: api.host.invalid(),
        pending: status.pending,
        s3_trouble: status.s3.trouble,
    })
}

async fn one(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<AppDetail>, ApiError> {
    let name = parse_name(&name)?;
    let app = snapshot(&api, &name)?;
    let look = Arc::clone(&api.local);
    let local = tokio::task::spawn_blocking(move || look(&name)).await;
    let local = local.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(AppDetail { app, local }))
}

async fn start(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<AppSnapshot>, ApiError> {
    let app = parse_name(&name)?;
    snapshot(&api, &app)?;
    let lease = api
        .host
        .acquire(&app)
        .await
        .map_err(|error| ApiError::new(StatusCode::CONFLICT, berth_workspace::chain(&error)))?;
    drop(lease);
    snapshot(&api, &app).map(Json)
}

async fn stop(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<AppSnapshot>, ApiError> {
    let app = parse_name(&name)?;
    api.host.stop(&app).await?;
    snapshot(&api, &app).map(Json)
}

async fn restart(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<AppSnapshot>, ApiError> {
    let app = parse_name(&name)?;
    api.host.restart(&app).await?;
    snapshot(&api, &app).map(Json)
}

#[derive(Deserialize)]
struct LogsQuery {
    /// Lines of the past.
    tail: Option<usize>,
    /// Whether to go on.
    #[serde(default)]
    follow: bool,
}

/// Lines shown when nobody says how many.
const DEFAULT_TAIL: usize = 1000;

async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let app = parse_name(&name)?;
    let dir = api.log_dir.join(app.as_str());
    // An app that is gone may still have logs to read.
    if !dir.exists() {
        snapshot(&api, &app)?;
    }
    stream::logs(&dir, query.tail.unwrap_or(DEFAULT_TAIL), query.follow).map_err(|error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot read the logs in {}: {error}", dir.display()),
        )
    })
}

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    follow: bool,
    app: Option<String>,
}

async fn events(State(api): State<Api>, Query(query): Query<EventsQuery>) -> Response {
    // Subscribed before the past is read, so that nothing falls between.
    let to_come = query.follow.then(|| api.host.events());
    stream::events(api.host.recent_events(), to_come, query.app)
}
