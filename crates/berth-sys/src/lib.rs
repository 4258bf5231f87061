#![allow(unsafe_code)]
//! berth-sys.

pub mod durable;
pub mod handle;
pub mod link;
pub mod loopdev;
pub mod netns;
pub mod packet;
pub mod process;
pub mod terminal;
