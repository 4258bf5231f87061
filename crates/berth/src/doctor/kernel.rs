//! What the kernel can do.

use std::fs;
use std::path::Path;

use berth_sandbox::network::{self, NetworkError, firewall};
use nix::sys::utsname::uname;

use super::Check;

/// The first kernel that mounts an erofs image straight from its file; before it goes through a loop device.
const FILE_BACKED_EROFS: (u32, u32) = (6, 12);
/// The oldest kernel with all that sandboxes need: erofs with compression, overlayfs, pidfds, clone3.
const OLDEST: (u32, u32) = (5, 10);
/// The namespaces every sandbox has of its own.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

pub(super) fn checks(network: bool) -> Vec<Check> {
    let release = uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut checks = vec![version(&release), namespaces(), user_namespaces()];
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let modules = module_lists(&release);
    for (filesystem, purpose) in [
        ("overlay", "writable root folders"),
        ("erofs", "images"),
        ("fuse", "the mount"),
    ] {
        checks.push(self::filesystem(filesystem, purpose, &filesystems, &modules));
    }
    checks.push(fuse_device());
    checks.push(seccomp(
        &fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default(),
    ));
    if network {
        checks.extend([links(), nftables(), other_firewalls(), forwarding()]);
    }
    checks
}

fn version(release: &str) -> Check {
    let name = "kernel";
    let newer = "install a newer kernel: 6.12 or later is best";
    match major_minor(release) {
        None => Check::warn(name, format!("`{release}` is no version that is understood"), newer),
        Some(version) if version >= FILE_BACKED_EROFS => Check::ok(name, release),
        Some(version) if version >= OLDEST => Check::warn(
            name,
            format!("{release}: images are mounted through loop devices"),
            newer,
        ),
        Some(_) => Check::fail(name, format!("{release} is too old"), newer),
    }
}

/// The first two numbers of a kernel's release.
fn major_minor(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn namespaces() -> Check {
    let missing: Vec<_> = NAMESPACES
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    if missing.is_empty() {
        Check::ok("namespaces", NAMESPACES.join(", "))
    } else {
        Check::fail(
            "namespaces",
            format!("the kernel lacks {}", missing.join(", ")),
            "use a kernel with CONFIG_NAMESPACES and all kinds",
        )
    }
}

fn user_namespaces() -> Check {
    let path = "/proc/sys/user/max_user_namespaces";
    user_namespace_limit(&fs::read_to_string(path).unwrap_or_default())
}

fn user_namespace_limit(text: &str) -> Check {
    let name = "user namespaces";
    let mend = "sysctl -w user.max_user_namespaces=15000, and the same line in /etc/sysctl.d/";
    match text.trim().parse::<u64>() {
        Ok(0) => Check::fail(name, "turned off", mend),
        Ok(limit) if limit < 256 => Check::warn(name, format!("at most {limit}: one app needs one"), mend),
        Ok(limit) => Check::ok(name, format!("up to {limit}")),
        Err(_) => Check::fail(name, "not known to the kernel", "use a kernel with CONFIG_USER_NS"),
    }
}

/// The kernel's own lists of modules: those that can be loaded, and those built in.
fn module_lists(release: &str) -> String {
    let folder = Path::new("/lib/modules").join(release);
    ["modules.dep", "modules.builtin"]
        .map(|file| fs::read_to_string(folder.join(file)).unwrap_or_default())
        .concat()
}

fn filesystem(filesystem: &str, purpose: &str, filesystems: &str, modules: &str) -> Check {
    let name = format!("{filesystem} file system");
    if filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some(filesystem))
    {
        Check::ok(name, "there")
    } else if has_module(modules, filesystem) {
        Check::ok(name, "there, loaded when needed")
    } else {
        let mend = format!("modprobe {filesystem}; if there is no such module, install the kernel's extra modules");
        Check::fail(name, format!("not there; needed for {purpose}"), mend)
    }
}

