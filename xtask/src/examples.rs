//! The apps in `examples/`: put on the mount as workspaces, and asked until they answer.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http;
use crate::step::{repository, say};

/// How long an app may take to its first answer: dependencies are fetched on the way.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two requests to an app that answered with an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Copies every example to the mount that is not there yet, and returns all their names.
pub fn put(mount: &Path) -> Result<Vec<String>> {
    let examples = repository().join("examples");
    let mut names = Vec::new();
    for entry in fs::read_dir(&examples).with_context(|| format!("cannot read {}", examples.display()))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let workspace = mount.join(&name);
        if !workspace.exists() {
            say(&format!("saving the example {name} to {}", workspace.display()));
            copy(&entry.path(), &workspace).with_context(|| format!("cannot save {}", workspace.display()))?;
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            // Content alone: an example is a workspace like any other, saved by whoever runs this.
            fs::write(&target, fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// Asks all apps at once until each answers 200, and prints who took how long.
pub fn visit(edge: SocketAddr, names: &[String]) -> Result<()> {
    say("waiting for the apps' first answers");
    let visits: Vec<_> = names
        .iter()
        .map(|name| {
            let path = format!("/{name}/");
            thread::spawn(move || (until_answered(edge, &path), path))
        })
        .collect();
    let mut silent = Vec::new();
    println!("\n  {:<44} {:>6} {:>9}", "URL", "STATUS", "TIME");
    for visit in visits {
        let Ok(((status, took), path)) = visit.join() else {
            bail!("a request failed badly")
        };
        let url = format!("http://localhost:{}{path}", edge.port());
        println!("  {url:<44} {status:>6} {:>7.2} s", took.as_secs_f64());
        if status != "200" {
            silent.push(path.trim_matches('/').to_owned());
        }
    }
    println!();
    if let Some(first) = silent.first() {
        bail!(
            "{} did not answer; `berth logs {first}` and `berth inspect {first}` say why",
            silent.join(", ")
        );
    }
    Ok(())
}

/// The last status seen (or why there was none), and how long it took to a 200.
fn until_answered(edge: SocketAddr, path: &str) -> (String, Duration) {
    let began = Instant::now();
    loop {
        let host = format!("localhost:{}", edge.port());
        let seen = match http::status(edge, &host, path, PATIENCE) {
            Ok(200) => return ("200".to_owned(), began.elapsed()),
            Ok(status) => status.to_string(),
            Err(_) => "none".to_owned(),
        };
        if began.elapsed() > PATIENCE {
            return (seen, began.elapsed());
        }
        thread::sleep(PAUSE);
    }
}
