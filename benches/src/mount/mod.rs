//! The mount beside its peers: the same work on tmpfs and ext4 (the floors), Debian's rclone with old and with tuned
//! flags, s3fs, and Berth; all but the floors on one Garage node on this machine, Berth also with its own server.
//!
//! ```text
//!   guard ──▶ run in own namespaces ──▶ Garage ◀── one mount at a time: rclone, s3fs, berth serve
//!                  │                                  ▲
//!                  └── a client of the bucket         └── find, cat, cp, git, open/write/close
//! ```
//!
//! Groups of rows are taken one after the other, in each group one column after the other, each with a bucket of its
//! own. Rows and targets are in `table.rs`; a verdict is printed, never asserted: the machine is not ours alone.
//! `docs/benchmarks.md` says how to read it.

mod bucket;
mod command;
mod copy;
mod crash;
mod garage;
mod git;
mod memory;
mod ours;
mod peers;
mod read;
mod remote;
mod replace;
mod save;
mod stream;
mod subject;
mod table;
mod walk;
mod world;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result};

use self::{
    garage::Garage,
    ours::Ours,
    peers::{Peer, PeerMount},
    subject::{Folder, Subject},
    table::{COLUMNS, Table},
};

/// What a person may want otherwise.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these groups of rows: walk, read, copy, save, replace, remote, git, crash, stream, memory
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<String>,
    /// Only these columns, as "berth,s3fs,ext4"
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    columns: Vec<String>,
    /// Samples of each figure (default: 3; quick: 1)
    #[arg(long)]
    n: Option<usize>,
    /// A tenth of the files and no verdicts: does it run at all?
    #[arg(long)]
    quick: bool,
    /// All samples, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Minutes after which no new sample is taken
    #[arg(long, default_value_t = 25)]
    minutes: u64,
}

/// How much work there is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Samples of each figure.
    n: usize,
    /// What the full size is divided by.
    part: usize,
}

/// What a group works with.
pub struct Bench {
    table: Table,
    size: Size,
    garage: Rc<Garage>,
    /// A folder on tmpfs for sources and copies.
    memory: PathBuf,
}

type Group = fn(&mut Bench, &mut dyn Subject) -> Result<()>;

/// In the order in which they run.
const GROUPS: [(&str, Group); 10] = [
    ("walk", walk::run),
    ("read", read::run),
    ("copy", copy::run),
    ("save", save::run),
    ("replace", replace::run),
    ("git", git::run),
    ("crash", crash::run),
    ("stream", stream::run),
    ("memory", memory::run),
    ("remote", remote::run),
];

/// The whole benchmark.
pub fn run(berth: &str, options: &Options) -> Result<()> {
    check(options)?;
    let Some(folder) = world::inside() else {
        return world::guard();
    };
    world::enter(Duration::from_secs(options.minutes * 60))?;
    let memory = tempfile::Builder::new().prefix("berth-bench-").tempdir_in("/dev/shm")?;
    world::remember(memory.path())?;
    let garage = Rc::new(Garage::start(&folder)?);
    let part = if options.quick { 10 } else { 1 };
    let n = options.n.unwrap_or(if options.quick { 1 } else { 3 });
    let table = Table::new(options.quick);
    let mut bench = Bench {
        table,
        size: Size { n, part },
        garage: Rc::clone(&garage),
        memory: memory.path().to_path_buf(),
    };
    // The peers are slow, and last: when time is short, theirs are the figures that are missing.
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Folder::new("tmpfs", memory.path())),
        Box::new(Folder::new("ext4", &folder)),
        Box::new(Ours::new(berth, Some(&garage))),
        Box::new(Ours::new(berth, None)),
        Box::new(PeerMount::new(Peer::RcloneOld, &garage, &folder)),
        Box::new(PeerMount::new(Peer::RcloneTuned, &garage, &folder)),
        Box::new(PeerMount::new(Peer::S3fs, &garage, &folder)),
    ];
    subjects.retain(|subject| wanted(&options.columns, subject.name()));
    let before = load();
    for (name, group) in GROUPS.iter().filter(|(name, _)| wanted(&options.only, name)) {
        eprintln!("== {name} (load {})", load());
        for subject in &mut subjects {
            if let Err(why) = world::go_on().and_then(|()| guarded(*group, &mut bench, subject.as_mut())) {
                bench.table.broke_off(name, subject.name(), &format!("{why:#}"));
            }
            subject.down();
        }
    }
    let cores = std::thread::available_parallelism()?;
    println!(
        "{cores} cores, load {before} before and {} after, Linux {}",
        load(),
        kernel()
    );
    println!("min / **median** / p95; ratios of the medians, berth and berth embedded apart where they differ\n");
    println!("{}", bench.table.print());
    if let Some(file) = &options.json {
        let mut all = bench.table.json();
        all["cores"] = cores.get().into();
        all["load"] = serde_json::json!([before, load()]);
        fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Names that are none are told before anything starts.
fn check(options: &Options) -> Result<()> {
    for name in &options.only {
        anyhow::ensure!(
            GROUPS.iter().any(|(group, _)| group == name),
            "no group {name}: see --help"
        );
    }
    for name in &options.columns {
        anyhow::ensure!(
            COLUMNS.contains(&name.as_str()),
            "no column {name}; there are {}",
            COLUMNS.join(", ")
        );
    }
    Ok(())
}

/// The harness of the tests panics when a daemon does not do as it should; here that is one group's failure.
fn guarded(group: Group, bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let done = catch_unwind(AssertUnwindSafe(|| group(bench, subject)));
    done.unwrap_or_else(|_| anyhow::bail!("the daemon failed, see above"))
}

fn wanted(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
