//! Which cgroup hierarchy the host has, and whether the controllers that limits need are in it.
//!
//! Three layouts are in use: unified (only version 2), legacy (only version 1, a tree for each controller), and hybrid (version 1
//! with an empty version 2 tree beside it, which old systemd makes). Limits work in all three.

use std::collections::BTreeSet;
use std::fs;

use super::Check;

/// Without these there are no limits.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// How the host's trees are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Unified,
    Hybrid,
    Legacy,
    None,
}

pub(super) fn checks() -> Vec<Check> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    vec![judge(&mountinfo, &unified)]
}

/// `mountinfo` as in proc(5), `unified` the controllers at the root of the unified tree.
fn judge(mountinfo: &str, unified: &str) -> Check {
    let (layout, legacy) = layout(mountinfo);
    let controllers: BTreeSet<&str> = match layout {
        Layout::Unified => unified.split_whitespace().collect(),
        _ => legacy,
    };
    let missing: Vec<_> = NEEDED
        .into_iter()
        .filter(|needed| !controllers.contains(needed))
        .collect();
    let name = "cgroups";
    let words = match layout {
        Layout::Unified => "version 2",
        Layout::Hybrid => "version 1 with an empty version 2 beside it",
        Layout::Legacy => "version 1",
        Layout::None => {
            return Check::fail(
                name,
                "no tree is mounted",
                "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd",
            );
        }
    };
    if missing.is_empty() {
        return Check::ok(name, format!("{words} with {}", NEEDED.join(", ")));
    }
    let boot = if missing.contains(&"memory") {
        "boot with cgroup_enable=memory; "
    } else {
        ""
    };
    let mend = format!("{boot}see that nothing on the host keeps the controllers (a container may be given too few)");
    Check::fail(name, format!("{words}, without {}", missing.join(", ")), mend)
}

/// The layout, and the controllers of version 1 trees.
fn layout(mountinfo: &str) -> (Layout, BTreeSet<&str>) {
    let mut unified = false;
    let mut legacy = BTreeSet::new();
    let mut named_only = false;
    for line in mountinfo.lines() {
        // "36 35 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate": the type is behind the dash.
        let Some((_, behind)) = line.split_once(" - ") else {
            continue;
        };
        let mut words = behind.split_whitespace();
        match words.next() {
            Some("cgroup2") => unified = true,
            Some("cgroup") => {
                let options = words.nth(1).unwrap_or_default();
                named_only |= options.contains("name=");
                legacy.extend(
                    options
                        .split(',')
                        .filter(|option| !option.contains('=') && *option != "rw"),
                );
            }
            _ => {}
        }
    }
    let layout = match (unified, legacy.is_empty()) {
        (true, true) if !named_only => Layout::Unified,
        (true, _) => Layout::Hybrid,
        (false, false) => Layout::Legacy,
        (false, true) => Layout::None,
    };
    (layout, legacy)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::Status;
    use super::*;

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 24 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      34 24 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";

    #[test]
    fn each_layout_is_known() {
        assert_eq!(layout(V2).0, Layout::Unified);
        assert_eq!(layout(V1).0, Layout::Legacy);
        assert_eq!(layout(&format!("{V1}{V2}")).0, Layout::Hybrid);
        assert_eq!(layout("24 1 8:1 / / rw - ext4 /dev/vda rw\n").0, Layout::None);
    }

    #[test]
    fn a_missing_controller_is_named() {
        assert_eq!(judge(V2, "cpuset cpu io memory pids").status, Status::Ok);
        let check = judge(V2, "cpu pids");
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.ends_with("without memory"), "{check:?}");
        assert!(check.mend.unwrap().contains("cgroup_enable=memory"));
        assert_eq!(judge(V1, "").status, Status::Ok);
        assert_eq!(judge(&V1.replace("rw,pids", "rw,devices"), "").status, Status::Fail);
        assert_eq!(judge("", "").status, Status::Fail);
    }
}
