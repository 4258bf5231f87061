//! Recipes: what an image is made of, as `images/NAME.toml` says it.
//!
//! A recipe lists content only, no commands to fetch with, so that two builds of one recipe differ only where Debian's
//! packages do. `extends = "base"` takes over another recipe's lists before its own. The folder `rootfs/` beside the
//! recipes' folder holds the files that recipes bring along.
//!
//! A recipe's digest covers its own text, the text of what it extends, every file that it brings along and the
//! version of this builder: an image with the same digest beside it is up to date.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::error::at;
use crate::{ImageError, Result};

/// Part of every recipe's digest: count it up when the builder makes something else of the same recipe.
const BUILDER: &str = "berth image builder 3";

/// A recipe, read from `images/NAME.toml` and checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    dir: PathBuf,
    name: String,
    sha256: String,
    pub(crate) content: Content,
}

/// A recipe's lists.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Content {
    /// What the image is for, in one line.
    #[serde(default)]
    pub about: String,
    /// The recipe whose lists come before this one's.
    pub extends: Option<String>,
    /// The processor that the pins are for, in Rust's words.
    #[serde(default)]
    pub arch: String,
    /// Debian's suite.
    #[serde(default)]
    pub suite: String,
    /// The time of every file in the image, in seconds since 1970.
    #[serde(default)]
    pub epoch: u64,
    /// Debian packages; what they depend on comes with them.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Folders in `rootfs/` laid over the image.
    #[serde(default)]
    pub files: Vec<String>,
    /// Pinned Python wheels that carry binaries.
    #[serde(default)]
    pub wheels: Vec<Wheel>,
    /// Pinned npm packages.
    #[serde(default)]
    pub npm: Vec<NpmPackage>,
    /// Symbolic links: path in the image → target.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// Commands run inside the staged root before anything is removed.
    #[serde(default)]
    pub run: Vec<Run>,
    /// What is left out: globs over absolute paths in the image.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Commands that say a version: name → argv.
    #[serde(default)]
    pub versions: BTreeMap<String, Vec<String>>,
}

/// One pinned wheel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wheel {
    pub name: String,
    pub version: String,
    /// SHA-256 of the wheel file, in hex.
    pub sha256: String,
    pub take: Vec<Take>,
}

/// One pinned npm package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NpmPackage {
    pub name: String,
    pub version: String,
    /// SHA-512 of the package file as npm writes it: `sha512-` and base64.
    pub integrity: String,
    pub take: Vec<Take>,
}

/// A file or folder of a package and where it goes in the image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Take {
    pub from: String,
    pub to: String,
    /// Makes the file, or every file of the folder, executable; else the package's own bits count.
    #[serde(default)]
    pub executable: bool,
}

