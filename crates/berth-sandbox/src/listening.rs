//! Which TCP ports something listens on in a network namespace, read from `/proc/PID/net/tcp` and `tcp6` of a process in it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state LISTEN in the kernel's tables.
const LISTEN: &str = "0A";

/// All listening addresses of the namespace that `pid` is in, sorted.
pub(crate) fn of_pid(pid: i32) -> io::Result<Vec<SocketAddr>> {
    let mut found = parse(&fs::read_to_string(format!("/proc/{pid}/net/tcp"))?);
    // Absent where the kernel has no IPv6.
    found.extend(parse(
        &fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default(),
    ));
    found.sort();
    found.dedup();
    Ok(found)
}

fn parse(table: &str) -> Vec<SocketAddr> {
    table.lines().skip(1).filter_map(line).collect()
}

/// `sl local_address rem_address st ...`, the address in hexadecimal words of the machine's byte order.
fn line(text: &str) -> Option<SocketAddr> {
    let mut fields = text.split_ascii_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    if state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_process_sees_its_own_listeners() {
        let four = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = of_pid(std::process::id() as i32).unwrap();
        assert!(found.contains(&four.local_addr().unwrap()), "{found:?}");
        if let Ok(six) = std::net::TcpListener::bind("[::1]:0") {
            assert!(
                of_pid(std::process::id() as i32)
                    .unwrap()
                    .contains(&six.local_addr().unwrap())
            );
        }
    }

    #[test]
    fn connections_are_not_listeners() {
        let table = "head\n 0: 0100007F:1F90 00000000:0000 0A 0\n 1: 0100007F:1F90 0100007F:C350 01 0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(parse(table), ["127.0.0.1:8080".parse().unwrap()]);
        }
    }
}
