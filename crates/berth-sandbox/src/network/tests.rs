//! The network as a sandbox meets it.
//!
//! Every test has a host of its own: a thread in a new network namespace, joined by a link to another one that plays the
//! internet. So tests need root, run in parallel, and change nothing on the machine. The internet also answers at private
//! addresses, so that "not reached" can only be the firewall's doing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::io::{self};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use berth_sys::netns::Netns;

use super::netlink::Netlink;
use super::*;
use world::*;

#[test]
fn a_sandbox_reaches_the_internet_with_the_hosts_address_and_nothing_private() {
    on_a_host(|world| async move {
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let slot = network.lease().unwrap();
        let sandbox = world.sandbox(&slot);
        assert_eq!(reach(&sandbox, WORLD, PORT).await.unwrap(), HOST.to_string());
        assert!(network.turned_forwarding_on());
        for address in PRIVATE {
            // The host itself does reach it, but for 0/8 and 240/4 where kernels differ.
            if address.octets()[0] != 0 && address.octets()[0] != 240 {
                assert!(
                    reach(&world.host, address, PORT).await.is_ok(),
                    "{address} from the host"
                );
            }
            assert!(reach(&sandbox, address, PORT).await.is_err(), "{address} was reached");
        }
        assert!(
            refused(reach(&sandbox, PRIVATE[0], PORT).await),
            "metadata is refused at once, not waited for"
        );
        network.stop().await;
    });
}

#[test]
fn what_listens_on_the_host_is_not_reached() {
    on_a_host(|world| async move {
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let slot = network.lease().unwrap();
        let sandbox = world.sandbox(&slot);
        tell_peers(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        assert!(
            reach(&world.internet, HOST, PORT).await.is_ok(),
            "others do reach the host"
        );
        for address in [HOST, network.gateway(), slot.gateway, Ipv4Addr::LOCALHOST] {
            assert!(refused(reach(&sandbox, address, PORT).await), "{address}");
        }
        network.stop().await;
    });
}

#[test]
fn sandboxes_do_not_reach_each_other_and_are_not_reached_from_outside() {
    on_a_host(|world| async move {
        let mut config = world.config("a", "10.213.0.0/16");
        config.allow = vec!["10.0.0.0/8".parse().unwrap()];
        let network = Network::start(config).await.unwrap();
        let (one, two) = (network.lease().unwrap(), network.lease().unwrap());
        let (inside_one, inside_two) = (world.sandbox(&one), world.sandbox(&two));
        tell_peers(inside_two.tcp_listener((Ipv4Addr::UNSPECIFIED, PORT).into()).unwrap());
        assert!(reach(&inside_two, two.address, PORT).await.is_ok(), "it does listen");
        assert!(
            refused(reach(&inside_one, two.address, PORT).await),
            "not even with 10/8 allowed"
        );
        assert!(
            reach(&inside_one, PRIVATE[1], PORT).await.is_ok(),
            "but what is allowed is reached"
        );
        assert!(refused(reach(&inside_one, PRIVATE[3], PORT).await), "and nothing else");
        world
            .internet
            .run(|| {
                let mut there = Netlink::open()?;
                let eth0 = there.link("eth0")?.index;
                there.add_default_route(eth0, HOST)
            })
            .unwrap();
        assert!(
            reach(&world.internet, two.address, PORT).await.is_err(),
            "a neighbour that routes through the host"
        );
        network.stop().await;
    });
}

#[test]
fn a_packet_with_somebody_elses_address_goes_nowhere() {
    on_a_host(|world| async move {
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let (slot, other) = (network.lease().unwrap(), network.lease().unwrap());
        let sandbox = world.sandbox(&slot);
        let _other = world.sandbox(&other);
        let foreign = Ipv4Addr::new(198, 18, 0, 1);
        let sink = world.internet.udp_socket((WORLD, 9999).into()).unwrap();
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        sandbox
            .run(|| {
                let mut there = Netlink::open()?;
                let eth0 = there.link("eth0")?.index;
                for address in [foreign, other.address] {
                    there.add_address(eth0, address, 32)?;
                    UdpSocket::bind((address, 0))?.send_to(b"forged", (WORLD, 9999))?;
                }
                UdpSocket::bind((slot.address, 0))?.send_to(b"honest", (WORLD, 9999))?;
                Ok(())
            })
            .unwrap();
        let mut buffer = [0; 16];
        let (length, from) = sink.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"honest"[..], IpAddr::from(HOST)));
        network.stop().await;
    });
}

