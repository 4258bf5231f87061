#![forbid(unsafe_code)]
//! berth-sandbox.
