//! The smallest image, built for real and used: from Debian's packages to a site that nginx serves.
//!
//! Needs root, the host tools of a build, and Debian's mirror.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread;

use berth_image::{ImageError, ImageInfo, ImageStore, Recipe};
use tempfile::TempDir;

/// The images of one test; mounts go with it.
struct Images {
    store: ImageStore,
    dir: TempDir,
}

impl Images {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "building and mounting images needs root"
        );
        let dir = tempfile::Builder::new()
            .prefix("berth-image-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let store = ImageStore::open(dir.path().join("images"), dir.path().join("mounts")).unwrap();
        Self { store, dir }
    }

    /// A store that has the nginx image, copied from the one that all tests share.
    fn with_nginx() -> Self {
        let images = Self::new();
        for ending in ["erofs", "json"] {
            let file = format!("nginx.{ending}");
            fs::copy(shared().join(&file), images.dir.path().join("images").join(&file)).unwrap();
        }
        images
    }

    fn file(&self) -> PathBuf {
        self.store.file("nginx")
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let _ = self.store.unmount_all();
    }
}

/// The folder of an image built once for all tests of this program. It is always the same folder, so that runs do not
/// pile up images.
fn shared() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
        let store = ImageStore::open(dir.clone(), dir.join("mounts")).unwrap();
        store.build_with(&recipe(), true, &mut |_| {}).unwrap();
        dir
    })
}

fn recipe() -> Recipe {
    Recipe::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images"), "nginx").unwrap()
}

fn build(images: &Images, force: bool) -> (ImageInfo, Vec<String>) {
    let mut said = Vec::new();
    let info = images
        .store
        .build_with(&recipe(), force, &mut |what| said.push(what.to_owned()))
        .unwrap();
    (info, said)
}

#[test]
fn building_twice_gives_the_same_bytes_and_no_leftovers() {
    let images = Images::with_nginx();
    let first = images.store.info("nginx").unwrap();
    let (second, said) = build(&images, true);
    assert_eq!(first.sha256, second.sha256);
    assert!(second.built > first.built);
    assert!(said.iter().any(|what| what.contains("trixie")), "{said:?}");
    let left: Vec<_> = fs::read_dir(images.dir.path().join("images"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().starts_with(".build-")),
        "{left:?}"
    );
}

#[test]
fn an_up_to_date_image_is_left_alone_and_says_what_is_inside() {
    let images = Images::with_nginx();
    let (info, said) = build(&images, false);
    assert_eq!(said, ["up to date"]);
    assert!(info.versions["nginx"].starts_with("1."), "{:?}", info.versions);
    assert!(info.packages.contains_key("nginx"), "{:?}", info.packages);
    assert_eq!(info.recipe_sha256, recipe().sha256());
    assert_eq!(images.store.list().unwrap(), [info]);
}

#[test]
fn two_builds_at_once_make_one_image() {
    let images = Images::new();
    let built = thread::scope(|scope| {
        let builds: Vec<_> = (0..2).map(|_| scope.spawn(|| build(&images, false).1)).collect();
        builds
            .into_iter()
            .map(|build| build.join().unwrap())
            .collect::<Vec<_>>()
    });
    let real = built
        .iter()
        .filter(|said| said.iter().any(|what| what == "sealing"))
        .count();
    assert_eq!(real, 1, "{built:?}");
}

