//! Proof that no acknowledged save is lost: a daemon is killed while programs save, started again, and what is there is
//! compared with what was acknowledged.
//!
//! ```text
//!   writer process ──saves──▶ mount ─ daemon ─ [proxy] ─ S3        bed.rs: these live on from round to round
//!         │                            ▲
//!         │ each step, before and      └── kill -9 at a random moment, or at a named step of its own work   round.rs
//!         ▼ after its acknowledgement
//!      records ──▶ what must be there ◀─ compared ─▶ the mount at once, the mount and the bucket when nothing is pending
//!      record.rs   model.rs                          look.rs
//! ```
//! - A name must hold what was acknowledged last, or what a step under way at the kill would have made of it: whole, or not
//!   at all. Nothing else may be there: no half file, no temporary object, no conflict (there is one writer only).
//! - The writer (writer.rs) is never killed. It asks each call for its result; `close` too, which the standard library drops.
//! - Now and then journal and cache are taken away while nothing is pending: the bucket alone must give the same tree.
//! - Chance comes from one seed. The moments of death do not: a seed that failed once is a good guess, not a promise.

mod bed;
mod campaign;
mod look;
mod model;
mod names;
mod record;
mod round;
mod writer;

pub use campaign::{Campaign, POINTS, REPLAY_POINTS, Setup, Summary, mix};
pub use round::{Mode, Outcome};
pub use writer::run_if_ordered;
