//! The OCI bundle of a sandbox: what its root file system, its limits and its rights are.
//!
//! Mounts that need a word:
//! - `/app` and `/tmp` are tmpfs; their pages are charged to the sandbox's memory cgroup, whose limit has room for both.
//! - `/dev` is a small tmpfs. A user namespace cannot make device nodes, so libcontainer binds the host's `null zero full random urandom
//!   tty`. `/dev/pts` is an instance of its own.
//! - `/sys` is not a sysfs: the kernel lets only the owner of the network namespace mount one, and that is the host on purpose. Runtimes look
//!   there for the number of CPUs and for their limits, so an empty tmpfs carries read-only binds of just these.
//! - What is bound from the host is opened by the sandbox's root, an unprivileged user of the host: every folder on the way to it must be
//!   searchable by others (0711 is enough).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder,
    LinuxIdMappingBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use nix::sys::resource::{Resource, getrlimit};

use crate::cgroup::Cgroup;
use crate::spec::{APP_HOME, APP_PATH, APP_UID, SandboxSpec, UID_RANGE};

/// One scheduling period of the CPU limit, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Open files of an app, where the host allows that many.
const OPEN_FILES: u64 = 65_536;
/// The sandbox's score for the host's out-of-memory killer: before the daemon and anything of the host.
const OOM_SCORE: i32 = 300;

/// Why a bundle could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot describe the container: {0}")]
    Describe(#[from] OciSpecError),
    #[error("{path} cannot be reached from a sandbox: {folder} is closed to other users; chmod o+x it")]
    Closed { path: PathBuf, folder: PathBuf },
    #[error("{path} is not there: {source}")]
    Missing { path: PathBuf, source: io::Error },
}

/// Writes the bundle of `spec` into `dir`.
pub(crate) fn write(spec: &SandboxSpec, dir: &Path) -> Result<(), BundleError> {
    for path in [&spec.image_root, &spec.source] {
        reachable(path)?;
    }
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|source| BundleError::Write { path, source })
    };
    let app = spec.app.as_str();
    let wired = spec.slot.as_ref().filter(|slot| slot.enabled);
    put(
        "resolv.conf",
        &wired
            .map(|slot| format!("nameserver {}\noptions timeout:2 attempts:3\n", slot.dns))
            .unwrap_or_default(),
    )?;
    let own = wired.map_or_else(|| "127.0.1.1".to_owned(), |slot| slot.address.to_string());
    put(
        "hosts",
        &format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{app}\n"),
    )?;
    put("hostname", &format!("{app}\n"))?;
    let path = dir.join("config.json");
    let text = serde_json::to_string(&describe(spec, dir)?).map_err(|e| BundleError::Write {
        path: path.clone(),
        source: e.into(),
    })?;
    fs::write(&path, text).map_err(|source| BundleError::Write { path, source })
}

/// Says clearly what would otherwise be a bare EACCES from deep inside a mount.
fn reachable(path: &Path) -> Result<(), BundleError> {
    let real = fs::canonicalize(path).map_err(|source| BundleError::Missing {
        path: path.to_owned(),
        source,
    })?;
    for folder in real.ancestors().skip(1) {
        let open = fs::metadata(folder).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        if !open {
            return Err(BundleError::Closed {
                path: path.to_owned(),
                folder: folder.to_owned(),
            });
        }
    }
    Ok(())
}

fn describe(spec: &SandboxSpec, dir: &Path) -> Result<Spec, OciSpecError> {
    let none: std::collections::HashSet<Capability> = std::collections::HashSet::new();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(none.clone())
        .effective(none.clone())
        .permitted(none.clone())
        .inheritable(none.clone())
        .ambient(none)
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(
            UserBuilder::default()
                .uid(APP_UID)
                .gid(APP_UID)
                .umask(0o022u32)
                .additional_gids(Vec::new())
                .build()?,
        )
        .args(vec!["berth-init".to_owned()])
        .env(vec![format!("PATH={APP_PATH}"), format!("HOME={APP_HOME}")])
        .cwd("/")
        .capabilities(capabilities)
        .rlimits(rlimits()?)
        .no_new_privileges(true)
        .oom_score_adj(OOM_SCORE)
        .build()?;
    let kinds = [
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ];
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    let ids = vec![
        LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(spec.uid_base)
            .size(UID_RANGE)
            .build()?,
    ];
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .uid_mappings(ids.clone())
        .gid_mappings(ids)
        .cgroups_path(format!("/{}/{}", spec.instance, spec.id))
        .resources(resources(spec)?)
        .masked_paths(strings(&MASKED))
        .readonly_paths(strings(&READ_ONLY))
        .build()?;
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(&spec.image_root).readonly(true).build()?)
        .hostname(spec.app.as_str())
        .process(process)
        .mounts(mounts(spec, dir)?)
        .linux(linux)
        .build()
}

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/kallsyms",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

