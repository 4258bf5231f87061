#![allow(unsafe_code)]
//! berth-sys.
