#![forbid(unsafe_code)]
//! berth-edge.
