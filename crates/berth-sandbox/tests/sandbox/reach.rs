//! Reaching an app, and what it sees of a network.

use std::sync::Arc;
use std::time::Duration;

use berth_sandbox::network::Ipv4Net;
use berth_sandbox::{Network, NetworkConfig};
use berth_sys::netns::SocketFactory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, eventually, text};

/// Asks for `path` at 127.0.0.1 inside the sandbox's network namespace.
async fn get(sandbox: &berth_sandbox::Sandbox, port: u16, path: &str) -> String {
    let factory = SocketFactory::start().unwrap();
    let socket = factory.tcp(&sandbox.netns(), false).await.unwrap();
    let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

pub async fn an_app_is_reached_inside_its_namespace(world: Arc<World>) {
    // Port 80 without any capability: nobody else's in this namespace.
    let mut spec = world.spec("exec httpd -f -p 127.0.0.1:80 -h /workspace");
    spec.copy_source = false;
    let (sandbox, _events) = world.start(spec).await;
    let at = "127.0.0.1:80".parse().unwrap();
    eventually("it listens", || sandbox.listening().unwrap().contains(&at)).await;
    assert_eq!(sandbox.listening().unwrap(), [at]);
    assert!(get(&sandbox, 80, "/hello.txt").await.ends_with("hello\n"));
    sandbox.freeze().unwrap();
    sandbox.thaw().unwrap();
    assert!(get(&sandbox, 80, "/hello.txt").await.ends_with("hello\n"));
    sandbox.stop(Duration::ZERO).await.unwrap();
    assert!(sandbox.listening().is_err());
}

pub async fn a_wired_app_has_an_address_and_a_resolver(world: Arc<World>) {
    let mut config = NetworkConfig::new(format!("s{}", std::process::id() % 100_000));
    config.subnet = Ipv4Net::containing(
        std::net::Ipv4Addr::new(10, 198, (std::process::id() % 127 * 2) as u8, 0),
        23,
    );
    let network = Network::start(config).await.unwrap();
    let slot = network.lease().unwrap();
    let mut spec = world.spec(
        "ip -o -4 addr show eth0; ip route; cat /etc/resolv.conf; cat /etc/hosts; exec httpd -f -p 8080 -h /workspace",
    );
    (spec.slot, spec.uid_base) = (Some(slot.spec()), slot.uid_base());
    let (address, gateway, log_dir) = (slot.address, slot.gateway, spec.log_dir.clone());
    let (sandbox, _events) = berth_sandbox::Sandbox::create(&world.spawner, spec, slot)
        .await
        .unwrap();
    let mut wired = Vec::new();
    eventually("it listens", || {
        wired = sandbox.listening().unwrap();
        wired.iter().any(|a| a.port() == 8080)
    })
    .await;
    assert!(get(&sandbox, 8080, "/hello.txt").await.ends_with("hello\n"));
    let said = text(&log_dir);
    assert!(said.contains(&format!("inet {address}/31")), "{said}");
    assert!(said.contains(&format!("default via {gateway}")), "{said}");
    assert!(said.contains(&format!("nameserver {}", network.gateway())), "{said}");
    assert!(said.contains(&format!("{address}\thello")), "{said}");
    sandbox.stop(Duration::ZERO).await.unwrap();
    drop(sandbox);
    network.stop().await;
}
