//! Reading the host's `/etc/resolv.conf` as resolv.conf(5) describes it, and writing the sandboxes'.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

/// The most name servers that are asked, as in glibc.
const MOST_SERVERS: usize = 3;
/// Options that make sense with one name server that is a forwarder; the rest are about how the host asks its own.
const KEPT_OPTIONS: [&str; 4] = ["ndots:", "timeout:", "attempts:", "single-request"];

/// What of a resolv.conf matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// Name servers in the order they are asked.
    pub servers: Vec<SocketAddr>,
    /// Domains tried after a short name.
    pub search: Vec<String>,
    /// Options kept for sandboxes.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads what is understood and passes over the rest, as every resolver does.
    pub(super) fn parse(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => read.servers.extend(words.next().and_then(server)),
                Some("search" | "domain") => read.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let kept = words.filter(|word| KEPT_OPTIONS.iter().any(|option| word.starts_with(option)));
                    read.options.extend(kept.map(str::to_owned));
                }
                _ => {}
            }
        }
        read.servers.truncate(MOST_SERVERS);
        read
    }

    /// The file for a sandbox whose only name server is `gateway`.
    pub(super) fn for_sandbox(&self, gateway: Ipv4Addr) -> String {
        let mut text = format!("nameserver {gateway}\n");
        for (keyword, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                text.push_str(&format!("{keyword} {}\n", words.join(" ")));
            }
        }
        text
    }
}

/// An address on port 53. A link-local one may name its link after a `%`.
fn server(word: &str) -> Option<SocketAddr> {
    if let Some((address, link)) = word.split_once('%') {
        let scope = link.parse().ok().or_else(|| nix::net::if_::if_nametoindex(link).ok())?;
        return Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into());
    }
    Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, 53))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_search_list_and_options_are_read() {
        let read = ResolvConf::parse(
            "# by hand\nnameserver 10.0.0.53 # first\n  nameserver fd00::53\nnameserver fe80::1%lo\nnameserver 1.1.1.1\n\
             nameserver nonsense\ndomain old.example\nsearch a.example b.example\noptions ndots:2 rotate trust-ad attempts:3\n",
        );
        let shown: Vec<_> = read.servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(shown, ["10.0.0.53:53", "[fd00::53]:53", "[fe80::1%1]:53"]);
        assert_eq!(read.search, ["a.example", "b.example"]);
        assert_eq!(
            read.for_sandbox(Ipv4Addr::new(10, 213, 0, 1)),
            "nameserver 10.213.0.1\nsearch a.example b.example\noptions ndots:2 attempts:3\n"
        );
    }

    #[test]
    fn an_empty_file_gives_a_sandbox_just_its_name_server() {
        assert_eq!(
            ResolvConf::parse("").for_sandbox(Ipv4Addr::new(10, 0, 0, 1)),
            "nameserver 10.0.0.1\n"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_what_is_written_reads_back(text in "(?s).{0,400}") {
            let read = ResolvConf::parse(&text);
            prop_assert!(read.servers.len() <= MOST_SERVERS);
            let gateway = Ipv4Addr::new(10, 1, 0, 1);
            let again = ResolvConf::parse(&read.for_sandbox(gateway));
            prop_assert_eq!(again.servers, vec![SocketAddr::new(gateway.into(), 53)]);
            prop_assert_eq!((again.search, again.options), (read.search, read.options));
        }
    }
}
