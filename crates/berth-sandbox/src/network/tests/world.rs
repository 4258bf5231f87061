//! The world the tests live in: a host of their own, an internet, and what to ask of them.

use super::super::dns::example;
use super::super::netlink::Netlink;
use super::super::*;
use berth_sys::netns::Netns;
use nix::sched::{CloneFlags, unshare};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const SECOND_RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// Addresses that the internet answers at as well, but that no sandbox may reach.
pub(super) const PRIVATE: [Ipv4Addr; 7] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 99, 0, 1),
    Ipv4Addr::new(172, 16, 5, 5),
    Ipv4Addr::new(192, 168, 7, 7),
    Ipv4Addr::new(100, 64, 1, 1),
    Ipv4Addr::new(0, 1, 2, 3),
    Ipv4Addr::new(240, 1, 2, 3),
];
pub(super) const PORT: u16 = 8080;
/// Long enough for any answer on this machine, short enough to wait for silence.
pub(super) const SILENCE: Duration = Duration::from_millis(400);
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct World {
    pub(super) host: Netns,
    pub(super) internet: Netns,
}

/// Runs a test on a host of its own, on a runtime whose threads all live there.
pub(super) fn on_a_host<T: Future<Output = ()>>(test: impl FnOnce(World) -> T + Send + 'static) {
    let done = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own needs root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(World::new()));
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(super) fn new_namespace(inside: impl FnOnce() + Send) -> Netns {
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            inside();
            Netns::current().unwrap()
        });
        made.join().unwrap()
    })
}

impl World {
    pub(super) fn new() -> Self {
        let host = Netns::current().unwrap();
        let internet = new_namespace(|| {});
        let mut here = Netlink::open().unwrap();
        here.add_veth("wan0", "eth0", internet.as_fd(), 1400).unwrap();
        let lo = here.link("lo").unwrap().index;
        let wan = here.link("wan0").unwrap().index;
        here.up(lo).unwrap();
        here.add_address(wan, HOST, 24).unwrap();
        here.up(wan).unwrap();
        internet
            .run(|| {
                let mut there = Netlink::open()?;
                let (lo, eth0) = (there.link("lo")?.index, there.link("eth0")?.index);
                there.up(lo)?;
                for address in PRIVATE {
                    there.add_address(lo, address, 32)?;
                }
                there.add_address(eth0, WORLD, 24)?;
                there.add_address(eth0, SECOND_RESOLVER, 24)?;
                there.up(eth0)?;
                Ok(())
            })
            .unwrap();
        here.add_default_route(wan, WORLD).unwrap();
        berth_sys::link::settle("wan0").unwrap();
        // New namespaces take this from the machine's own.
        std::fs::write(IP_FORWARD, "0").unwrap();
        tell_peers(internet.tcp_listener((Ipv4Addr::UNSPECIFIED, PORT).into()).unwrap());
        Self { host, internet }
    }

    pub(super) fn config(&self, instance: &str, subnet: &str) -> NetworkConfig {
        NetworkConfig {
            subnet: subnet.parse().unwrap(),
            dns: DnsConfig {
                servers: vec![(WORLD, 53).into()],
                ..DnsConfig::default()
            },
            ..NetworkConfig::new(instance)
        }
    }

    /// What a keeper does, on a thread in place of a process.
    pub(super) fn sandbox(&self, slot: &Slot) -> Netns {
        let spec = slot.spec();
        new_namespace(|| wire_inside(&spec, self.host.as_fd()).unwrap())
    }

    pub(super) fn link_names(&self) -> Vec<String> {
        Netlink::open()
            .unwrap()
            .links()
            .unwrap()
            .into_iter()
            .map(|link| link.name)
            .collect()
    }

    pub(super) async fn wait_for_links(&self, what: &str, done: impl Fn(&[String]) -> bool) {
        let begun = Instant::now();
        while !done(&self.link_names()) {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", self.link_names());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Tells whoever connects which address it was seen with. The thread ends with the test's process.
pub(super) fn tell_peers(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().unwrap().ip().to_string();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

/// Connects from inside `ns`; what the other side said. Off the runtime's thread, which the forwarder needs.
pub(super) async fn reach(ns: &Netns, address: Ipv4Addr, port: u16) -> io::Result<String> {
    let ns = ns.clone();
    let connecting = move || {
        ns.run(|| {
            let mut stream = TcpStream::connect_timeout(&(address, port).into(), SILENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        })
    };
    tokio::task::spawn_blocking(connecting).await.unwrap()
}

/// Asks the gateway for the address of `name` by UDP; the whole reply.
pub(super) async fn ask(ns: &Netns, gateway: Ipv4Addr, id: u16, name: &str) -> io::Result<Vec<u8>> {
    let socket = ns.udp_socket((Ipv4Addr::UNSPECIFIED, 0).into())?;
    let query = example::query(id, name);
    let asking = move || {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((gateway, 53))?;
        socket.send(&query)?;
        let mut reply = vec![0; 600];
        let length = socket.recv(&mut reply)?;
        reply.truncate(length);
        Ok(reply)
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

/// Asks by TCP, two queries on one connection; the last reply.
pub(super) async fn ask_by_tcp(ns: &Netns, gateway: Ipv4Addr, name: &str) -> io::Result<Vec<u8>> {
    let (ns, name) = (ns.clone(), name.to_owned());
    let asking = move || {
        ns.run(|| {
            let mut stream = TcpStream::connect_timeout(&(gateway, 53).into(), SILENCE)?;
            let mut reply = Vec::new();
            for id in [1, 2] {
                let query = example::query(id, &name);
                stream.write_all(&(query.len() as u16).to_be_bytes())?;
                stream.write_all(&query)?;
                reply = read_framed(&mut stream)?;
            }
            Ok(reply)
        })
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

pub(super) fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A resolver in the internet that gives every name the address `says`, by UDP and TCP, after a reply with a wrong id.
pub(super) fn resolver(world: &World, at: Ipv4Addr, says: [u8; 4]) {
    let udp = world.internet.udp_socket((at, 53).into()).unwrap();
    let tcp = world.internet.tcp_listener((at, 53).into()).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 600];
        while let Ok((length, client)) = udp.recv_from(&mut buffer) {
            let mut forged = example::reply(&buffer[..length], [6, 6, 6, 6]);
            forged[0] ^= 0xff;
            let _ = udp.send_to(&forged, client);
            let _ = udp.send_to(&example::reply(&buffer[..length], says), client);
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let mut stream = stream;
            if let Ok(query) = read_framed(&mut stream) {
                let reply = example::reply(&query, says);
                let _ = stream.write_all(&(reply.len() as u16).to_be_bytes());
                let _ = stream.write_all(&reply);
            }
        }
    });
}

pub(super) fn refused(result: io::Result<String>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
