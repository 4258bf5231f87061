//! The images of one host: files in one folder, mount points in another.
//!
//! ```text
//!   images/node.erofs  node.json  .node.lock       mounts/node@1f2e3d4c5b6a/   (named after the file's digest)
//! ```
//! A rebuilt image has another digest, so it gets a mount point of its own; sandboxes that run on the old one keep it.
//! Builds of one name exclude each other by a lock on `.NAME.lock`, also between processes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use sha2::Sha256;

use crate::error::at;
use crate::recipe::check_name;
use crate::{ImageError, ImageInfo, Recipe, Result, build, fetch, mount};

/// The images of this host. Cheap to clone; all methods block.
#[derive(Debug, Clone)]
pub struct ImageStore {
    images: PathBuf,
    mounts: PathBuf,
}

impl ImageStore {
    /// Opens the store with its files in `images_dir` and its mount points in `mounts_dir`; makes both folders.
    ///
    /// # Errors
    /// [`ImageError::Io`] if a folder cannot be made.
    pub fn open(images_dir: PathBuf, mounts_dir: PathBuf) -> Result<Self> {
        for dir in [&images_dir, &mounts_dir] {
            fs::create_dir_all(dir).map_err(at("create", dir))?;
        }
        Ok(Self {
            images: images_dir,
            mounts: mounts_dir,
        })
    }

    /// All images, by name. A record that cannot be read is left out with a warning.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the images' folder cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.images).map_err(at("read", &self.images))? {
            let path = entry.map_err(at("read", &self.images))?.path();
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else {
                continue;
            };
            if path.extension().is_none_or(|ext| ext != "json") || check_name(name).is_err() {
                continue;
            }
            match self.info(name) {
                Ok(info) => images.push(info),
                Err(error) => tracing::warn!(image = name, %error, "image left out of the list"),
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// What is recorded of one image.
    ///
    /// # Errors
    /// [`ImageError::NotBuilt`] if its file or record is missing; [`ImageError::BadRecord`] if that is damaged.
    pub fn info(&self, name: &str) -> Result<ImageInfo> {
        check_name(name)?;
        let path = self.record(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(ImageError::NotBuilt { name: name.to_owned() }),
            Err(e) => return Err(at("read", path)(e)),
        };
        if !self.file(name).is_file() {
            return Err(ImageError::NotBuilt { name: name.to_owned() });
        }
        serde_json::from_slice(&text).map_err(|source| ImageError::BadRecord {
            name: name.to_owned(),
            path,
            source,
        })
    }

    /// Reads the whole file and compares its checksum with the recorded one.
    ///
    /// # Errors
    /// [`ImageError::Changed`] if they differ.
    pub fn verify(&self, name: &str) -> Result<ImageInfo> {
        let info = self.info(name)?;
        let path = self.file(name);
        if hex::encode(fetch::digest::<Sha256>(&path)?) != info.sha256 {
            return Err(ImageError::Changed {
                name: name.to_owned(),
                path,
            });
        }
        Ok(info)
    }

    /// Removes an image, its mount points included.
    ///
    /// # Errors
    /// [`ImageError::InUse`] while a process runs on it; [`ImageError::NotBuilt`] if it is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _lock = self.lock(name)?;
        let found = self.info(name).map(|_| ());
        if let Err(ImageError::NotBuilt { .. }) = &found {
            return found;
        }
        mount::release(&self.mounts, name)?;
        for path in [self.record(name), self.file(name)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(at("remove", path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Builds the recipe's image unless an up-to-date one is there; `progress` hears what is being done.
    ///
    /// Waits while another process builds the same image.
    ///
    /// # Errors
    /// [`ImageError::MissingTool`], [`ImageError::Step`] and the others: each says what to do. An image that was there
    /// before stays.
    pub fn build(&self, recipe: &Recipe, progress: &mut dyn FnMut(&str)) -> Result<ImageInfo> {
        self.build_with(recipe, false, progress)
    }

    /// As [`ImageStore::build`]; with `force` also if an up-to-date image is there.
    ///
    /// # Errors
    /// As [`ImageStore::build`].
    pub fn build_with(&self, recipe: &Recipe, force: bool, progress: &mut dyn FnMut(&str)) -> Result<ImageInfo> {
        let up_to_date = || self.up_to_date(recipe).filter(|_| !force);
        if let Some(info) = up_to_date() {
            progress("up to date");
            return Ok(info);
        }
        let _lock = self.lock(recipe.name())?;
        // While we waited for the lock another process may have built it.
        match up_to_date() {
            Some(info) => Ok(info),
            None => build::build(&self.images, recipe, progress),
        }
    }

    /// The image that this very recipe made, if it is there with the recorded size.
    pub fn up_to_date(&self, recipe: &Recipe) -> Option<ImageInfo> {
        let info = self.info(recipe.name()).ok()?;
        let size = fs::metadata(self.file(recipe.name())).ok()?.len();
        (info.recipe_sha256 == recipe.sha256() && info.size == size).then_some(info)
    }

    /// Shows the image at a folder, read-only, and returns it: the same folder for as long as the image is the same.
    ///
    /// # Errors
    /// [`ImageError::NotBuilt`]; [`ImageError::Changed`] if the file's size is not the recorded one (the checksum is
    /// left to [`ImageStore::verify`]); [`ImageError::Mount`] without erofs or without root's rights.
    pub fn mount(&self, name: &str) -> Result<PathBuf> {
        let info = self.info(name)?;
        let file = self.file(name);
        if fs::metadata(&file).map_err(at("read", &file))?.len() != info.size {
            return Err(ImageError::Changed {
                name: name.to_owned(),
                path: file,
            });
        }
        let digest = info.sha256.get(..12).unwrap_or(&info.sha256);
        let root = self.mounts.join(format!("{name}@{digest}"));
        let _lock = lock(&self.mounts.join(".lock"))?;
        if !mount::is_mounted(&root)? {
            fs::create_dir_all(&root).map_err(at("create", &root))?;
            mount::mount(name, &file, &root)?;
        }
        Ok(root)
    }

    /// Unmounts all images here. Sandboxes keep what they run on: their mounts are their own.
    ///
    /// # Errors
    /// [`ImageError::Io`] for the first that stays, because some process still stands in it; the others are unmounted.
    pub fn unmount_all(&self) -> Result<()> {
        mount::unmount_below(&self.mounts)
    }

    /// The file of the image `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.images.join(format!("{name}.erofs"))
    }

    fn record(&self, name: &str) -> PathBuf {
        self.images.join(format!("{name}.json"))
    }

    fn lock(&self, name: &str) -> Result<File> {
        check_name(name)?;
        lock(&self.images.join(format!(".{name}.lock")))
    }
}

/// Waits for the lock on `path`; dropping the file gives it back.
fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at("open", path))?;
    file.lock().map_err(at("lock", path))?;
    Ok(file)
}
