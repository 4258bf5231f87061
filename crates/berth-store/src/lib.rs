#![forbid(unsafe_code)]
//! berth-store.