#[test]
fn names_are_resolved_through_the_gateway_by_udp_and_tcp() {
    on_a_host(|world| async move {
        resolver(&world, WORLD, [203, 0, 113, 7]);
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let sandbox = world.sandbox(&network.lease().unwrap());
        let reply = ask(&sandbox, network.gateway(), 0xbeef, "app.example").await.unwrap();
        assert_eq!(reply[..2], [0xbe, 0xef], "the app's own id");
        assert_eq!(reply[reply.len() - 4..], [203, 0, 113, 7]);
        let reply = ask_by_tcp(&sandbox, network.gateway(), "app.example").await.unwrap();
        assert_eq!(reply[..2], [0, 2]);
        assert_eq!(reply[reply.len() - 4..], [203, 0, 113, 7]);
        assert!(
            reach(&world.internet, network.gateway(), 53).await.is_err(),
            "nobody else is served"
        );
        network.stop().await;
    });
}

#[test]
fn a_silent_resolver_is_passed_over_and_without_any_the_app_is_told() {
    on_a_host(|world| async move {
        resolver(&world, SECOND_RESOLVER, [203, 0, 113, 8]);
        let _silent = world.internet.udp_socket((WORLD, 53).into()).unwrap();
        let mut config = world.config("a", "10.213.0.0/16");
        config.dns.timeout = Duration::from_millis(150);
        config.dns.servers = vec![(WORLD, 53).into(), (SECOND_RESOLVER, 53).into()];
        let network = Network::start(config.clone()).await.unwrap();
        let sandbox = world.sandbox(&network.lease().unwrap());
        let reply = ask(&sandbox, network.gateway(), 3, "app.example").await.unwrap();
        assert_eq!(reply[reply.len() - 4..], [203, 0, 113, 8]);
        network.stop().await;

        config.dns.servers.truncate(1);
        let network = Network::start(config).await.unwrap();
        let sandbox = world.sandbox(&network.lease().unwrap());
        let reply = ask(&sandbox, network.gateway(), 4, "app.example").await.unwrap();
        assert_eq!((reply[1], reply[3] & 0x0f), (4, 2), "SERVFAIL under the app's id");
        network.stop().await;
    });
}

#[test]
fn a_changed_resolv_conf_is_followed() {
    on_a_host(|world| async move {
        resolver(&world, WORLD, [203, 0, 113, 1]);
        resolver(&world, SECOND_RESOLVER, [203, 0, 113, 22]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, format!("nameserver {WORLD}\n")).unwrap();
        let mut config = world.config("a", "10.213.0.0/16");
        config.dns = DnsConfig {
            resolv_conf: file.clone(),
            ..DnsConfig::default()
        };
        let network = Network::start(config).await.unwrap();
        let sandbox = world.sandbox(&network.lease().unwrap());
        let reply = ask(&sandbox, network.gateway(), 1, "app.example").await.unwrap();
        assert_eq!(reply[reply.len() - 1], 1);
        std::fs::write(&file, format!("search corp.example\nnameserver {SECOND_RESOLVER}\n")).unwrap();
        let reply = ask(&sandbox, network.gateway(), 2, "app.example").await.unwrap();
        assert_eq!(reply[reply.len() - 1], 22);
        assert_eq!(network.resolv_conf(), "nameserver 10.213.0.1\nsearch corp.example\n");
        network.stop().await;
    });
}

