#![forbid(unsafe_code)]
//! berth-host.