/// Whether a modules.dep or modules.builtin names the module: a path that ends in `/NAME.ko` and perhaps a compression.
fn has_module(list: &str, module: &str) -> bool {
    let wanted = format!("{module}.ko");
    list.lines()
        .filter_map(|line| line.split(':').next()?.rsplit('/').next())
        .any(|file| {
            file.strip_prefix(&wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
}

fn fuse_device() -> Check {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::ok("/dev/fuse", "can be opened"),
        Err(error) => Check::fail(
            "/dev/fuse",
            error.to_string(),
            "modprobe fuse; in a container, pass the device in (--device /dev/fuse)",
        ),
    }
}

fn seccomp(actions: &str) -> Check {
    if actions.split_whitespace().any(|action| action == "errno") {
        Check::ok("seccomp", "filters work")
    } else {
        Check::fail(
            "seccomp",
            "the kernel has no filters",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

fn links() -> Check {
    match network::probe() {
        Ok(took) => Check::ok(
            "veth links",
            format!(
                "one was made between two namespaces in {:.1} ms",
                took.as_secs_f64() * 1e3
            ),
        ),
        Err(error) => {
            let mend = "run as root; modprobe veth; if there is no such module, install the kernel's extra modules";
            Check::fail("veth links", with_causes(&error), mend)
        }
    }
}

fn nftables() -> Check {
    match firewall::probe() {
        Ok(()) => Check::ok("nftables", "the firewall's rules are understood"),
        Err(NetworkError::NoNft) => Check::fail(
            "nftables",
            "the program nft is missing",
            "install the package nftables, or set network.enabled = false",
        ),
        Err(error) => Check::fail(
            "nftables",
            with_causes(&error),
            "modprobe nf_tables nft_fib_inet nft_masq nft_reject_inet nft_ct; run as root",
        ),
    }
}

fn other_firewalls() -> Check {
    match firewall::forward_dropped_by() {
        Ok(chains) if chains.is_empty() => Check::ok("other firewalls", "none drops what is passed on"),
        Ok(chains) => Check::warn(
            "other firewalls",
            format!(
                "{} drops what it does not know: apps may have no way out",
                chains.join(" and ")
            ),
            "let the links berth_+ pass there; with docker: iptables -I DOCKER-USER -i berth_+ -j ACCEPT; \
             iptables -I DOCKER-USER -o berth_+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        ),
        Err(error) => Check::warn(
            "other firewalls",
            with_causes(&error),
            "run as root, with the package nftables installed",
        ),
    }
}

fn forwarding() -> Check {
    let path = "/proc/sys/net/ipv4/ip_forward";
    match (fs::read_to_string(path), fs::OpenOptions::new().write(true).open(path)) {
        (Ok(text), _) if text.trim() == "1" => Check::ok("ip_forward", "on"),
        (Ok(_), Ok(_)) => Check::ok("ip_forward", "off; the daemon turns it on when it starts"),
        _ => Check::fail(
            "ip_forward",
            "off, and cannot be turned on from here",
            "sysctl -w net.ipv4.ip_forward=1 as root",
        ),
    }
}

/// An error with all that is under it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::Status;
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_number_and_not_by_text() {
        for (release, status) in [
            ("6.18.44-fc-v595", Status::Ok),
            ("6.12.0-5-amd64", Status::Ok),
            ("6.9.3", Status::Warn),
            ("5.10-generic", Status::Warn),
            ("5.4.0-1", Status::Fail),
            ("4.19.0", Status::Fail),
            ("", Status::Warn),
        ] {
            assert_eq!(version(release).status, status, "{release}");
        }
    }

    #[test]
    fn a_file_system_is_found_loaded_loadable_or_not_at_all() {
        let proc = "nodev\tproc\nnodev\toverlay\n\text4\n";
        let modules = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/x.ko.xz\nkernel/fs/fuse/virtiofs.ko\n";
        assert_eq!(filesystem("overlay", "", proc, modules).found, "there");
        assert_eq!(filesystem("erofs", "", proc, modules).status, Status::Ok);
        assert_eq!(filesystem("fuse", "", proc, modules).status, Status::Fail);
    }

    #[test]
    fn user_namespaces_turned_off_are_a_failure_with_the_line_that_mends_it() {
        let check = user_namespace_limit("0\n");
        assert_eq!(check.status, Status::Fail);
        assert!(check.mend.unwrap().contains("user.max_user_namespaces"));
        assert_eq!(user_namespace_limit("95000\n").status, Status::Ok);
        assert_eq!(user_namespace_limit("").status, Status::Fail);
    }

    #[test]
    fn seccomp_needs_the_action_that_filters_use() {
        assert_eq!(
            seccomp("kill_process kill_thread trap errno user_notif trace log allow").status,
            Status::Ok
        );
        assert_eq!(seccomp("").status, Status::Fail);
    }
}
