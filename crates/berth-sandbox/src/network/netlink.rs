//! Links, addresses and routes, asked of the kernel over one blocking rtnetlink socket.
//!
//! Blocking on purpose: a keeper is a process with one thread and no runtime, and every request here is answered by the kernel
//! within the send call. A socket belongs to the network namespace it was opened in, whatever its thread does later, so a
//! process can hold one to each of two namespaces.
//!
//! One request, one answer: the sequence number of the answer is checked, so that an answer to an earlier request that failed
//! half-way is never taken for the present one's.

use std::io;
use std::net::Ipv4Addr;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeader, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A conversation with the kernel about the network namespace in which it was opened.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A link, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// For a veth: the index of its other end, in that end's namespace.
    pub peer: Option<u32>,
}

impl Netlink {
    /// Opens a conversation about the namespace that the calling thread is in.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The link called `name`; `ENODEV` if there is none.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Link> {
        let asked = LinkUnspec::new_with_name(name).build();
        let answers = self.talk(RouteNetlinkMessage::GetLink(asked), 0)?;
        answers
            .into_iter()
            .find_map(as_link)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// All links of the namespace.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.talk(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_link).collect())
    }

    /// The index of the link that the IPv4 default route leads out of, if there is such a route.
    pub(super) fn way_out(&mut self) -> io::Result<Option<u32>> {
        let asked = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let answers = self.talk(RouteNetlinkMessage::GetRoute(asked), NLM_F_DUMP)?;
        let defaults = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => default_route(&route),
            _ => None,
        });
        Ok(defaults.min().map(|(_, link)| link))
    }

    /// Makes a pair of links: `near` in this namespace, `far` in `far_ns`, where it is born: moving it there would take twenty
    /// times as long.
    pub(super) fn add_veth(&mut self, near: &str, far: &str, far_ns: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
        let far = LinkUnspec::new_with_name(far)
            .mtu(mtu)
            .setns_by_fd(far_ns.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(near, "")
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        self.act(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Takes a link away, and with a veth its other end.
    pub(super) fn remove(&mut self, link: u32) -> io::Result<()> {
        let gone = LinkUnspec::new_with_index(link).build();
        self.act(RouteNetlinkMessage::DelLink(gone), 0)
    }

    /// Brings a link up.
    pub(super) fn up(&mut self, link: u32) -> io::Result<()> {
        let up = LinkUnspec::new_with_index(link).up().build();
        self.act(RouteNetlinkMessage::SetLink(up), 0)
    }

    /// Gives a link an address.
    pub(super) fn add_address(&mut self, link: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let given = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link)
            .address(address, prefix)
            .build();
        self.act(RouteNetlinkMessage::NewAddress(given), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Gives a link an address that this host answers at but never uses as a source by itself.
    pub(super) fn add_own_address(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let given = RouteNetlinkMessage::NewAddress(own_address(link, address));
        self.act(given, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Takes away what [`Self::add_own_address`] gave.
    pub(super) fn remove_own_address(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        self.act(RouteNetlinkMessage::DelAddress(own_address(link, address)), 0)
    }

    /// Sends whatever has no nearer route to `gateway` through `link`.
    pub(super) fn add_default_route(&mut self, link: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(link)
            .gateway(gateway)
            .build();
        self.act(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// A request that is answered by "done" or by an error.
    fn act(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.talk(message, NLM_F_ACK | flags).map(drop)
    }

    fn talk(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        // A dump ends with Done, an act with its acknowledgement, a question about one thing with its one answer.
        loop {
            let (received, _) = self.socket.recv_from_full()?;
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length)
                    .unwrap_or(usize::MAX)
                    .next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) => {
                        return if error.code.is_some() {
                            Err(error.to_io())
                        } else {
                            Ok(answers)
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
            if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }
}

/// Both attributes in any case: a deletion without the local address would take the link's first address, whichever that is.
fn own_address(link: u32, address: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: AddressFamily::Inet,
        prefix_len: 32,
        scope: AddressScope::Host,
        index: link,
        ..message.header
    };
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
    ];
    message
}

fn as_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        peer: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            _ => {}
        }
    }
    Some(link)
}

/// Metric and link of a default route of the main table.
fn default_route(route: &RouteMessage) -> Option<(u32, u32)> {
    if route.header.destination_prefix_length != 0
        || route.header.table != rtnetlink::packet_route::route::RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut metric = 0;
    let mut link = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    link.map(|link| (metric, link))
}
