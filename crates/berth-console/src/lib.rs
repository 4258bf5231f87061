#![forbid(unsafe_code)]
//! The admin API: what the command line (and later the web console) asks of a running daemon.
//!
//! HTTP and JSON over a unix socket, because every language can speak it and the file's owner and mode (0660) say who may:
//!
//! ```text
//!   GET  /v1/status                     the daemon itself
//!   GET  /metrics                       the same as numbers, for Prometheus
//!   GET  /v1/apps                       all apps, and folders that cannot be apps
//!   GET  /v1/apps/NAME                  one app, and what of its workspace is on this host only
//!   POST /v1/apps/NAME/{start,stop,restart}
//!   GET  /v1/apps/NAME/logs?tail=N&follow=true      one JSON object a line; endless with follow
//!   GET  /v1/apps/NAME/exec?request=JSON            101, then frames (see [`frames`])
//!   GET  /v1/apps/NAME/run?request=JSON             the same in a sandbox made for it
//!   GET  /v1/events?follow=true         what happened lately, one JSON object a line
//! ```
//!
//! Errors are `{"error": "..."}` with the fitting status: 400, 404, 409, 422 (the
//! command cannot be run), 500, 503.
//!
//! Not here: how apps live (`berth-host`), how requests reach them (`berth-edge`).

mod api;
mod error;
pub mod frames;
mod listen;
mod metrics;
mod session;
mod stream;

pub use api::{Api, AppDetail, AppList, DaemonStatus, S3Status, router};
pub use listen::{ListenError, bind, serve};
pub use session::RunParameters;