#[test]
fn two_instances_live_side_by_side_and_stopping_one_leaves_the_other() {
    on_a_host(|world| async move {
        let first = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let second = Network::start(world.config("a2", "10.214.0.0/16")).await.unwrap();
        let (in_first, in_second) = (first.lease().unwrap(), second.lease().unwrap());
        let (one, two) = (world.sandbox(&in_first), world.sandbox(&in_second));
        tell_peers(two.tcp_listener((Ipv4Addr::UNSPECIFIED, PORT).into()).unwrap());
        assert!(reach(&one, WORLD, PORT).await.is_ok() && reach(&two, WORLD, PORT).await.is_ok());
        let other = reach(&one, in_second.address, PORT).await;
        assert!(other.is_err(), "{other:?}");
        assert!(
            reach(&one, second.gateway(), 53).await.is_err(),
            "the other's forwarder is not ours to ask"
        );
        first.stop().await;
        first.stop().await;
        assert!(reach(&one, WORLD, PORT).await.is_err(), "its link is gone");
        assert_eq!(reach(&two, WORLD, PORT).await.unwrap(), HOST.to_string());
        assert!(
            world.link_names().iter().all(|name| !name.starts_with("a_")),
            "{:?}",
            world.link_names()
        );
        let tables = std::process::Command::new("nft")
            .args(["list", "tables"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(tables.stdout).unwrap(), "table inet berth_a2\n");
        second.stop().await;
    });
}

#[test]
fn a_start_takes_over_what_a_killed_daemon_left() {
    on_a_host(|world| async move {
        let config = world.config("a", "10.213.0.0/16");
        let killed = Network::start(config.clone()).await.unwrap();
        let (kept, lost) = (killed.lease().unwrap(), killed.lease().unwrap());
        let (sandbox, _dying) = (world.sandbox(&kept), world.sandbox(&lost));
        killed.detach().await;
        assert_eq!(
            reach(&sandbox, WORLD, PORT).await.unwrap(),
            HOST.to_string(),
            "apps go on without a daemon"
        );
        let network = Network::start(config).await.unwrap();
        let _adopted = network.adopt(kept.index).unwrap();
        assert_eq!(network.remove_stale_links().await.unwrap(), [lost.spec().host_link]);
        assert_eq!(reach(&sandbox, WORLD, PORT).await.unwrap(), HOST.to_string());
        // The slot of the lost one is free again, and its link's name too.
        let again = network.lease().unwrap();
        assert_ne!(again.index, kept.index);
        assert!(reach(&world.sandbox(&again), WORLD, PORT).await.is_ok());
        network.stop().await;
    });
}

#[test]
fn a_link_left_under_a_slots_name_is_replaced() {
    on_a_host(|world| async move {
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let slot = network.lease().unwrap();
        let _left = world.sandbox(&slot);
        let sandbox = world.sandbox(&slot);
        assert!(reach(&sandbox, WORLD, PORT).await.is_ok());
        network.stop().await;
    });
}

#[test]
fn a_subnet_that_no_host_can_be_in_is_refused_before_anything_is_changed() {
    on_a_host(|world| async move {
        for subnet in ["224.1.0.0/16", "127.5.0.0/16", "10.1.1.0/24"] {
            let error = Network::start(world.config("a", subnet)).await.unwrap_err();
            assert!(error.to_string().contains(subnet), "{error}");
        }
        assert!(matches!(
            Network::start(world.config("Berth!", "10.213.0.0/16")).await,
            Err(NetworkError::InstanceName { .. })
        ));
    });
}

#[test]
fn without_network_a_sandbox_has_loopback_only_and_the_host_is_left_alone() {
    on_a_host(|world| async move {
        let config = NetworkConfig {
            enabled: false,
            ..world.config("a", "10.213.0.0/16")
        };
        let network = Network::start(config).await.unwrap();
        let sandbox = world.sandbox(&network.lease().unwrap());
        tell_peers(sandbox.tcp_listener((Ipv4Addr::LOCALHOST, PORT).into()).unwrap());
        assert!(reach(&sandbox, Ipv4Addr::LOCALHOST, PORT).await.is_ok());
        assert!(reach(&sandbox, WORLD, PORT).await.is_err());
        assert_eq!(world.link_names(), ["lo", "wan0"]);
        assert_eq!(std::fs::read_to_string(IP_FORWARD).unwrap().trim(), "0");
        network.stop().await;
    });
}

#[test]
fn a_name_server_on_all_the_hosts_addresses_is_led_past() {
    on_a_host(|world| async move {
        resolver(&world, WORLD, [203, 0, 113, 9]);
        let _taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let sandbox = world.sandbox(&network.lease().unwrap());
        let reply = ask(&sandbox, network.gateway(), 5, "app.example").await.unwrap();
        assert_eq!(reply[reply.len() - 1], 9);
        assert_eq!(
            ask_by_tcp(&sandbox, network.gateway(), "app.example").await.unwrap()[..2],
            [0, 2]
        );
        network.stop().await;
    });
}

#[test]
fn a_stop_leaves_links_addresses_and_tables_as_they_were() {
    on_a_host(|world| async move {
        let addresses = || std::fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap();
        let before = addresses();
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let _running = world.sandbox(&network.lease().unwrap());
        assert_ne!(addresses(), before);
        network.stop().await;
        assert_eq!(world.link_names(), ["lo", "wan0"]);
        assert_eq!(addresses(), before);
        let tables = std::process::Command::new("nft")
            .args(["list", "tables"])
            .output()
            .unwrap();
        assert!(tables.stdout.is_empty());
    });
}

#[test]
fn wiring_is_quick_gives_the_right_links_and_leaks_none_over_200_sandboxes() {
    on_a_host(|world| async move {
        let network = Network::start(world.config("a", "10.213.0.0/16")).await.unwrap();
        let mut taken = Vec::new();
        for round in 0..200 {
            let slot = network.lease().unwrap();
            let spec = slot.spec();
            let host = world.host.as_fd();
            let mut wired = Duration::ZERO;
            let sandbox = new_namespace(|| {
                let begun = Instant::now();
                wire_inside(&spec, host).unwrap();
                wired = begun.elapsed();
            });
            taken.push(wired);
            if round == 0 {
                look_around(&sandbox, &world);
            }
        }
        taken.sort();
        println!(
            "wire_inside: min {:?}, median {:?}, p95 {:?}",
            taken[0], taken[100], taken[190]
        );
        assert!(taken[100] < Duration::from_millis(20), "median {:?}", taken[100]);
        world
            .wait_for_links("links outlive their sandboxes", |names| names.len() == 2)
            .await;
        network.stop().await;
        assert_eq!(world.link_names(), ["lo", "wan0"]);
    });
}

/// What is inside a wired namespace: lo and eth0 with the host's MTU, `::1` and no other IPv6.
fn look_around(sandbox: &Netns, world: &World) {
    let (links, v6) = sandbox
        .run(|| {
            Ok((
                Netlink::open()?.links()?,
                std::fs::read_to_string("/proc/thread-self/net/if_inet6")?,
            ))
        })
        .unwrap();
    let seen: Vec<_> = links.iter().map(|link| (link.name.as_str(), link.mtu)).collect();
    assert_eq!(seen, [("lo", 65_536), ("eth0", 1400)]);
    assert_eq!(v6.lines().count(), 1, "{v6}");
    assert!(v6.starts_with("00000000000000000000000000000001"), "{v6}");
    assert!(world.link_names().contains(&"a_0000".to_owned()));
    let bound: io::Result<SocketAddr> = sandbox
        .udp_socket((Ipv4Addr::new(10, 213, 1, 1), 0).into())
        .and_then(|socket| socket.local_addr());
    assert!(bound.is_ok());
}
