//! Apps in network namespaces of their own, reached on their loopback. Needs root.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use berth_edge::{Apps, Edge, EdgeConfig, Lease, Refusal, Route, RouteTable, Upstream};
use berth_sys::netns::{Netns, SocketFactory};
use berth_workspace::AppName;
use nix::sched::{CloneFlags, unshare};
use tokio::io::AsyncWriteExt;

use crate::double::{client, read_header};

/// The same port in every namespace.
const PORT: u16 = 3000;

struct Sandbox {
    ns: Netns,
    sockets: SocketFactory,
    generation: u64,
}

#[async_trait]
impl Upstream for Sandbox {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, PORT).into()
    }

    async fn socket(&self) -> io::Result<OwnedFd> {
        self.sockets.tcp(&self.ns, false).await
    }
}

struct Claim(Arc<Sandbox>);

impl Lease for Claim {
    fn upstream(&self) -> Arc<dyn Upstream> {
        self.0.clone()
    }
}

struct Sandboxes {
    table: RouteTable,
    of: Vec<(AppName, Arc<Sandbox>)>,
}

#[async_trait]
impl Apps for Sandboxes {
    fn route(&self, host: &str, path: &str) -> Option<Route> {
        self.table.resolve(host, path)
    }

    async fn acquire(&self, app: &AppName) -> Result<Box<dyn Lease>, Refusal> {
        let found = self.of.iter().find(|(name, _)| name == app).ok_or(Refusal::NoSuchApp)?;
        Ok(Box::new(Claim(found.1.clone())))
    }
}

/// A new namespace with its loopback up and an app in it that says `text`.
fn sandbox(text: &'static str) -> Netns {
    let ns = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: this test needs root");
        Netns::current().expect("its handle")
    })
    .join()
    .expect("a thread");
    let up = ns
        .run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status())
        .expect("ip");
    assert!(up.success());
    let listener = ns
        .tcp_listener((Ipv4Addr::LOCALHOST, PORT).into())
        .expect("a port of its own");
    listener.set_nonblocking(true).expect("nonblocking");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while !read_header(&mut stream).await.is_empty() {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    ns
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_with_one_address_in_two_namespaces_are_never_confused() {
    let sockets = SocketFactory::start().expect("a thread");
    let name = |text: &str| AppName::parse(text).expect("a valid name");
    let of = [("one", 1), ("two", 2)]
        .map(|(text, generation)| {
            (
                name(text),
                Arc::new(Sandbox {
                    ns: sandbox(text),
                    sockets: sockets.clone(),
                    generation,
                }),
            )
        })
        .to_vec();
    let table = RouteTable::new("berth.test", of.iter().map(|(name, _)| name.clone()), []);
    let config = EdgeConfig {
        listen: vec![([127, 0, 0, 1], 0).into()],
        ..EdgeConfig::default()
    };
    let edge = Edge::start(config, Arc::new(Sandboxes { table, of })).expect("an edge");
    let client = client();
    for _ in 0..20 {
        for app in ["one", "two"] {
            let url = format!("http://{}/{app}/", edge.local_addrs()[0]);
            assert_eq!(
                client
                    .get(url)
                    .send()
                    .await
                    .expect("an answer")
                    .text()
                    .await
                    .expect("a body"),
                app
            );
        }
    }
}
