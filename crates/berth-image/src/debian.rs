//! The Debian part of an image, laid out by mmdebstrap.
//!
//! Packages are unpacked, not configured (`--variant=extract`): no maintainer script runs, so nothing of the host, of
//! the hour or of chance gets into the image, no dpkg, perl or debconf is needed in it, and a build takes seconds. What
//! those scripts would have made and an app needs (users, links, the library cache, the list of authorities) is in
//! `rootfs/base`, in the recipes' links and in [`crate::tidy`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::Result;
use crate::command::{host, run};
use crate::error::at;
use crate::recipe::Content;

/// Lays the recipe's Debian packages out in `root`, which must not exist, and returns their versions by name.
pub(crate) fn lay(image: &str, content: &Content, scratch: &Path, root: &Path) -> Result<BTreeMap<String, String>> {
    let archives = scratch.join("archives.txt");
    let mut command = host("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=extract", "--components=main"]);
    command.arg(format!("--include={}", content.packages.join(",")));
    command.arg(format!(
        "--extract-hook=ls \"$1/var/cache/apt/archives\" > '{}'",
        archives.display()
    ));
    command
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg("--aptopt=Acquire::Languages \"none\"");
    command.arg(&content.suite).arg(root);
    command.args(mirror());
    command.env("SOURCE_DATE_EPOCH", content.epoch.to_string());
    run(
        image,
        &format!("unpacking Debian {}'s packages", content.suite),
        &mut command,
    )?;
    let listing = fs::read_to_string(&archives).map_err(at("read", &archives))?;
    Ok(listing.lines().filter_map(package).collect())
}

/// `bash_5.2.37-2+b10_amd64.deb` → `bash`, `5.2.37-2+b10`. apt writes an epoch's colon as `%3a`.
fn package(file: &str) -> Option<(String, String)> {
    let mut parts = file.trim().strip_suffix(".deb")?.split('_');
    Some((parts.next()?.to_owned(), parts.next()?.replace("%3a", ":")))
}

/// The mirror that this host itself uses for Debian; None: mmdebstrap's own default.
fn mirror() -> Option<String> {
    let dir = Path::new("/etc/apt/sources.list.d");
    let listed = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<_> = listed.chain([Path::new("/etc/apt/sources.list").to_owned()]).collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
}

/// The first Debian archive in an apt source list of either format. Security and other vendors' archives do not count:
/// a path that ends in `/debian` is what every Debian mirror has.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(|word| word.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_mirror_is_found_in_both_formats_and_only_debians() {
        let deb822 = "Types: deb\n# http://a.invalid/debian\nURIs: http://mirror.invalid/debian\nSuites: trixie\n";
        assert_eq!(mirror_in(deb822).as_deref(), Some("http://mirror.invalid/debian"));
        let one_line =
            "# deb http://x.invalid/debian trixie main\ndeb [signed-by=/k] https://m.invalid/debian/ trixie main\n";
        assert_eq!(mirror_in(one_line).as_deref(), Some("https://m.invalid/debian"));
        assert_eq!(
            mirror_in("Types: deb\nURIs: http://mirror.invalid/debian-security\n"),
            None
        );
        assert_eq!(mirror_in("deb https://vendor.invalid/node_20.x nodistro main\n"), None);
    }

    #[test]
    fn a_package_file_says_its_name_and_version() {
        assert_eq!(
            package("libcap2_1%3a2.75-10_amd64.deb"),
            Some(("libcap2".into(), "1:2.75-10".into()))
        );
        assert_eq!(package("lock"), None);
    }
}
