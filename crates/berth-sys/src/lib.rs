#![allow(unsafe_code)]
//! berth-sys.

pub mod netns;
pub mod process;
