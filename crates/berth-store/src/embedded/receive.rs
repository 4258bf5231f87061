//! A request's body on its way in: small ones into memory, large ones into a file while they arrive.
//!
//! A large body passes through a queue of a few chunks to a blocking thread that hashes and writes it, so the network,
//! the hash and the disk work at the same time and memory stays bounded however large the body is. When the client
//! breaks off, or sends something else than it announced, the file goes again.

use std::io::{self, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use md5::{Digest as _, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::Checksum as _;
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Result, TrailingHeaders, s3_error};
use tokio::sync::mpsc;

use super::disk::{Blobs, NewBlob, is_disk_full};
use super::record::INLINE_MAX;
use super::writer::storage_error;

/// Chunks between the network and the disk. A chunk is what one read of the socket gave, at most some 100 KiB.
const QUEUE: usize = 16;

/// What the client said about its body.
#[derive(Debug, Default)]
pub(super) struct Announced {
    pub length: Option<i64>,
    /// `Content-MD5`, base64.
    pub md5: Option<String>,
    /// `x-amz-checksum-*`.
    pub checksum: Checksum,
    /// Checksums that come after the body.
    pub trailer: Option<TrailingHeaders>,
    /// `x-amz-trailer`: which checksum will come after the body.
    pub trailer_name: Option<String>,
}

/// A body that has arrived whole and is durable, if it is in a file.
#[derive(Debug)]
pub(super) struct Received {
    pub size: u64,
    pub md5: [u8; 16],
    pub place: Place,
}

/// Where the body is.
#[derive(Debug)]
pub(super) enum Place {
    Memory(Bytes),
    File(NewBlob),
}

/// The digests of a body so far.
struct Digests {
    size: u64,
    md5: Md5,
    extra: ChecksumHasher,
}

impl Digests {
    fn new(announced: &Announced) -> Self {
        let (sum, trailer) = (&announced.checksum, announced.trailer_name.as_deref().unwrap_or(""));
        let wanted = |header: Option<&String>, name: &str| header.is_some() || trailer.eq_ignore_ascii_case(name);
        let mut extra = ChecksumHasher::default();
        if wanted(sum.checksum_crc32.as_ref(), "x-amz-checksum-crc32") {
            extra.crc32 = Some(s3s::crypto::Crc32::new());
        }
        if wanted(sum.checksum_crc32c.as_ref(), "x-amz-checksum-crc32c") {
            extra.crc32c = Some(s3s::crypto::Crc32c::new());
        }
        if wanted(sum.checksum_crc64nvme.as_ref(), "x-amz-checksum-crc64nvme") {
            extra.crc64nvme = Some(s3s::crypto::Crc64Nvme::new());
        }
        if wanted(sum.checksum_sha1.as_ref(), "x-amz-checksum-sha1") {
            extra.sha1 = Some(s3s::crypto::Sha1::new());
        }
        if wanted(sum.checksum_sha256.as_ref(), "x-amz-checksum-sha256") {
            extra.sha256 = Some(s3s::crypto::Sha256::new());
        }
        Self {
            size: 0,
            md5: Md5::new(),
            extra,
        }
    }

    fn update(&mut self, chunk: &[u8]) {
        self.size += chunk.len() as u64;
        self.md5.update(chunk);
        self.extra.update(chunk);
    }

    /// Compares with what was announced.
    fn finish(self, announced: &Announced) -> S3Result<(u64, [u8; 16])> {
        if announced.length.is_some_and(|l| u64::try_from(l) != Ok(self.size)) {
            return Err(s3_error!(
                IncompleteBody,
                "The body is not as long as its Content-Length."
            ));
        }
        let md5: [u8; 16] = self.md5.finalize().into();
        if announced.md5.as_ref().is_some_and(|want| *want != BASE64.encode(md5)) {
            return Err(s3_error!(
                BadDigest,
                "The body does not have the Content-MD5 that was sent with it."
            ));
        }
        let found = self.extra.finalize();
        for (name, found, header) in [
            (
                "x-amz-checksum-crc32",
                found.checksum_crc32,
                &announced.checksum.checksum_crc32,
            ),
            (
                "x-amz-checksum-crc32c",
                found.checksum_crc32c,
                &announced.checksum.checksum_crc32c,
            ),
            (
                "x-amz-checksum-crc64nvme",
                found.checksum_crc64nvme,
                &announced.checksum.checksum_crc64nvme,
            ),
            (
                "x-amz-checksum-sha1",
                found.checksum_sha1,
                &announced.checksum.checksum_sha1,
            ),
            (
                "x-amz-checksum-sha256",
                found.checksum_sha256,
                &announced.checksum.checksum_sha256,
            ),
        ] {
            let trailer = || {
                let value = announced.trailer.as_ref()?.read(|t| t.get(name).cloned()).flatten()?;
                Some(value.to_str().ok()?.to_owned())
            };
            if let (Some(found), Some(sent)) = (found, header.clone().or_else(trailer))
                && found != sent
            {
                return Err(s3_error!(
                    BadDigest,
                    "The body does not have the {name} that was sent with it."
                ));
            }
        }
        Ok((self.size, md5))
    }
}

/// Takes the body in. `to_file` asks for a file however small it is (parts of an upload).
///
/// Cancel-safe: dropped half-way, it leaves no file.
pub(super) async fn receive(
    blobs: &Arc<Blobs>,
    body: Option<StreamingBlob>,
    announced: Announced,
    to_file: bool,
) -> S3Result<Received> {
    let mut digests = Digests::new(&announced);
    let mut head = BytesMut::new();
    let mut body = body;
    while !(to_file || head.len() > INLINE_MAX) {
        let Some(chunk) = next_chunk(&mut body).await? else {
            digests.update(&head);
            let (size, md5) = digests.finish(&announced)?;
            return Ok(Received {
                size,
                md5,
                place: Place::Memory(head.freeze()),
            });
        };
        head.extend_from_slice(&chunk);
    }
    let (chunks, queue) = mpsc::channel(QUEUE);
    let writer_blobs = Arc::clone(blobs);
    let file = tokio::task::spawn_blocking(move || write_file(&writer_blobs, &head.freeze(), queue, digests));
    // A closed queue means the disk failed; the thread's result says how.
    let mut broken = None;
    loop {
        match next_chunk(&mut body).await {
            Ok(Some(chunk)) => {
                if chunks.send(Some(chunk)).await.is_err() {
                    break;
                }
            }
            Ok(None) => {
                let _ = chunks.send(None).await;
                break;
            }
            Err(e) => {
                broken = Some(e);
                break;
            }
        }
    }
    drop(chunks);
    let written = file.await.map_err(|_| storage_error(false))?;
    if let Some(e) = broken {
        return Err(e);
    }
    let (blob, digests) = written.map_err(|e| io_error("write a body", &e))?;
    let (size, md5) = digests.finish(&announced)?;
    Ok(Received {
        size,
        md5,
        place: Place::File(blob),
    })
}

async fn next_chunk(body: &mut Option<StreamingBlob>) -> S3Result<Option<Bytes>> {
    let Some(stream) = body else { return Ok(None) };
    match stream.next().await {
        None => Ok(None),
        Some(Ok(chunk)) => Ok(Some(chunk)),
        Some(Err(e)) => match e.downcast::<s3s::S3Error>() {
            Ok(refusal) => Err(*refusal),
            Err(e) => Err(s3_error!(IncompleteBody, "The body broke off: {e}")),
        },
    }
}

/// Writes chunks until the end mark; a queue that ends without one was given up, and so is the file.
fn write_file(
    blobs: &Arc<Blobs>,
    head: &[u8],
    mut queue: mpsc::Receiver<Option<Bytes>>,
    mut digests: Digests,
) -> io::Result<(NewBlob, Digests)> {
    let (mut file, blob) = blobs.create()?;
    file.write_all(head)?;
    digests.update(head);
    loop {
        match queue.blocking_recv() {
            Some(Some(chunk)) => {
                file.write_all(&chunk)?;
                digests.update(&chunk);
            }
            Some(None) => break,
            None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client broke off")),
        }
    }
    file.sync_all()?;
    blobs.sync_names()?;
    Ok((blob, digests))
}

/// The S3 error for a failed file operation; the log has the whole of it.
pub(super) fn io_error(what: &str, error: &io::Error) -> s3s::S3Error {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        tracing::error!(%error, "cannot {what}");
    }
    storage_error(is_disk_full(error))
}