#[test]
fn a_changed_file_is_found_and_told_with_the_way_out() {
    let images = Images::with_nginx();
    images.store.verify("nginx").unwrap();
    let mut bytes = fs::read(images.file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(images.file(), bytes).unwrap();
    let error = images.store.verify("nginx").unwrap_err();
    assert!(matches!(error, ImageError::Changed { .. }));
    assert!(
        error
            .to_string()
            .ends_with("checksum differs; run `berth image build nginx`"),
        "{error}"
    );
}

#[test]
fn an_image_is_mounted_once_read_only_and_a_rebuilt_one_elsewhere() {
    let images = Images::with_nginx();
    let root = images.store.mount("nginx").unwrap();
    assert_eq!(root, images.store.mount("nginx").unwrap());
    assert!(fs::write(root.join("etc/x"), "").is_err());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mine: Vec<_> = table
        .lines()
        .filter(|line| line.contains(&*root.to_string_lossy()))
        .collect();
    assert_eq!(mine.len(), 1, "{mine:?}");
    assert!(mine[0].contains("ro,nosuid,nodev"), "{mine:?}");

    // As after a rebuild with other content: another digest.
    let record = images.file().with_extension("json");
    let text = fs::read_to_string(&record)
        .unwrap()
        .replace(&images.store.info("nginx").unwrap().sha256, &"ab".repeat(32));
    fs::write(&record, text).unwrap();
    let other = images.store.mount("nginx").unwrap();
    assert_ne!(root, other);
    assert!(
        root.join("etc/nginx/berth.conf").exists(),
        "who runs on the old one keeps it"
    );
}

#[test]
fn what_sandboxes_mount_over_is_there_and_nothing_is_set_uid() {
    let images = Images::with_nginx();
    let root = images.store.mount("nginx").unwrap();
    for folder in [
        "app",
        "workspace",
        "tmp",
        "proc",
        "sys",
        "dev",
        "dev/pts",
        "dev/shm",
        "run",
    ] {
        assert!(root.join(folder).is_dir(), "{folder}");
    }
    for file in ["etc/resolv.conf", "etc/hosts", "etc/hostname"] {
        assert_eq!(fs::metadata(root.join(file)).unwrap().len(), 0, "{file}");
    }
    let authorities = fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(authorities.matches("BEGIN CERTIFICATE").count() > 50);
    assert!(
        fs::read_to_string(root.join("etc/passwd"))
            .unwrap()
            .contains("app:x:1000:1000::/tmp/home:/bin/sh")
    );
    for entry in walkdir::WalkDir::new(&root) {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{}", entry.path().display());
        assert!(
            entry.file_type().is_symlink() || mode & 0o004 != 0,
            "{} is readable",
            entry.path().display()
        );
    }
}

#[test]
fn an_image_in_use_is_not_removed_and_an_unused_one_is() {
    let images = Images::with_nginx();
    let root = images.store.mount("nginx").unwrap();
    // A mount namespace of its own that holds the image, as a sandbox does.
    let mut user = Killed(
        Command::new("unshare")
            .args(["--mount", "cat"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let theirs = || fs::read_link(format!("/proc/{}/ns/mnt", user.0.id())).ok();
    while theirs().is_none_or(|ns| ns == own) {
        thread::yield_now();
    }
    let error = images.store.remove("nginx").unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    assert!(root.join("etc/passwd").exists());

    user.0.kill().unwrap();
    user.0.wait().unwrap();
    images.store.remove("nginx").unwrap();
    assert!(!images.file().exists() && !root.exists());
    assert!(matches!(images.store.mount("nginx"), Err(ImageError::NotBuilt { .. })));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As in a sandbox: an ordinary user, a read-only root, /tmp, no network but a loopback of its own.
const SITE: &str = r#"
    mount -t tmpfs -o mode=1777 tmp "$0/tmp" && mount --bind "$1" "$0/workspace" && mount --rbind /dev "$0/dev"
    ip link set lo up 2>/dev/null
    exec chroot --userspec=1000:1000 "$0" sh -c '
        PORT=8123 berth-static /workspace & server=$!
        until wget -q -O /dev/null http://127.0.0.1:8123/; do kill -0 $server || exit 9; done
        wget -q -O - http://127.0.0.1:8123/
        echo second > /workspace/index.html
        wget -q -O - http://127.0.0.1:8123/
        printf "GET /sub HTTP/1.0\r\n\r\n" | nc 127.0.0.1 8123 | tr -d "\r" | grep ^Location
        wget -q -O - http://127.0.0.1:8123/workspace.json || echo hidden
        wget -S -q -O - http://127.0.0.1:8123/style.css 2>&1 | tr -d "\r" | grep -o "Content-Type: .*"
        kill $server; wait $server'"#;

#[test]
fn nginx_serves_a_site_as_an_ordinary_user_and_shows_edits_at_once() {
    let images = Images::with_nginx();
    let root = images.store.mount("nginx").unwrap();
    let site = images.dir.path().join("site");
    fs::create_dir_all(site.join("sub")).unwrap();
    for (name, content) in [
        ("index.html", "first\n"),
        ("sub/index.html", ""),
        ("workspace.json", "{}"),
        ("style.css", ""),
    ] {
        fs::write(site.join(name), content).unwrap();
        fs::set_permissions(site.join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    fs::set_permissions(images.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "timeout",
        "60",
        "sh",
        "-c",
        SITE,
    ]);
    command
        .arg(&root)
        .arg(&site)
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let done = command.output().unwrap();
    let (said, complaints) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    let expected = "first\nsecond\nLocation: /sub/\nhidden\nContent-Type: text/css; charset=utf-8\n";
    assert_eq!(said, expected, "{complaints}");
    assert!(
        !complaints.contains("[warn]") && !complaints.contains("[emerg]"),
        "{complaints}"
    );
}
