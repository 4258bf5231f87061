//! The firewall around the sandboxes: one nft table, installed and removed as a whole.
//!
//! The rules match links by the instance's prefix and addresses by the subnet, so they stand from start to stop and starting a
//! sandbox adds none (adding one rule takes 4 ms). The table is replaced in one transaction: there is no moment without rules.
//!
//! What comes from a sandbox
//! * with a source address that is not its own, or over IPv6, is dropped before anything looks at it;
//! * for the host itself is refused, but for DNS on the gateway's address;
//! * for other sandboxes is refused always, for private and reserved ranges unless they are in `allow`;
//! * for the rest of the world is passed on, with the host's address as its source.
//!
//! What goes to a sandbox is the answer to something it asked. Connections from the edge do not come this way: their sockets are
//! made inside the sandbox's namespace.
//!
//! "Refused" is a reset or an ICMP error rather than silence: SDKs that look for cloud metadata at 169.254.169.254 would else
//! spend seconds of an app's start on waiting. The documentation ranges (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24) are
//! passed on like the internet: nobody's private network is there, and test networks are.
//!
//! # Beside other firewalls
//! In nftables a packet has to be accepted by every table. Where another one drops what it does not know in the forward hook
//! (docker sets the policy of `ip filter FORWARD` to DROP; so do ufw and firewalld), sandboxes have no way out until that one is
//! told to let them pass; with docker:
//! ```text
//! iptables -I DOCKER-USER -i berth_+ -j ACCEPT
//! iptables -I DOCKER-USER -o berth_+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
//! ```
//! (with ufw: `ufw route allow in on berth_+`, which is its own syntax for the same). [`forward_dropped_by`] finds such
//! a host. Forwarding stays on after a stop; on a host that must not route for its neighbours, keep a forward policy of DROP.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};

use super::{Instance, Ipv4Net, NetworkError, blocking};

/// Ranges that are not the internet: this network, private use, shared by carriers, loopback, link-local (metadata), multicast,
/// reserved and broadcast.
const NOT_THE_INTERNET: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                                192.168.0.0/16, 224.0.0.0/4, 240.0.0.0/4";

/// Where sandboxes ask for names.
const DNS: u16 = 53;

/// Where nft may be when `PATH` does not lead to it, as under a bare init.
const NFT: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Installs the table of `instance`, in place of an earlier one, in one transaction. The forwarder listens on `dns_port` of the
/// gateway's address.
pub(super) async fn install(
    instance: &Instance,
    subnet: Ipv4Net,
    allow: &[Ipv4Net],
    dns_port: u16,
) -> Result<(), NetworkError> {
    let table = instance.table();
    let script = format!("{}{}", removal(&table), ruleset(instance, subnet, allow, dns_port));
    blocking(move || run("install", &table, &script)).await
}

/// Removes the table; fine if it is not there.
pub(super) async fn remove(instance: &Instance) -> Result<(), NetworkError> {
    let table = instance.table();
    blocking(move || run("remove", &table, &removal(&table))).await
}

/// Chains of other tables that drop forwarded packets by policy, as `family table chain`: with any of these, sandboxes may have no
/// way out, see the module's text. Blocking.
///
/// # Errors
/// [`NetworkError::NoNft`], [`NetworkError::RunNft`] and [`NetworkError::Nft`].
pub fn forward_dropped_by() -> Result<Vec<String>, NetworkError> {
    let output = nft(&["-j", "list", "chains"], "")?;
    if output.status.success() {
        Ok(dropping_chains(&output.stdout))
    } else {
        Err(said("list chains beside", "berth", &output))
    }
}

/// Has nft and the kernel check the rules without installing them. Blocking.
///
/// # Errors
/// [`NetworkError::NoNft`], [`NetworkError::RunNft`] and [`NetworkError::Nft`].
pub fn probe() -> Result<(), NetworkError> {
    let instance: Instance = "probe".parse()?;
    let subnet = Ipv4Net::containing(Ipv4Addr::new(10, 213, 0, 0), 16);
    let output = nft(&["-c", "-f", "-"], &ruleset(&instance, subnet, &[], DNS + 1))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(said("check", &instance.table(), &output))
    }
}

/// Out of nft's list of chains: those on the forward hook whose policy is drop.
fn dropping_chains(json: &[u8]) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let objects = list["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chains = objects.iter().map(|object| &object["chain"]);
    let dropping = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    dropping
        .map(|chain| {
            let word = |key: &str| chain[key].as_str().unwrap_or("?").to_owned();
            format!("{} {} {}", word("family"), word("table"), word("name"))
        })
        .collect()
}

