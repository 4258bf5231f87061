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
    /// The image file's content is not what was recorded when it was built.
    #[error("image {name}: {path}: checksum differs; run `berth image build {name}`")]
    Changed {
        /// The image.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// `NAME.json` is not what `build` writes.
    #[error("image {name}: {path} cannot be understood; run `berth image build {name}`")]
    BadRecord {
        /// The image.
        name: String,
        /// Its record.
        path: PathBuf,
        /// Where the JSON is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A name that can be no image's: it would leave the images' folder.
    #[error("`{name}` cannot name an image; use lower-case letters, digits and hyphens")]
    BadName {
        /// What was given.
        name: String,
    },
    /// Sandboxes run on the image.
    #[error("image {name} is in use by {users}; stop the apps that run on it first")]
    InUse {
        /// The image.
        name: String,
        /// Who uses it, for people.
        users: String,
    },
    /// No recipe of that name in any of the folders.
    #[error("there is no recipe {name}.toml in {}; set BERTH_RECIPES to the folder of the recipes", places(.looked_in))]
    NoRecipe {
        /// The recipe that was asked for.
        name: String,
        /// The folders that were searched, in order.
        looked_in: Vec<PathBuf>,
    },
    /// A recipe has a mistake.
    #[error("{path}: {mistake}")]
    BadRecipe {
        /// The recipe's file.
        path: PathBuf,
        /// The mistake, with line and column where there is one.
        mistake: String,
    },
    /// A program that builds need is not installed.
    #[error("building images needs `{program}`; run `apt-get install {package}`")]
    MissingTool {
        /// The program.
        program: &'static str,
        /// Debian's package with that program.
        package: &'static str,
    },
    /// The recipe is for another kind of processor.
    #[error("image {name} can be built on {recipe} only, and this host is {host}")]
    WrongProcessor {
        /// The image.
        name: String,
        /// What the recipe's pins are for.
        recipe: String,
        /// What this host is.
        host: &'static str,
    },
    /// A program that takes part in a build failed.
    #[error("image {name}: {what} failed ({status}){}", indent(.tail))]
    Step {
        /// The image.
        name: String,
        /// What was being done.
        what: String,
        /// How the program ended.
        status: String,
        /// The last lines that it printed.
        tail: Vec<String>,
    },
    /// A fetched package is not the one that the recipe pins.
    #[error("image {name}: {package} has the digest {found}, the recipe pins {pinned}; nothing of it was used")]
    WrongDigest {
        /// The image.
        name: String,
        /// The package.
        package: String,
        /// The digest of what came.
        found: String,
        /// The digest in the recipe.
        pinned: String,
    },
    /// A pinned package does not hold what the recipe takes out of it.
    #[error("image {name}: {package} has no {path}")]
    NotInPackage {
        /// The image.
        name: String,
        /// The package.
        package: String,
        /// What the recipe takes.
        path: String,
    },
    /// A fetched package cannot be unpacked.
    #[error("image {name}: cannot unpack {path}")]
    Unpack {
        /// The image.
        name: String,
        /// The package's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: zip::result::ZipError,
    },
    /// The image file cannot be shown at its folder.
    #[error("image {name}: cannot mount {path}; the kernel needs erofs (`modprobe erofs`)")]
    Mount {
        /// The image.
        name: String,
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
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

impl ImageError {
    /// Whether what was asked for is not there, as opposed to there and broken.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotBuilt { .. } | Self::NoRecipe { .. })
    }
}

/// Turns a system's error into [`ImageError::Io`]: `fs::read(p).map_err(at("read", p))`.
pub(crate) fn at(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.into();
    move |source| ImageError::Io { act, path, source }
}

fn indent(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n    {line}")).collect()
}

fn places(folders: &[PathBuf]) -> String {
    folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
