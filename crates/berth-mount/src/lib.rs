#![forbid(unsafe_code)]
//! berth-mount.