/// Deleting what is not there is an error, adding what is there is not: so both, in this order, always work.
fn removal(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

fn ruleset(instance: &Instance, subnet: Ipv4Net, allow: &[Ipv4Net], dns_port: u16) -> String {
    let table = instance.table();
    let links = format!("\"{}*\"", instance.link_prefix());
    let gateway = subnet.gateway();
    let allowed = match allow {
        [] => String::new(),
        ranges => format!(
            "elements = {{ {} }};",
            ranges.iter().map(Ipv4Net::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    // Another name server on the host may have port 53 of every address: then the sandboxes' queries are led past it.
    let elsewhere = match dns_port {
        DNS => String::new(),
        port => ["udp", "tcp"]
            .map(|way| {
                format!("\n    iifname {links} ip daddr {gateway} {way} dport {DNS} dnat ip to {gateway}:{port}")
            })
            .concat(),
    };
    format!(
        r#"table inet {table} {{
  set allow {{ type ipv4_addr; flags interval; auto-merge; {allowed} }}
  set not_the_internet {{ type ipv4_addr; flags interval; elements = {{ {NOT_THE_INTERNET} }}; }}

  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname != {links} accept
    meta nfproto ipv6 drop
    ip saddr != {subnet} drop
    fib saddr . iif oif missing drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {links} jump to_host
    iifname != "lo" ip daddr {gateway} drop
  }}
  chain to_host {{
    ct state established,related accept
    ip daddr {gateway} udp dport {dns_port} accept
    ip daddr {gateway} tcp dport {dns_port} accept
    goto refuse
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {links} goto from_sandbox
    oifname {links} goto to_sandbox
  }}
  chain from_sandbox {{
    ct state established,related accept
    ct state invalid drop
    meta nfproto ipv6 drop
    ip daddr {subnet} goto refuse
    ip daddr @allow accept
    ip daddr @not_the_internet goto refuse
    accept
  }}
  chain to_sandbox {{
    ct state established,related accept
    drop
  }}
  chain names {{
    type nat hook prerouting priority dstnat; policy accept;{elsewhere}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != {links} masquerade
  }}
}}
"#
    )
}

fn run(act: &'static str, table: &str, script: &str) -> Result<(), NetworkError> {
    let output = nft(&["-f", "-"], script)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(said(act, table, &output))
    }
}

fn said(act: &'static str, table: &str, output: &Output) -> NetworkError {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    NetworkError::Nft {
        act,
        table: table.to_owned(),
        said,
    }
}

/// Runs nft with `script` as its input.
fn nft(arguments: &[&str], script: &str) -> Result<Output, NetworkError> {
    for program in NFT {
        let started = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetworkError::RunNft(error)),
            Ok(mut child) => {
                // nft reads its whole input before it says anything, so writing first cannot block on its output.
                let written = child
                    .stdin
                    .take()
                    .map_or(Ok(()), |mut input| input.write_all(script.as_bytes()));
                let output = child.wait_with_output().map_err(NetworkError::RunNft)?;
                // An nft that ended early says itself why; the broken pipe would hide that.
                return if output.status.success() {
                    written.map(|()| output).map_err(NetworkError::RunNft)
                } else {
                    Ok(output)
                };
            }
        }
    }
    Err(NetworkError::NoNft)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn nft_understands_the_rules_whatever_the_instance_is_called() {
        for name in ["berth", "b", "7x", "table", "ip"] {
            let instance: Instance = name.parse().unwrap();
            for allow in [
                vec![],
                vec!["10.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            ] {
                let script = format!(
                    "{}{}",
                    removal(&instance.table()),
                    ruleset(
                        &instance,
                        "10.213.0.0/16".parse().unwrap(),
                        &allow,
                        if allow.is_empty() { 53 } else { 4053 }
                    )
                );
                let output = nft(&["-c", "-f", "-"], &script).unwrap();
                assert!(
                    output.status.success(),
                    "{name}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }

    #[test]
    fn what_nft_says_is_in_the_error() {
        let error = run("install", "x", "no such command\n").unwrap_err();
        assert!(error.to_string().contains("syntax error"), "{error}");
    }

    #[test]
    fn a_forward_policy_of_drop_is_found() {
        let json = br#"{"nftables":[{"metainfo":{}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}},
            {"chain":{"family":"inet","table":"berth","name":"forward","hook":"forward","policy":"accept"}},
            {"chain":{"family":"ip","table":"filter","name":"INPUT","hook":"input","policy":"drop"}}]}"#;
        assert_eq!(dropping_chains(json), ["ip filter FORWARD"]);
        assert!(dropping_chains(b"").is_empty());
    }
}