/// A command run inside the staged root, without network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    pub what: String,
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl Recipe {
    /// Reads the recipe `NAME.toml` in `recipes_dir`, with what it extends.
    ///
    /// # Errors
    /// [`ImageError::NoRecipe`] if it is not there, [`ImageError::BadRecipe`] with line and column if it is wrong.
    pub fn load(recipes_dir: &Path, name: &str) -> Result<Recipe> {
        check_name(name)?;
        let mut digest = Sha256::new();
        digest.update(BUILDER);
        let content = read(recipes_dir, name, &mut digest, 0)?;
        let path = recipes_dir.join(format!("{name}.toml"));
        let mistake = |mistake: &str| ImageError::BadRecipe {
            path: path.clone(),
            mistake: mistake.to_owned(),
        };
        if content.suite.is_empty() {
            return Err(mistake("`suite` is missing: name Debian's suite"));
        }
        if content.epoch == 0 {
            return Err(mistake(
                "`epoch` is missing: the time that every file of the image gets",
            ));
        }
        let recipe = Recipe {
            dir: recipes_dir.to_owned(),
            name: name.to_owned(),
            sha256: String::new(),
            content,
        };
        for tree in recipe.trees() {
            digest_tree(&tree, &mut digest)?;
        }
        Ok(Recipe {
            sha256: hex::encode(digest.finalize()),
            ..recipe
        })
    }

    /// Finds a recipe by name in `$BERTH_RECIPES`, `./images`, `/usr/share/berth/images`: the first that has it.
    ///
    /// # Errors
    /// [`ImageError::NoRecipe`] with the folders that were searched.
    pub fn find(name: &str) -> Result<Recipe> {
        check_name(name)?;
        let looked_in = Self::folders();
        match looked_in
            .iter()
            .find(|folder| folder.join(format!("{name}.toml")).is_file())
        {
            Some(folder) => Recipe::load(folder, name),
            None => Err(ImageError::NoRecipe {
                name: name.to_owned(),
                looked_in,
            }),
        }
    }

    /// The folders that [`Recipe::find`] searches, in order.
    pub fn folders() -> Vec<PathBuf> {
        let said = std::env::var_os("BERTH_RECIPES")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from);
        said.into_iter()
            .chain(["images".into(), "/usr/share/berth/images".into()])
            .collect()
    }

    /// The names of all recipes that make an image (`base` only serves others): those in `recipes_dir`, or in the
    /// first of [`Recipe::folders`] that is there.
    ///
    /// # Errors
    /// [`ImageError::NoRecipe`] if there is no such folder; [`ImageError::Io`] if it cannot be read.
    pub fn names(recipes_dir: Option<&Path>) -> Result<Vec<String>> {
        let looked_in = recipes_dir.map_or_else(Self::folders, |dir| vec![dir.to_owned()]);
        let Some(dir) = looked_in.iter().find(|dir| dir.is_dir()) else {
            return Err(ImageError::NoRecipe {
                name: "base".to_owned(),
                looked_in,
            });
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(at("read", dir))? {
            let path = entry.map_err(at("read", dir))?.path();
            if path.extension().is_some_and(|ext| ext == "toml")
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
                && stem != "base"
            {
                names.push(stem.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the image is for, in one line.
    pub fn about(&self) -> &str {
        &self.content.about
    }

    /// The folder that it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Digest of everything that the recipe says and brings along, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The folders that are laid over the image, in order.
    pub(crate) fn trees(&self) -> Vec<PathBuf> {
        let rootfs = self
            .dir
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .join("rootfs");
        self.content.files.iter().map(|name| rootfs.join(name)).collect()
    }
}

/// A name must stay inside the images' folder.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.starts_with('-') || !name.chars().all(fits) {
        return Err(ImageError::BadName { name: name.to_owned() });
    }
    Ok(())
}

fn read(dir: &Path, name: &str, digest: &mut Sha256, depth: usize) -> Result<Content> {
    let path = dir.join(format!("{name}.toml"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ImageError::NoRecipe {
                name: name.to_owned(),
                looked_in: vec![dir.to_owned()],
            });
        }
        Err(e) => return Err(at("read", path)(e)),
    };
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(&text);
    let bad = |mistake: String| ImageError::BadRecipe {
        path: path.clone(),
        mistake,
    };
    let content: Content = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
    match &content.extends {
        None => Ok(content),
        Some(_) if depth > 3 => Err(bad("recipes extend each other in a circle".to_owned())),
        Some(base) => {
            check_name(base)?;
            Ok(merge(read(dir, base, digest, depth + 1)?, content))
        }
    }
}

/// Lists are joined, `own`'s after `base`'s; single values of `own` win.
fn merge(base: Content, own: Content) -> Content {
    fn or(own: String, base: String) -> String {
        if own.is_empty() { base } else { own }
    }
    fn join<T>(mut base: Vec<T>, own: Vec<T>) -> Vec<T> {
        base.extend(own);
        base
    }
    fn over<V>(mut base: BTreeMap<String, V>, own: BTreeMap<String, V>) -> BTreeMap<String, V> {
        base.extend(own);
        base
    }
    Content {
        about: own.about,
        extends: None,
        arch: or(own.arch, base.arch),
        suite: or(own.suite, base.suite),
        epoch: if own.epoch == 0 { base.epoch } else { own.epoch },
        packages: join(base.packages, own.packages),
        files: join(base.files, own.files),
        wheels: join(base.wheels, own.wheels),
        npm: join(base.npm, own.npm),
        links: over(base.links, own.links),
        run: join(base.run, own.run),
        remove: join(base.remove, own.remove),
        versions: over(base.versions, own.versions),
    }
}

/// Adds every path, kind, executable bit and content below `root` to the digest, in the order of names.
fn digest_tree(root: &Path, digest: &mut Sha256) -> Result<()> {
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry.map_err(|e| at("read", root)(e.into()))?;
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(path);
        let kind = entry.file_type();
        let (tag, body) = if kind.is_symlink() {
            (
                b'l',
                fs::read_link(path)
                    .map_err(at("read", path))?
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
            )
        } else if kind.is_dir() {
            (b'd', Vec::new())
        } else {
            let mode = fs::metadata(path).map_err(at("read", path))?.permissions().mode();
            (
                if mode & 0o100 == 0 { b'f' } else { b'x' },
                fs::read(path).map_err(at("read", path))?,
            )
        };
        for part in [name.as_os_str().as_bytes(), &body] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.update([tag]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn small(dir: &Path, body: &str) -> PathBuf {
        let images = dir.join("images");
        fs::create_dir_all(&images).unwrap();
        fs::create_dir_all(dir.join("rootfs/extra/etc")).unwrap();
        fs::write(dir.join("rootfs/extra/etc/motd"), "hello\n").unwrap();
        fs::write(
            images.join("base.toml"),
            "suite = \"trixie\"\nepoch = 1\npackages = [\"bash\"]\n",
        )
        .unwrap();
        fs::write(images.join("small.toml"), body).unwrap();
        images
    }

    #[test]
    fn every_recipe_of_the_repository_is_sound_and_pinned() {
        let dir = repository().join("images");
        assert_eq!(Recipe::names(Some(&dir)).unwrap(), ["go", "nginx", "node", "python"]);
        for name in Recipe::names(Some(&dir)).unwrap() {
            let recipe = Recipe::load(&dir, &name).unwrap();
            assert!(!recipe.about().is_empty(), "{name} says what it is for");
            assert!(!recipe.content.versions.is_empty(), "{name} can say its versions");
            for wheel in &recipe.content.wheels {
                assert_eq!(hex::decode(&wheel.sha256).unwrap().len(), 32, "{name}: {}", wheel.name);
            }
            for package in &recipe.content.npm {
                assert!(package.integrity.starts_with("sha512-"), "{name}: {}", package.name);
            }
        }
    }

    #[test]
    fn a_recipe_takes_over_what_it_extends() {
        let dir = tempfile::tempdir().unwrap();
        let images = small(
            dir.path(),
            "extends = \"base\"\npackages = [\"curl\"]\nfiles = [\"extra\"]\n",
        );
        let recipe = Recipe::load(&images, "small").unwrap();
        assert_eq!(recipe.content.packages, ["bash", "curl"]);
        assert_eq!(recipe.content.suite, "trixie");
    }

    #[test]
    fn the_digest_follows_the_files_that_a_recipe_brings_along_and_what_it_extends() {
        let dir = tempfile::tempdir().unwrap();
        let images = small(dir.path(), "extends = \"base\"\nfiles = [\"extra\"]\n");
        let digest = || Recipe::load(&images, "small").unwrap().sha256().to_owned();
        let first = digest();
        assert_eq!(first, digest());
        fs::write(dir.path().join("rootfs/extra/etc/motd"), "good bye\n").unwrap();
        let second = digest();
        assert_ne!(first, second);
        fs::write(images.join("base.toml"), "suite = \"trixie\"\nepoch = 2\n").unwrap();
        assert_ne!(second, digest());
    }

    #[test]
    fn a_mistake_in_a_recipe_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let images = small(dir.path(), "extends = \"base\"\npackges = []\n");
        let error = Recipe::load(&images, "small").unwrap_err().to_string();
        assert!(
            error.contains("small.toml") && error.contains("line 2") && error.contains("packges"),
            "{error}"
        );
    }

    #[test]
    fn a_name_cannot_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x", "", "a/b", "-x", "A"] {
            assert!(
                matches!(Recipe::load(dir.path(), name), Err(ImageError::BadName { .. })),
                "{name}"
            );
        }
    }
}
