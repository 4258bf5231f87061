#![forbid(unsafe_code)]
//! berth-workspace.
