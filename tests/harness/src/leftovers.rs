//! What a daemon of this instance has on the machine: processes, mounts, links, cgroups, firewall tables, folders.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// Everything that carries an instance's name or lies under its folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers(pub BTreeSet<String>);

impl Leftovers {
    /// Looks at the machine.
    #[must_use]
    pub fn of(instance: &str, run_dir: &Path, mountpoint: &Path) -> Self {
        let mut found = BTreeSet::new();
        mounts(run_dir, mountpoint, &mut found);
        cgroups(instance, &mut found);
        tables(instance, &mut found);
        links(instance, &mut found);
        sandboxes(run_dir, &mut found);
        Self(found)
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn mounts(run_dir: &Path, mountpoint: &Path, found: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in table.lines() {
        let Some(at) = line.split(' ').nth(1) else { continue };
        if Path::new(at).starts_with(run_dir) || Path::new(at).starts_with(mountpoint) {
            found.insert(format!("mount {at}"));
        }
    }
}

/// On v1, v2 and hybrid hierarchies alike: a folder named like the instance, and those below it.
fn cgroups(instance: &str, found: &mut BTreeSet<String>) {
    let mut roots = vec![Path::new("/sys/fs/cgroup").to_path_buf()];
    roots.extend(folders(Path::new("/sys/fs/cgroup")));
    for root in roots {
        let ours = root.join(instance);
        for sandbox in folders(&ours) {
            found.insert(format!("cgroup {}", sandbox.display()));
        }
    }
}

fn tables(instance: &str, found: &mut BTreeSet<String>) {
    let Ok(listed) = Command::new("nft").args(["list", "tables"]).output() else {
        return;
    };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let own = format!("berth_{instance}");
        if line.split(' ').any(|word| word == own) {
            found.insert(line.to_owned());
        }
    }
}

/// The host's ends of sandboxes' network links.
fn links(instance: &str, found: &mut BTreeSet<String>) {
    let own = format!("{instance}_");
    for link in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        if name.starts_with(&own) {
            found.insert(format!("link {name}"));
        }
    }
}

fn sandboxes(run_dir: &Path, found: &mut BTreeSet<String>) {
    for sandbox in folders(&run_dir.join("sandboxes")) {
        found.insert(format!("sandbox {}", sandbox.display()));
    }
}

fn folders(of: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
