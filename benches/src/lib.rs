#![forbid(unsafe_code)]
//! berth-benches.
