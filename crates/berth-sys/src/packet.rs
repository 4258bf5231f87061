//! Whole messages with file descriptors between processes of one host: `SOCK_SEQPACKET` sockets.
//!
//! A message arrives whole or not at all, with the descriptors that were sent along, close-on-exec. An empty message cannot be sent: a
//! length of 0 is the other side's end.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recv, recvmsg, sendmsg, setsockopt, socket, socketpair, sockopt,
};

/// Bytes that one message may have.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Descriptors that one message may carry.
pub const MAX_FDS: usize = 4;

/// Two connected ends, close-on-exec, blocking.
///
/// # Errors
/// `EMFILE` when there are too many descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    widen(&a);
    widen(&b);
    Ok((a, b))
}

/// A socket that listens at `path` (which must not exist), not blocking.
///
/// # Errors
/// `EADDRINUSE` when the path exists; `ENAMETOOLONG` beyond 107 bytes.
pub fn listener(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

/// The next connection of a [`listener`], not blocking; `None` when there is none now.
///
/// # Errors
/// `EMFILE` when there are too many descriptors.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        Ok(fd) => {
            // SAFETY: accept4 just made this descriptor for us.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            widen(&fd);
            Ok(Some(fd))
        }
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Connects to a [`listener`]; the result does not block.
///
/// # Errors
/// `ENOENT` or `ECONNREFUSED` when nobody listens.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    widen(&fd);
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Makes reads and writes of `fd` return `EAGAIN` instead of waiting.
///
/// # Errors
/// Never for an open descriptor.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Puts a socket into tokio's hands. Call it inside a runtime.
///
/// # Errors
/// Outside a runtime's reach of the kernel: `EMFILE`.
pub fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always names the same open descriptor, for as long as the AsyncFd owns it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}

/// A message must fit the sender's buffer; the default of 208 KiB is less than an environment may have.
fn widen(fd: &OwnedFd) {
    // Without CAP_NET_ADMIN it stays as it is, and larger messages are refused with EMSGSIZE.
    let _ = setsockopt(fd, sockopt::SndBufForce, &(2 * MAX_MESSAGE));
}

/// Sends one message with `fds`.
///
/// # Errors
/// `EMSGSIZE` for more than [`MAX_MESSAGE`] bytes, `EPIPE` when the other side is gone, `EAGAIN` when it does not read.
pub fn send(fd: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if message.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(Errno::EMSGSIZE as i32));
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            fd.as_fd().as_raw_fd(),
            &[IoSlice::new(message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The next message with its descriptors; `None` at the end.
///
/// # Errors
/// `EAGAIN` when there is none now and the socket does not block.
pub fn receive(fd: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let raw = fd.as_fd().as_raw_fd();
    let size = loop {
        match recv(raw, &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Ok(size) => break size,
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    if size == 0 {
        return Ok(None);
    }
    let mut bytes = vec![0; size.min(MAX_MESSAGE)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut fds = Vec::new();
    let length = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(raw, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel just made these descriptors for us; nobody else knows them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    bytes.truncate(length);
    Ok(Some((bytes, fds)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_message_brings_its_descriptors() {
        let (a, b) = pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        send(&a, b"take this", &[writer.as_fd()]).unwrap();
        drop(writer);
        let (bytes, mut fds) = receive(&b).unwrap().unwrap();
        assert_eq!(bytes, b"take this");
        let mut file = std::fs::File::from(fds.remove(0));
        file.write_all(b"x").unwrap();
        drop(file);
        assert_eq!(std::io::read_to_string(reader).unwrap(), "x");
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }

    #[test]
    fn a_large_message_arrives_whole() {
        let (a, b) = pair().unwrap();
        let big = vec![7; MAX_MESSAGE];
        let sender = std::thread::spawn(move || send(&a, &big, &[]));
        assert_eq!(receive(&b).unwrap().unwrap().0.len(), MAX_MESSAGE);
        sender.join().unwrap().unwrap();
    }
}
