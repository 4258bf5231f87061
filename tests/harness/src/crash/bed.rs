//! Where rounds take place: a daemon, its state and its bucket, which live on from round to round.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    look::{self, Bucket},
    model::{Entry, Tree},
    names::{owner, roots},
    record::Order,
    writer,
};
use crate::{Daemon, Options, fault_proxy::FaultProxy};

/// Threads of a writer.
pub const THREADS: usize = 4;
/// The small disk of [`Kind::SmallDisk`].
const DISK: &str = "size=72m";
/// How long S3 may take to get everything.
const DRAIN: Duration = Duration::from_secs(90);

/// What a bed is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The embedded S3 dies with the daemon.
    Embedded,
    /// S3 is another process, behind a proxy that fails as told.
    Apart,
    /// The same, and the daemon's state is on a disk of 72 MB.
    SmallDisk,
    /// As [`Kind::Apart`], and the daemon's journal may have 64 MiB.
    SmallJournal,
}

/// See the module.
pub struct Bed {
    /// The daemon under test.
    pub daemon: Daemon,
    /// Between it and S3.
    pub proxy: Option<FaultProxy>,
    /// What was there when the last round had been judged.
    pub tree: Tree,
    bucket: Bucket,
    disk: Option<Disk>,
    _server: Option<Daemon>,
}

/// A small file system of its own, taken away when dropped.
struct Disk(PathBuf);

impl Disk {
    fn make(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("berth-test"), at, Some("tmpfs"), flags, Some(DISK))
            .with_context(|| format!("cannot mount a small tmpfs on {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn quiet() -> Options {
    Options {
        lines: vec![("network", "egress = false".into())],
        ..Options::default()
    }
}

impl Bed {
    /// Starts what the kind needs, and makes the folders that are always there.
    ///
    /// # Errors
    /// When a part cannot be made. A daemon that does not start panics with its log.
    pub fn make(kind: Kind, berth: &str, seed: u64) -> Result<Self> {
        let (server, proxy, options) = if kind == Kind::Embedded {
            (None, None, quiet())
        } else {
            let server = Daemon::with(berth, quiet());
            let env = server.s3_env();
            let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.s3_port()).parse()?, seed)?;
            let mut options = quiet();
            let mut line = |name: &str, value: &str| options.lines.push(("s3", format!("{name} = \"{value}\"")));
            line("endpoint", &format!("http://{}", proxy.address()));
            line("access_key", &env["AWS_ACCESS_KEY_ID"]);
            line("secret_key", &env["AWS_SECRET_ACCESS_KEY"]);
            line("bucket", &env["S3_BUCKET"]);
            if kind == Kind::SmallJournal {
                options.lines.push(("mount", "journal_max = \"64M\"".into()));
            }
            (Some(server), Some(proxy), options)
        };
        let mut daemon = Daemon::prepared(berth, options);
        let disk = (kind == Kind::SmallDisk)
            .then(|| Disk::make(&daemon.disk().join("state")))
            .transpose()?;
        daemon.launch();
        // Asked of the S3 server itself: the proxy may be down.
        let env = server.as_ref().unwrap_or(&daemon).s3_env();
        let mut bed = Self {
            bucket: Bucket::open(&env)?,
            tree: Tree::new(),
            daemon,
            proxy,
            disk,
            _server: server,
        };
        for root in roots(THREADS) {
            fs::create_dir(bed.mount().join(&root)).with_context(|| format!("cannot make {root}"))?;
            bed.tree.insert(root, Entry::Dir);
        }
        // A folder's own record may be written a little later.
        bed.drained()?;
        Ok(bed)
    }

    /// Where the bucket is mounted.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.daemon.workspaces()
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.daemon.disk().join("state")
    }

    /// The part of the last verified tree that belongs to each thread.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<usize, Tree> {
        shares(&self.tree).0
    }

    /// Waits until the daemon says that S3 has everything.
    ///
    /// # Errors
    /// When it does not say so in time.
    pub fn drained(&self) -> Result<()> {
        let end = Instant::now() + DRAIN;
        loop {
            let asked = self.daemon.berth(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&asked.stdout)
                .with_context(|| format!("berth status ended with {}: {}", asked.code, asked.stderr))?;
            let pending = &status["pending"];
            ensure!(pending["count"].is_u64(), "no pending count in {status}");
            if pending["count"] == 0 {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("S3 answers, and after {DRAIN:?} there is still pending: {pending}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a writer process.
    ///
    /// # Errors
    /// When the order cannot be written or the process not started.
    pub fn writer(&self, command: &[OsString], order: &Order) -> Result<Child> {
        let file = self.daemon.disk().join("order.json");
        fs::write(&file, serde_json::to_vec(order)?)?;
        let complaints = File::create(self.daemon.disk().join("writer.log"))?;
        let (program, arguments) = command.split_first().context("no command for the writer")?;
        Command::new(program)
            .args(arguments)
            .env(writer::ORDER, file)
            .stdin(Stdio::null())
            .stdout(complaints.try_clone()?)
            .stderr(complaints)
            .spawn()
            .context("cannot start the writer")
    }

    /// What the mount shows now.
    ///
    /// # Errors
    /// When something of it cannot be read.
    pub fn shown(&self) -> Result<Tree> {
        look::mount(&self.mount())
    }

    /// How the bucket differs from it.
    ///
    /// # Errors
    /// When the bucket cannot be read.
    pub fn bucket_differs(&self, shown: &Tree) -> Result<Vec<String>> {
        self.bucket.differences(shown)
    }

    /// The workspace indexes in the bucket.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn indexes(&self) -> Result<BTreeMap<String, String>> {
        self.bucket.indexes()
    }

    /// Takes all room of the small disk.
    ///
    /// # Errors
    /// When something else than room is missing.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::options().append(true).create(true).open(self.filler()?)?;
        for piece in [64 << 10, 4096, 1] {
            let zeros = vec![0; piece];
            while filler.write_all(&zeros).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When the filler cannot be removed.
    pub fn make_room(&self) -> Result<()> {
        match fs::remove_file(self.filler()?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn filler(&self) -> Result<PathBuf> {
        let disk = self.disk.as_ref().context("this bed has no small disk")?;
        Ok(disk.0.join("filler"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // The small disk can only go when nobody uses it, and the daemon's folders only after it.
        if !self.daemon.has_ended() {
            self.daemon.kill();
        }
        self.disk = None;
    }
}

/// A tree split by the thread it belongs to, and the rest.
#[must_use]
pub fn shares(tree: &Tree) -> (BTreeMap<usize, Tree>, Tree) {
    let mut shares: BTreeMap<usize, Tree> = (0..THREADS).map(|thread| (thread, Tree::new())).collect();
    let mut rest = Tree::new();
    for (path, entry) in tree {
        let share = match owner(path) {
            Some(thread) => shares.entry(thread).or_default(),
            None => &mut rest,
        };
        share.insert(path.clone(), entry.clone());
    }
    (shares, rest)
}
