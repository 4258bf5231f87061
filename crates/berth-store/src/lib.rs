//! The bucket: [`Store`] is the S3 client every other part of Berth uses, [`EmbeddedServer`] is the S3 server that
//! Berth brings along so that a host needs no other.
//!
//! ```text
//!   mount, host ──▶ Store ──HTTP, SigV4──▶ EmbeddedServer (or AWS, Garage, Ceph, ...)
//!                     ▲                       │ after each durable commit
//!                     └──────── changes ◀─────┘ (a server without such a feed is polled by LIST)
//! ```
//!
//! The store speaks real S3 even to the embedded server: one code path, and every other S3 client sees the same bucket.
#![forbid(unsafe_code)]

mod credentials;
mod embedded;
mod error;
mod etag;
mod keys;
mod object;
mod store;

pub use credentials::{Credentials, CredentialsError, load_or_create_credentials};
pub use embedded::{EmbeddedConfig, EmbeddedError, EmbeddedServer};
pub use error::{Act, StoreError};
pub use etag::ETag;
pub use keys::{Cursor, KeyMap};
pub use object::{Change, ObjectInfo, Precondition};
pub use store::{Abilities, Access, Examination, Feed, HintCounts, Hints, Multipart, Store, StoreConfig};

/// The result of an operation on the bucket.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
