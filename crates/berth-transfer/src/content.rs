//! Whether a file and an object hold the same bytes.
//!
//! An ETag is the MD5 of the body on almost every server, and for an object stored in parts the MD5 of the parts' MD5s:
//! both can be worked out from the file. How large the parts were is not told; the sizes that fit and that tools use are
//! tried. Where the ETag says nothing (encrypted buckets), the object is read and compared byte by byte.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_store::{ObjectInfo, Store, StoreError};
use bytes::Bytes;
use md5::{Digest, Md5};

use crate::retry::patiently;

const MIB: u64 = 1024 * 1024;
/// Files above this go up in parts.
pub(crate) const LARGE: u64 = 16 * MIB;
/// Bytes of a part, but for very large files: the store's own, so that a file has one ETag whoever stored it.
const PART: u64 = 8 * MIB;
/// S3 takes so many parts.
const MOST_PARTS: u64 = 10_000;
/// Sizes of parts in MiB that other tools use.
const USUAL: [u64; 15] = [5, 6, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024];
const BUFFER: usize = 128 * 1024;

/// What an ETag says about a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same bytes.
    Same,
    /// The ETag does not fit: other bytes, or an ETag that is no checksum.
    Unknown,
}

/// The size of the parts in which a file of this size is stored here.
pub(crate) fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS))
}

/// A regular file, opened without following a link that was put in its place.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is no file any more"));
    }
    Ok(file)
}

/// Compares an open file, from its beginning, with an ETag. Blocks.
pub(crate) fn judge(file: &File, size: u64, etag: &str) -> io::Result<Verdict> {
    let same = match etag.split_once('-') {
        None if is_md5(etag) => hex::encode(digest(file, 0, u64::MAX)?) == etag,
        Some((md5, parts)) if is_md5(md5) => match parts.parse() {
            Ok(parts) => is_of_parts(file, size, parts, etag)?,
            Err(_) => false,
        },
        _ => false,
    };
    Ok(if same { Verdict::Same } else { Verdict::Unknown })
}

fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_of_parts(file: &File, size: u64, parts: u64, etag: &str) -> io::Result<bool> {
    for part in sizes_that_fit(size, parts) {
        if etag_of_parts(file, size, part)? == etag {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sizes that cut `size` bytes into so many parts; ours first.
fn sizes_that_fit(size: u64, parts: u64) -> Vec<u64> {
    if parts == 1 {
        return vec![size.max(1)];
    }
    let mut fitting = vec![part_size(size)];
    fitting.extend(USUAL.map(|mib| mib * MIB));
    // What SDKs use that cut as evenly as they can.
    fitting.push(size.div_ceil(parts.max(1)));
    fitting.push(size.div_ceil(parts.max(1)).div_ceil(MIB) * MIB);
    fitting.retain(|part| *part > 0 && size.div_ceil(*part) == parts);
    let mut seen = std::collections::BTreeSet::new();
    fitting.retain(|part| seen.insert(*part));
    fitting
}

/// The ETag of a file stored in parts of this size.
fn etag_of_parts(file: &File, size: u64, part: u64) -> io::Result<String> {
    let count = size.div_ceil(part).max(1);
    let mut whole = Md5::new();
    for number in 0..count {
        whole.update(digest(file, number * part, part)?);
    }
    Ok(format!("{}-{count}", hex::encode(whole.finalize())))
}

/// The ETag of an object made of parts with these MD5s.
pub(crate) fn etag_of(md5s: &[[u8; 16]]) -> String {
    let mut whole = Md5::new();
    for md5 in md5s {
        whole.update(md5);
    }
    format!("{}-{}", hex::encode(whole.finalize()), md5s.len())
}

pub(crate) fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

/// MD5 of at most `len` bytes from `offset` on.
fn digest(file: &File, offset: u64, len: u64) -> io::Result<[u8; 16]> {
    let mut md5 = Md5::new();
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    while done < len {
        let want = usize::try_from((len - done).min(BUFFER as u64)).unwrap_or(BUFFER);
        match file.read_at(&mut buffer[..want], offset + done)? {
            0 => break,
            got => {
                md5.update(&buffer[..got]);
                done += got as u64;
            }
        }
    }
    Ok(md5.finalize().into())
}

/// Bytes from `offset` on: as many as there are, at most `len`.
pub(crate) fn read_part(file: &File, offset: u64, len: u64) -> io::Result<Bytes> {
    let mut part = Vec::new();
    let mut at = At { file, offset };
    (&mut at).take(len).read_to_end(&mut part)?;
    Ok(part.into())
}

struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.offset)?;
        self.offset += got as u64;
        Ok(got)
    }
}

