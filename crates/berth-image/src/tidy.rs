//! Makes a staged root the same at every build, and ready to be bound into: mount points, sane modes, no leftovers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

use crate::error::at;
use crate::recipe::Recipe;
use crate::{ImageError, Result};

/// Folders that sandboxes mount over; emptied in the image.
const MOUNT_POINTS: [&str; 9] = [
    "app",
    "workspace",
    "tmp",
    "proc",
    "sys",
    "dev",
    "dev/pts",
    "dev/shm",
    "run",
];

/// Files that sandboxes bind over; empty in the image.
const BIND_TARGETS: [&str; 3] = ["etc/resolv.conf", "etc/hosts", "etc/hostname"];

/// The one file that all clients in an image read certificate authorities from (sandboxes may bind over it).
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Lays the recipe's own files over the root: folders are joined, files replace files, links replace anything.
pub(crate) fn lay_trees(recipe: &Recipe, root: &Path) -> Result<()> {
    for tree in recipe.trees() {
        for entry in WalkDir::new(&tree).min_depth(1).sort_by_file_name() {
            let entry = entry.map_err(|e| at("read", &tree)(e.into()))?;
            let from = entry.path();
            let to = root.join(from.strip_prefix(&tree).unwrap_or(from));
            if entry.file_type().is_dir() {
                fs::create_dir_all(&to).map_err(at("create", &to))?;
            } else if entry.file_type().is_symlink() {
                link(&fs::read_link(from).map_err(at("read", from))?, &to)?;
            } else {
                remove(&to)?;
                fs::copy(from, &to).map_err(at("write", &to))?;
            }
        }
    }
    Ok(())
}

/// Makes the recipe's links.
pub(crate) fn lay_links(recipe: &Recipe, root: &Path) -> Result<()> {
    for (path, target) in &recipe.content.links {
        let path = root.join(path.trim_start_matches('/'));
        let parent = path.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(at("create", parent))?;
        link(Path::new(target), &path)?;
    }
    Ok(())
}

/// Joins Debian's certificate authorities into the one bundle, in the order of their names.
pub(crate) fn lay_authorities(root: &Path) -> Result<()> {
    let mut bundle = Vec::new();
    let shipped = root.join("usr/share/ca-certificates");
    for entry in WalkDir::new(&shipped).sort_by_file_name() {
        let entry = entry.map_err(|e| at("read", &shipped)(e.into()))?;
        if entry.path().extension().is_some_and(|ext| ext == "crt") {
            bundle.extend(fs::read(entry.path()).map_err(at("read", entry.path()))?);
        }
    }
    let to = root.join(AUTHORITIES);
    fs::write(&to, bundle).map_err(at("write", &to))
}

/// Gives every file and folder the time that the sealed image will give it, before the recipe's commands run: what
/// they keep may depend on it (Go indexes only source that is older than a moment, and by its time).
pub(crate) fn set_times(recipe: &Recipe, root: &Path) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(recipe.content.epoch);
    for entry in WalkDir::new(root).contents_first(true) {
        let entry = entry.map_err(|e| at("read", root)(e.into()))?;
        if entry.file_type().is_file() || entry.file_type().is_dir() {
            let path = entry.path();
            fs::File::open(path)
                .and_then(|file| file.set_modified(time))
                .map_err(at("set the time of", path))?;
        }
    }
    Ok(())
}

/// Takes out what the recipe leaves out, empties and makes the mount points, and sets every mode.
pub(crate) fn tidy(recipe: &Recipe, root: &Path) -> Result<()> {
    leave_out(recipe, root)?;
    for path in MOUNT_POINTS {
        let path = root.join(path);
        remove(&path)?;
        fs::create_dir_all(&path).map_err(at("create", &path))?;
    }
    for path in BIND_TARGETS {
        let path = root.join(path);
        remove(&path)?;
        fs::write(&path, "").map_err(at("write", &path))?;
    }
    set_modes(root)
}

fn leave_out(recipe: &Recipe, root: &Path) -> Result<()> {
    let globs = globs(recipe)?;
    let mut walk = WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let entry = entry.map_err(|e| at("read", root)(e.into()))?;
        let path = entry.path();
        let inside = Path::new("/").join(path.strip_prefix(root).unwrap_or(path));
        if globs.is_match(&inside) {
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
            remove(path)?;
        }
    }
    Ok(())
}

fn globs(recipe: &Recipe) -> Result<GlobSet> {
    let bad = |e: globset::Error| ImageError::BadRecipe {
        path: recipe.dir().join(format!("{}.toml", recipe.name())),
        mistake: format!("`remove`: {e}"),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in &recipe.content.remove {
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(bad)?);
    }
    set.build().map_err(bad)
}

/// Everything is readable by every user and writable by none but root: inside a sandbox the image's root user is
/// nobody, and nothing there may be set-uid.
fn set_modes(root: &Path) -> Result<()> {
    for entry in WalkDir::new(root) {
        let entry = entry.map_err(|e| at("read", root)(e.into()))?;
        if entry.file_type().is_symlink() {
            continue;
        }
        let path = entry.path();
        let own = fs::metadata(path).map_err(at("read", path))?.permissions().mode();
        let mode = if entry.file_type().is_dir() || own & 0o111 != 0 {
            0o755
        } else {
            0o644
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", path))?;
    }
    let tmp = root.join("tmp");
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(at("set the mode of", &tmp))
}

fn link(target: &Path, path: &Path) -> Result<()> {
    remove(path)?;
    symlink(target, path).map_err(at("link", path))
}

/// Removes a file, link or folder; one that is not there is fine.
fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(at("read", path)(e)),
        Ok(about) if about.is_dir() => fs::remove_dir_all(path).map_err(at("remove", path)),
        Ok(_) => fs::remove_file(path).map_err(at("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn tidying_leaves_mount_points_plain_modes_and_nothing_that_was_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir_all(&images).unwrap();
        let text = "suite = \"trixie\"\nepoch = 1\nremove = [\"/usr/share/doc\", \"/usr/**/*_test.go\"]\n";
        fs::write(images.join("x.toml"), text).unwrap();
        let recipe = Recipe::load(&images, "x").unwrap();
        let root = dir.path().join("root");
        for folder in ["etc", "tmp/left", "usr/share/doc/bash", "usr/lib/go/src"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in [
            "etc/hosts",
            "usr/lib/go/src/a.go",
            "usr/lib/go/src/a_test.go",
            "usr/bash",
        ] {
            fs::write(root.join(file), "content").unwrap();
        }
        fs::set_permissions(root.join("usr/bash"), fs::Permissions::from_mode(0o4750)).unwrap();

        tidy(&recipe, &root).unwrap();

        for gone in ["tmp/left", "usr/share/doc", "usr/lib/go/src/a_test.go"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        assert!(root.join("usr/lib/go/src/a.go").exists());
        assert_eq!(fs::read(root.join("etc/hosts")).unwrap(), b"");
        for point in MOUNT_POINTS {
            assert!(root.join(point).is_dir(), "{point}");
        }
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("usr/bash"), 0o755, "set-uid bits go, executables stay");
        assert_eq!(mode("usr/lib/go/src/a.go"), 0o644);
        assert_eq!(mode("tmp"), 0o1777);
    }
}
