//! Frames: how a terminal session travels over one upgraded connection.
//!
//! After `101 Switching Protocols` both sides send frames: one byte for the kind, the payload's length as a 32-bit big-endian number,
//! the payload. A client sends stdin, its end, window sizes and signals; the daemon sends stdout and stderr and, last, how the command
//! ended. Frames hold at most [`MAX_PAYLOAD`] bytes, so that neither side can be made to hold more.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "berth-exec";
/// The most bytes in one frame.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes for the command's standard input.
    Stdin(Bytes),
    /// No more input comes.
    StdinEnd,
    /// The client's window has a new size.
    Resize(WindowSize),
    /// Send this signal to the command.
    Signal(i32),
    /// Bytes the command wrote to its standard output (or its terminal).
    Stdout(Bytes),
    /// Bytes the command wrote to its standard error.
    Stderr(Bytes),
    /// The command ended; nothing follows.
    Exit(Ending),
    /// The session failed; nothing follows.
    Failure(String),
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The code a shell would show: 0–255, 128 + n after signal n.
    pub code: i32,
    /// The same in words.
    pub text: String,
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Stdin(_) => 0,
            Frame::StdinEnd => 1,
            Frame::Resize(_) => 2,
            Frame::Signal(_) => 3,
            Frame::Stdout(_) => 16,
            Frame::Stderr(_) => 17,
            Frame::Exit(_) => 18,
            Frame::Failure(_) => 19,
        }
    }

    fn payload(&self) -> io::Result<Bytes> {
        Ok(match self {
            Frame::Stdin(bytes) | Frame::Stdout(bytes) | Frame::Stderr(bytes) => bytes.clone(),
            Frame::StdinEnd => Bytes::new(),
            Frame::Resize(size) => serde_json::to_vec(size)?.into(),
            Frame::Signal(number) => Bytes::copy_from_slice(&number.to_be_bytes()),
            Frame::Exit(ending) => serde_json::to_vec(ending)?.into(),
            Frame::Failure(text) => Bytes::copy_from_slice(text.as_bytes()),
        })
    }

    fn parse(kind: u8, payload: Bytes) -> io::Result<Frame> {
        Ok(match kind {
            0 => Frame::Stdin(payload),
            1 => Frame::StdinEnd,
            2 => Frame::Resize(serde_json::from_slice(&payload)?),
            3 => Frame::Signal(i32::from_be_bytes(
                payload.as_ref().try_into().map_err(io::Error::other)?,
            )),
            16 => Frame::Stdout(payload),
            17 => Frame::Stderr(payload),
            18 => Frame::Exit(serde_json::from_slice(&payload)?),
            19 => Frame::Failure(String::from_utf8_lossy(&payload).into_owned()),
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("frame of unknown kind {other}"),
                ));
            }
        })
    }
}

/// Sends one frame.
///
/// # Errors
/// Those of the connection; `InvalidInput` for a payload over [`MAX_PAYLOAD`]. Not cancel-safe.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let payload = frame.payload()?;
    if payload.len() > MAX_PAYLOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frame over the limit"));
    }
    let mut head = [0_u8; 5];
    head[0] = frame.kind();
    head[1..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    to.write_all(&head).await?;
    to.write_all(&payload).await?;
    to.flush().await
}

/// Receives one frame; `None` when the other side has closed between frames.
///
/// # Errors
/// Those of the connection; `InvalidData` for an unknown kind or a payload over [`MAX_PAYLOAD`]. Not cancel-safe.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0_u8; 5];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes is over the limit"),
        ));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Frame::parse(head[0], payload.into()).map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn every_frame_arrives_as_it_was_sent() {
        let frames = [
            Frame::Stdin(Bytes::from_static(b"ls\n")),
            Frame::StdinEnd,
            Frame::Resize(WindowSize { rows: 24, cols: 80 }),
            Frame::Signal(2),
            Frame::Stdout(Bytes::from(vec![7; MAX_PAYLOAD])),
            Frame::Stderr(Bytes::new()),
            Frame::Exit(Ending {
                code: 3,
                text: "exit code 3".into(),
            }),
            Frame::Failure("no such app".into()),
        ];
        let (mut near, mut far) = tokio::io::duplex(1024);
        let sent = frames.clone();
        let sender = tokio::spawn(async move {
            for frame in &sent {
                write(&mut near, frame).await.unwrap();
            }
        });
        for frame in &frames {
            assert_eq!(read(&mut far).await.unwrap().as_ref(), Some(frame));
        }
        sender.await.unwrap();
        assert_eq!(read(&mut far).await.unwrap(), None);
    }

    #[tokio::test]
    async fn nonsense_is_refused_and_never_allocated_for() {
        for bytes in [
            &[0, 255, 255, 255, 255][..],
            &[99, 0, 0, 0, 0],
            &[3, 0, 0, 0, 1, 1],
            &[2, 0, 0, 0, 1, b'x'],
        ] {
            assert!(read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
        assert!(
            write(&mut Vec::new(), &Frame::Stdin(Bytes::from(vec![0; MAX_PAYLOAD + 1])))
                .await
                .is_err()
        );
    }
}