/// Why a file and an object could not be compared.
#[derive(Debug)]
pub(crate) enum CompareError {
    File(io::Error),
    Store(StoreError),
}

/// Whether the file at `path` holds the object's very bytes.
pub(crate) async fn same(store: &Store, object: &ObjectInfo, path: PathBuf) -> Result<bool, CompareError> {
    let etag = object.etag.clone();
    let size = object.size;
    let opened = blocking(move || {
        let file = open(&path)?;
        if file.metadata()?.len() != size {
            return Ok(None);
        }
        let verdict = judge(&file, size, &etag)?;
        Ok(Some((Arc::new(file), verdict)))
    });
    match opened.await.map_err(CompareError::File)? {
        None => Ok(false),
        Some((_, Verdict::Same)) => Ok(true),
        Some((file, Verdict::Unknown)) => same_bytes(store, object, file).await,
    }
}

/// Reads the object and compares, until a byte differs.
pub(crate) async fn same_bytes(store: &Store, object: &ObjectInfo, file: Arc<File>) -> Result<bool, CompareError> {
    let mut offset = 0;
    while offset < object.size {
        let end = object.size.min(offset + PART);
        let theirs = patiently(|| store.get_range_if(&object.key, &object.etag, offset..end)).await;
        let theirs = theirs.map_err(CompareError::Store)?;
        let file = Arc::clone(&file);
        let ours = blocking(move || read_part(&file, offset, end - offset)).await;
        if ours.map_err(CompareError::File)? != theirs {
            return Ok(false);
        }
        offset = end;
    }
    Ok(true)
}

/// Work that waits for a disk, on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_md5_of_a_body_is_its_etag() {
        let file = file(b"hello");
        assert_eq!(
            judge(&file, 5, "5d41402abc4b2a76b9719d911017c592").unwrap(),
            Verdict::Same
        );
        for other in [
            "5d41402abc4b2a76b9719d911017c593",
            "opaque",
            "",
            "-",
            "x-2",
            "5d41402abc4b2a76b9719d911017c592-x",
        ] {
            assert_eq!(judge(&file, 5, other).unwrap(), Verdict::Unknown, "{other}");
        }
    }

    #[test]
    fn an_etag_of_parts_is_found_whatever_usual_size_they_had() {
        let size = 21 * MIB + 17;
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let file = file(&bytes);
        for part in [5 * MIB, 8 * MIB, 16 * MIB, 10 * MIB, size] {
            let md5s: Vec<_> = bytes.chunks(usize::try_from(part).unwrap()).map(md5).collect();
            let etag = etag_of(&md5s);
            assert_eq!(judge(&file, size, &etag).unwrap(), Verdict::Same, "{part}");
            let other = etag.replace('a', "b");
            assert_eq!(judge(&file, size, &other).unwrap(), Verdict::Unknown, "{part}");
        }
    }

    #[test]
    fn the_largest_file_has_no_more_parts_than_s3_takes() {
        assert_eq!(part_size(0), PART);
        let largest = 5 * 1024 * 1024 * MIB;
        assert!(largest.div_ceil(part_size(largest)) <= MOST_PARTS);
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("l")).unwrap();
        assert!(open(&dir.path().join("f")).is_ok());
        assert!(open(&dir.path().join("l")).is_err());
        assert!(open(dir.path()).is_err());
    }
}
