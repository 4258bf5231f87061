#![forbid(unsafe_code)]
//! Images: the read-only root file systems that sandboxes run on, one language runtime each.
//!
//! An image begins as a [`Recipe`] (`images/NAME.toml`): which Debian packages, which binaries out of which pinned
//! registry packages, which files of this repository, and what to leave out. [`ImageStore::build`] lays all of that out
//! in a staging folder, takes out everything that differs from one build to the next, and seals the result as one erofs
//! file with a `NAME.json` beside it that says what is inside and what its checksum must be. The same recipe on the
//! same packages gives the same bytes. [`ImageStore::mount`] shows a sealed image at a folder, once per host,
//! read-only; every sandbox of that language shares those pages.
//!
//! Everything from the outside is fetched by its own ordinary client (mmdebstrap and apt, pip, npm) and checked
//! against the digest in the recipe before it is unpacked.
//!
//! Not here: what is done with a mounted image (berth-sandbox), and the `berth image` commands (berth).

mod build;
mod command;
mod debian;
mod error;
mod fetch;
mod info;
mod mount;
mod recipe;
mod store;
mod tidy;

pub use error::ImageError;
pub use info::ImageInfo;
pub use recipe::Recipe;
pub use store::ImageStore;

/// The result of everything that this crate does with images.
pub type Result<T> = std::result::Result<T, ImageError>;
