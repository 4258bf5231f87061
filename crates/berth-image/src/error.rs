//! What can go wrong with an image: one variant for each act that failed, with the object and the way out.

use std::io;
use std::path::PathBuf;

/// Why something could not be done with an image or its recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image of that name was built here.
    #[error("there is no image {name}; run `berth image build {name}`")]
    NotBuilt {
        /// The image that was asked for.
        name: String,
    },
    /// The image file's checksum is not the one recorded when it was built.
    #[error("image {name}: {path}: checksum differs from the one recorded when it was built; run `berth image build {name}`")]
    Changed {
        /// The image.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// A file or folder could not be read, written, moved or removed.
    #[error("cannot {act} {path}")]
    Io {
        /// What was tried: "read", "create"...
        act: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}
