#![forbid(unsafe_code)]
//! berth-harness.
