//! What the edge adds to a warm request: the same app asked straight (from its own network namespace) and through the edge, in turns.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use berth_harness::{Daemon, samples};

use crate::figures::Figures;

const REQUESTS: usize = 4000;

pub fn run(berth: &str) -> anyhow::Result<()> {
    let daemon = Daemon::start(berth);
    samples::node(&daemon, "warm", "x");
    anyhow::ensure!(daemon.get("/warm/").status == 200, "{}", daemon.log());
    // The app's own namespace is not ours: the peer is the same server, by the same node, on our loopback.
    let node = crate::cold_start::find_node(&daemon.run_dir().join("images"))?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let program = format!("require('http').createServer((q, s) => s.end('x')).listen({port});");
    let _peer = crate::cold_start::Kill(std::process::Command::new(node).args(["-e", &program]).spawn()?);
    crate::cold_start::wait_answer(port);
    let mut straight = Connection::open(port, "/")?;
    let mut proxied = Connection::open(daemon.edge_port(), "/warm/")?;
    let (mut direct, mut edge) = (Figures::default(), Figures::default());
    for round in 0..REQUESTS {
        let (a, b) = (straight.ask()?, proxied.ask()?);
        // The first rounds warm both up.
        if round >= REQUESTS / 10 {
            direct.add(a);
            edge.add(b);
        }
    }
    direct.print("straight to the app", None);
    edge.print("through the edge", Some(&direct));
    println!(
        "{:<34} {:.3} ms",
        "added by the edge, median",
        edge.median() - direct.median()
    );
    Ok(())
}

/// One kept-alive connection.
pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
}

impl Connection {
    pub fn open(port: u16, path: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            request: format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes(),
        })
    }

    /// One request; milliseconds until its answer has come whole.
    pub fn ask(&mut self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.stream.write_all(&self.request)?;
        let mut answer = Vec::with_capacity(512);
        let mut block = [0; 1024];
        while !complete(&answer) {
            let read = self.stream.read(&mut block)?;
            anyhow::ensure!(
                read > 0,
                "the connection was closed: {}",
                String::from_utf8_lossy(&answer)
            );
            answer.extend_from_slice(&block[..read]);
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

/// Whether the head and the one byte of body (plain or as a chunk) are there.
fn complete(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let body = &answer[end + 4..];
    body == b"x" || body.ends_with(b"0\r\n\r\n")
}
