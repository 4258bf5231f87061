#![forbid(unsafe_code)]
//! berth-image.