/// Limits are set by the sandbox's root, which has no power to raise a hard limit of the host: no more than what is there.
fn rlimits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    let files = OPEN_FILES.min(most);
    let limit = |kind, value: u64| PosixRlimitBuilder::default().typ(kind).soft(value).hard(value).build();
    Ok(vec![
        limit(PosixRlimitType::RlimitNofile, files)?,
        limit(PosixRlimitType::RlimitCore, 0)?,
    ])
}

fn resources(spec: &SandboxSpec) -> Result<libcontainer::oci_spec::runtime::LinuxResources, OciSpecError> {
    let bytes = i64::try_from(spec.limits.cgroup_memory()).unwrap_or(i64::MAX);
    let mut memory = LinuxMemoryBuilder::default().limit(bytes);
    if swap_is_accounted() {
        // Memory and swap together: nothing of an app is swapped out beyond its limit.
        memory = memory.swap(bytes);
    }
    let quota = (spec.limits.cpus.max(0.01) * CPU_PERIOD as f64) as i64;
    let deny_all = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    LinuxResourcesBuilder::default()
        .memory(memory.build()?)
        .cpu(
            LinuxCpuBuilder::default()
                .quota(quota.max(1000))
                .period(CPU_PERIOD)
                .build()?,
        )
        .pids(LinuxPidsBuilder::default().limit(i64::from(spec.limits.pids)).build()?)
        .devices(vec![deny_all])
        .build()
}

fn swap_is_accounted() -> bool {
    let root = Cgroup::new("", "").controller("memory");
    root.is_some_and(|r| r.join("memory.memsw.limit_in_bytes").exists() || r.join("cgroup.controllers").exists())
}

fn mounts(spec: &SandboxSpec, dir: &Path) -> Result<Vec<Mount>, OciSpecError> {
    let limits = &spec.limits;
    let app = format!("size={}", limits.app_size);
    let tmp = format!("size={}", limits.tmp_size);
    let shm = format!("size={}", limits.tmp_size.min(64 << 20));
    let mut list = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "tmpfs",
            "tmpfs",
            "/dev",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
        )?,
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount(
            "tmpfs",
            "shm",
            "/dev/shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        )?,
        mount("tmpfs", "tmpfs", "/tmp", &["nosuid", "nodev", "mode=1777", &tmp])?,
        mount(
            "tmpfs",
            "tmpfs",
            "/app",
            &["nosuid", "nodev", "mode=755", "uid=1000", "gid=1000", &app],
        )?,
        mount(
            "tmpfs",
            "tmpfs",
            "/run",
            &["nosuid", "nodev", "noexec", "mode=1777", "size=4m"],
        )?,
        bind(&spec.source, Path::new("/workspace"))?,
        bind(&dir.join("resolv.conf"), Path::new("/etc/resolv.conf"))?,
        bind(&dir.join("hosts"), Path::new("/etc/hosts"))?,
        bind(&dir.join("hostname"), Path::new("/etc/hostname"))?,
    ];
    list.extend(sys_mounts(spec)?);
    if let Some(bundle) = &spec.ca_bundle {
        list.push(bind(bundle, Path::new("/etc/ssl/certs/ca-certificates.crt"))?);
    }
    for extra in &spec.extra_ro_binds {
        list.push(bind(&extra.source, &extra.target)?);
    }
    Ok(list)
}

/// What language runtimes read to size themselves: their limits and the list of CPUs.
fn sys_mounts(spec: &SandboxSpec) -> Result<Vec<Mount>, OciSpecError> {
    if !spec.image_root.join("sys").is_dir() {
        return Ok(Vec::new());
    }
    let mut list = vec![mount(
        "tmpfs",
        "tmpfs",
        "/sys",
        &["nosuid", "nodev", "noexec", "mode=755", "size=64k"],
    )?];
    let cpus = Path::new("/sys/devices/system/cpu");
    if cpus.is_dir() {
        list.push(bind(cpus, cpus)?);
    }
    let cgroup = Cgroup::new(&spec.instance, spec.id.as_str());
    for (name, inside) in [("memory", "/sys/fs/cgroup/memory"), ("cpu", "/sys/fs/cgroup/cpu")] {
        // The folder is made by libcontainer before these mounts are; on v2 there is one for all, and it is the root.
        let Some(folder) = cgroup.controller(name) else {
            continue;
        };
        if !is_v2(&folder) {
            list.push(bind(&folder, Path::new(inside))?);
        } else if name == "memory" {
            list.push(bind(&folder, Path::new("/sys/fs/cgroup"))?);
        }
    }
    Ok(list)
}

fn is_v2(folder: &Path) -> bool {
    folder
        .parent()
        .and_then(Path::parent)
        .is_some_and(|root| root.join("cgroup.controllers").exists())
}

fn mount(kind: &str, source: &str, at: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(at)
        .options(strings(options))
        .build()
}

/// A read-only view, of the mounts below it as well (a plain `ro` bind leaves those writable).
fn bind(from: &Path, at: &Path) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ("bind")
        .source(from)
        .destination(at)
        .options(strings(&["rbind", "rro", "nosuid", "nodev", "rnosuid", "rnodev"]))
        .build()
}
