#![allow(unsafe_code)]
//! berth-sys.

pub mod loopdev;
pub mod link;
pub mod netns;
pub mod process;
pub mod packet;
pub mod terminal;
