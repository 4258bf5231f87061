//! Writing so that the bytes are on the disk when the call returns.
//!
//! One pwritev2(2) with `RWF_DSYNC` does what a write and an fdatasync do in two calls, and on blocks that were written
//! before it touches no metadata.

use std::{fs::File, io, os::fd::AsRawFd, os::unix::fs::FileExt};

/// Writes all of `bytes` at `offset`; on return they, and what is needed to read them, are on the disk.
///
/// # Errors
/// As write(2); part of the bytes may have been written then. `ENOSPC` when the disk is full.
pub fn pwrite_durable(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let part = libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        };
        let at = i64::try_from(offset + done as u64).map_err(io::Error::other)?;
        // SAFETY: `file` is open for the call; the one iovec describes `rest`, which is borrowed for it and only read.
        let wrote = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, at, libc::RWF_DSYNC) };
        match wrote {
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // A file system without the flag: the same in two calls.
                    Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                        file.write_all_at(rest, offset + done as u64)?;
                        return file.sync_data();
                    }
                    _ => return Err(error),
                }
            }
            0 => return Err(io::ErrorKind::WriteZero.into()),
            wrote => done += wrote.unsigned_abs(),
        }
    }
    Ok(())
}
