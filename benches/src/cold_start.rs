//! From a request for a sleeping app to its answer, split by phase, beside the bare process.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_harness::{Daemon, samples, wait};

use crate::figures::Figures;

const RUNS: usize = 20;
const EXPRESS_RUNS: usize = 5;

pub fn run(berth: &str) -> anyhow::Result<()> {
    let daemon = Daemon::start(berth);
    samples::node(&daemon, "hello", "hello");
    samples::quick_start(&daemon, "express");
    anyhow::ensure!(daemon.get("/hello/").status == 200, "{}", daemon.log());
    let node = daemon.run_dir().join("images");
    let node = find_node(&node)?;
    let mut bare = Figures::default();
    let mut whole = Figures::default();
    let mut phases = BTreeMap::<String, Figures>::new();
    for _ in 0..RUNS {
        bare.add(bare_start(&node)?);
        whole.add(cold(&daemon, "hello", &mut phases));
    }
    bare.print("bare node process", None);
    whole.print("node app, request to answer", Some(&bare));
    print_phases(&phases);
    let mut whole = Figures::default();
    let mut phases = BTreeMap::new();
    for _ in 0..EXPRESS_RUNS {
        whole.add(cold(&daemon, "express", &mut phases));
    }
    whole.print("express, npm install included", None);
    print_phases(&phases);
    Ok(())
}

fn print_phases(phases: &BTreeMap<String, Figures>) {
    for (phase, figures) in phases {
        figures.print(&format!("    {phase}"), None);
    }
}

/// One cold start; the phases are what the daemon recorded.
fn cold(daemon: &Daemon, app: &str, phases: &mut BTreeMap<String, Figures>) -> f64 {
    assert_eq!(daemon.berth(&["stop", app]).code, 0);
    daemon.wait_state(app, "cold", Duration::from_secs(20));
    // The true cold start comes after quiet; the kernel's grace periods are longer then.
    std::thread::sleep(Duration::from_millis(150));
    let begun = Instant::now();
    let answer = daemon.http().get(&daemon.url(&format!("/{app}/")));
    let taken = begun.elapsed().as_secs_f64() * 1e3;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let recorded = daemon.inspect(app).expect("the app")["last_cold_start"].clone();
    for (phase, value) in recorded.as_object().expect("a time line") {
        if let Some(ms) = value.as_f64() {
            phases
                .entry(phase.trim_end_matches("_ms").to_owned())
                .or_default()
                .add(ms);
        }
    }
    taken
}

/// The node binary of the mounted image.
pub fn find_node(images: &std::path::Path) -> anyhow::Result<std::path::PathBuf> {
    for image in std::fs::read_dir(images)?.flatten() {
        for place in ["usr/local/bin/node", "usr/bin/node"] {
            let path = image.path().join(place);
            if image.file_name().to_string_lossy().starts_with("node") && path.exists() {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("no node under {}", images.display())
}

/// The same program as a plain process: from its start to its first answer.
fn bare_start(node: &std::path::Path) -> anyhow::Result<f64> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let program = format!("require('http').createServer((q, s) => s.end('hello')).listen({port});");
    let begun = Instant::now();
    let process = Kill(Command::new(node).args(["-e", &program]).stdin(Stdio::null()).spawn()?);
    wait_answer(port);
    drop(process);
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

pub struct Kill(pub Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn wait_answer(port: u16) {
    use std::io::{Read, Write};
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
            let mut byte = [0];
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .expect("a request");
            stream.read_exact(&mut byte).expect("an answer");
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    wait("the bare process to answer", Duration::ZERO, || false);
}
