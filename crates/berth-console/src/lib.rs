#![forbid(unsafe_code)]
//! berth-console.
