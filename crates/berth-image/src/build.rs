//! One build, from a recipe to a sealed file.
//!
//! ```text
//!   Debian packages ─▶ pinned wheels, npm packages ─▶ the recipe's files and links ─▶ its commands ─▶ tidy ─▶ seal
//! ```
//! All of it happens in one staging folder beside the images, which is removed whatever happens; nothing is mounted
//! outside private mount namespaces. The image appears under its name by two renames at the end, the record last.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sha2::Sha256;
use time::OffsetDateTime;

use crate::command::{check_pip, check_tools, host, inside, run};
use crate::error::at;
use crate::recipe::Recipe;
use crate::{ImageError, ImageInfo, Result, debian, fetch, tidy};

/// Staging folders' names begin so; the next build removes what a killed one left.
pub(crate) const STAGING: &str = ".build-";

/// Builds the recipe's image into `images`. The caller holds the lock of that name.
pub(crate) fn build(images: &Path, recipe: &Recipe, progress: &mut dyn FnMut(&str)) -> Result<ImageInfo> {
    let (name, content) = (recipe.name(), &recipe.content);
    if !content.arch.is_empty() && content.arch != std::env::consts::ARCH {
        let (name, recipe) = (name.to_owned(), content.arch.clone());
        return Err(ImageError::WrongProcessor {
            name,
            recipe,
            host: std::env::consts::ARCH,
        });
    }
    check_tools()?;
    if !content.wheels.is_empty() {
        check_pip()?;
    }
    remove_leftovers(images, name);
    let staging = tempfile::Builder::new()
        .prefix(&format!("{STAGING}{name}-"))
        .tempdir_in(images)
        .map_err(at("create a staging folder in", images))?;
    let (scratch, root) = (staging.path(), staging.path().join("root"));

    progress(&format!("Debian {} packages", content.suite));
    let packages = debian::lay(name, content, scratch, &root)?;
    for wheel in &content.wheels {
        progress(&format!("{} {}", wheel.name, wheel.version));
        fetch::wheel(name, wheel, scratch, &root)?;
    }
    for package in &content.npm {
        progress(&format!("{} {}", package.name, package.version));
        fetch::npm(name, package, scratch, &root)?;
    }
    tidy::lay_trees(recipe, &root)?;
    tidy::lay_links(recipe, &root)?;
    tidy::lay_authorities(&root)?;
    tidy::set_times(recipe, &root)?;
    for step in &content.run {
        progress(&step.what);
        let mut command = inside(&root, &step.argv);
        command
            .env("SOURCE_DATE_EPOCH", content.epoch.to_string())
            .envs(&step.env);
        run(name, &step.what, &mut command)?;
    }
    tidy::tidy(recipe, &root)?;
    let versions = versions(recipe, &root)?;

    progress("sealing");
    let file = scratch.join("image.erofs");
    seal(recipe, &root, &file)?;
    let info = ImageInfo {
        name: name.to_owned(),
        size: fs::metadata(&file).map_err(at("read", &file))?.len(),
        sha256: hex::encode(fetch::digest::<Sha256>(&file)?),
        built: OffsetDateTime::now_utc(),
        recipe_sha256: recipe.sha256().to_owned(),
        versions,
        packages,
    };
    put_in_place(images, &file, &info)?;
    Ok(info)
}

/// Asks the programs inside for their versions: the first word of their output that begins with a digit counts.
fn versions(recipe: &Recipe, root: &Path) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for (program, argv) in &recipe.content.versions {
        let output = run(
            recipe.name(),
            &format!("running `{}`", argv.join(" ")),
            &mut inside(root, argv),
        )?;
        versions.insert(
            program.clone(),
            version_in(&output).unwrap_or_else(|| output.trim().to_owned()),
        );
    }
    Ok(versions)
}

/// `v24.19.0` → `24.19.0`; `go version go1.27.3 linux/amd64` → `1.27.3`.
fn version_in(output: &str) -> Option<String> {
    let words = output
        .split(|c: char| c.is_whitespace() || c == '/')
        .filter(|word| word.contains('.'));
    let mut numbers = words.map(|word| word.trim_start_matches(|c: char| !c.is_ascii_digit()));
    numbers.find(|word| !word.is_empty()).map(str::to_owned)
}

/// Seals `root` as one erofs file: every time stamp the recipe's, every owner root, the UUID from the recipe's digest.
///
/// Compressed in blocks of 64 KiB: half the size of a plain file at the same time of a cold `node -e 0` (200 ms from this
/// disk either way: what decompression costs, reading less wins), and there is no difference once it is in memory.
fn seal(recipe: &Recipe, root: &Path, file: &Path) -> Result<()> {
    let mut mkfs = host("mkfs.erofs");
    mkfs.args(["--quiet", "--all-root", "-x-1", "-zlz4hc,6", "-C65536"]);
    mkfs.arg(format!("-T{}", recipe.content.epoch));
    mkfs.arg(format!("-U{}", uuid(recipe.sha256()))).arg(file).arg(root);
    run(recipe.name(), "mkfs.erofs", &mut mkfs).map(|_| ())
}

/// A UUID of version 8 (made by a rule of one's own) out of a hex digest.
fn uuid(digest: &str) -> String {
    let part = |range| digest.get(range).unwrap_or("000000000000");
    format!(
        "{}-{}-8{}-8{}-{}",
        part(0..8),
        part(8..12),
        part(13..16),
        part(17..20),
        part(20..32)
    )
}

/// The file first, then its record: an image without a fitting record counts as not built.
fn put_in_place(images: &Path, file: &Path, info: &ImageInfo) -> Result<()> {
    let record = file.with_extension("json");
    let text = serde_json::to_string_pretty(info).unwrap_or_default();
    fs::write(&record, text + "\n").map_err(at("write", &record))?;
    sync(file)?;
    sync(&record)?;
    for (from, ending) in [(file, "erofs"), (&record, "json")] {
        let to = images.join(format!("{}.{ending}", info.name));
        fs::rename(from, &to).map_err(at("move a file to", &to))?;
    }
    sync(images)
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at("sync", path))
}

/// What a killed build left; failing to remove it is no reason not to build.
fn remove_leftovers(images: &Path, name: &str) {
    let prefix = format!("{STAGING}{name}-");
    for entry in fs::read_dir(images).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a killed build's folder cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_out_of_what_programs_print() {
        let cases = [
            ("v24.19.0\n", "24.19.0"),
            ("go version go1.27.3 linux/amd64", "1.27.3"),
            ("nginx version: nginx/1.26.3\n", "1.26.3"),
            ("uv 0.13.9 (abc 2026-01-01)", "0.13.9"),
            ("Python 3.13.5", "3.13.5"),
        ];
        for (output, version) in cases {
            assert_eq!(version_in(output).as_deref(), Some(version), "{output}");
        }
    }

    #[test]
    fn the_uuid_has_a_uuids_form_and_follows_the_digest() {
        let digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(uuid(digest), "01234567-89ab-8def-8123-456789abcdef");
    }
}
