//! Berth's edge: the HTTP proxy in front of all apps.
//!
//! One request's way:
//!
//! ```text
//!   listen.rs        accept ─▶ HTTP/1.1 or cleartext HTTP/2? ─▶ pingora's HTTP session over our socket (client_socket.rs)
//!   proxy.rs         limits ─▶ route (routes.rs) ─▶ hold.rs: wait for the app, body unread, client watched
//!                    ─▶ upstream_socket.rs: a socket inside the app's network namespace ─▶ headers out
//!                    ─▶ answer's headers put right (rewrite.rs) ─▶ bodies streamed both ways ─▶ access line
//!   pages.rs         every answer that is Berth's own
//! ```
//!
//! Pingora's proxy is used without pingora's server: its accept loop, signals, pid files and runtimes are replaced by one
//! plain thread ([`Edge`]) with a runtime of its own. So a taken port is an error value before anything runs, shutting
//! down is exact, and the edge can live in a process that has other runtimes.

#![forbid(unsafe_code)]

mod apps;
mod client_socket;
mod config;
mod counters;
mod edge;
mod hold;
mod listen;
mod pages;
mod proxy;
mod request;
mod rewrite;
mod routes;
mod upstream_socket;

pub use apps::{Apps, Lease, Refusal, Route, Upstream, Via};
pub use config::{EdgeConfig, EdgeError};
pub use counters::{Counters, CountersSnapshot};
pub use edge::Edge;
pub use routes::RouteTable;
