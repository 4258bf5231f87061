#![forbid(unsafe_code)]
//! berth-e2e.
