//! What is known of a sealed image: the content of `NAME.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One sealed image, as `NAME.json` beside it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The image's name: `node`, `python`, `go`, `nginx`.
    pub name: String,
    /// Bytes of the image file.
    pub size: u64,
    /// SHA-256 of the image file, in hex.
    pub sha256: String,
    /// When it was built on this host.
    #[serde(with = "time::serde::rfc3339")]
    pub built: OffsetDateTime,
    /// SHA-256 of the recipe and of the files that it brings along, in hex.
    pub recipe_sha256: String,
    /// What is inside, as the programs themselves say: `node` → `24.19.0`.
    pub versions: BTreeMap<String, String>,
    /// Debian packages inside with their versions.
    #[serde(default)]
    pub packages: BTreeMap<String, String>,
}
