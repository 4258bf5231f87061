#![forbid(unsafe_code)]
//! What the end-to-end tests stand on: a real daemon of their own, driven from outside.
//!
//! [`Daemon::start`] runs the real `berth serve` with its own ports, folders, mount point, subnet and instance name, so that many run
//! side by side and beside the one a person uses. Only the images are shared (read-only; see [`images`]). Everything is waited for by
//! condition ([`wait`]), never by sleeping. When a [`Daemon`] is dropped, also by a failing test, it is told to stop; what it then leaves
//! behind is found by [`Leftovers`], which tests assert to be empty, and is cleared away.

pub mod crash;
mod daemon;
pub mod fault_proxy;
mod http;
mod leftovers;
mod rclone;
pub mod samples;
mod servers;
mod terminal;
mod tools;
mod wait;
mod watcher;

pub use daemon::{Daemon, Options, Output};
pub use http::{Answer, Http};
pub use leftovers::Leftovers;
pub use rclone::Bucket;
pub use servers::{Foreign, Make};
pub use terminal::Terminal;
pub use tools::tool;
pub use wait::{wait, wait_for};
pub use watcher::{Event, Watcher};

use std::path::PathBuf;

/// The folder of built images: `BERTH_TEST_IMAGES`, else where `cargo xtask image` puts them.
#[must_use]
pub fn images() -> PathBuf {
    std::env::var_os("BERTH_TEST_IMAGES").map_or_else(|| "/var/lib/berth/images".into(), PathBuf::from)
}
