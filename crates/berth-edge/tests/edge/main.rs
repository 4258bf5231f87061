//! The edge through its front door: a real edge on a free port, real clients, apps that are plain servers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod double;
mod forwarding;
mod holding;
mod keeping;
mod logging;
mod namespaces;
mod overhead;
mod own_answers;
mod streams;
mod strictness;
mod tunnels;
