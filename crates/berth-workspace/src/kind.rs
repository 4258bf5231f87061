//! The four kinds of apps and the image each runs in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an app is written in, and so how it is installed and started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// JavaScript or TypeScript run by Node.js.
    Node,
    /// Python.
    Python,
    /// Go.
    Go,
    /// Files served by nginx, straight from the workspace.
    Static,
}

/// The text names none of the kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown type {0:?}: the types are node, python, go and static")]
pub struct UnknownKind(pub String);

impl Kind {
    /// All kinds, in the order in which they are detected.
    pub const ALL: [Self; 4] = [Self::Node, Self::Python, Self::Go, Self::Static];

    /// The word used in `workspace.json` and in all output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Python => "python",
            Self::Go => "go",
            Self::Static => "static",
        }
    }

    /// Name of the image that runs this kind.
    #[must_use]
    pub fn image(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Python => "python",
            Self::Go => "go",
            Self::Static => "nginx",
        }
    }

    /// The `PORT` an app of this kind is given when its `workspace.json` names none.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Node => 3000,
            Self::Python => 8000,
            Self::Go | Self::Static => 8080,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|k| k.as_str() == s)
            .ok_or_else(|| UnknownKind(s.to_owned()))
    }
}
