//! File handles: opening a file of a FUSE mount by its number alone, without any name.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel's `FILEID_INO64_GEN`: what FUSE calls a handle of a 64-bit number and a generation.
const INO64_GEN: libc::c_int = 0x81;

/// `struct file_handle` with the three words of such a handle.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    words: [u32; 3],
}

/// Opens the file that the FUSE file system under `mount` (any descriptor on it, not `O_PATH`) calls `number`, generation 0, if the
/// kernel has it in memory. Close-on-exec is added to `flags`.
///
/// # Errors
/// `ESTALE` when the kernel does not have it, `EPERM` without `CAP_DAC_READ_SEARCH`.
pub fn open_by_number(mount: BorrowedFd<'_>, number: u64, flags: i32) -> io::Result<OwnedFd> {
    let words = [(number >> 32) as u32, number as u32, 0];
    let mut handle = Handle {
        bytes: size_of_val(&words) as libc::c_uint,
        kind: INO64_GEN,
        words,
    };
    // SAFETY: the kernel reads a header and `bytes` bytes behind it, which is all on our stack; the borrow keeps `mount` open.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            flags | libc::O_CLOEXEC,
        )
    };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_number_that_no_fuse_file_has_is_stale() {
        let root = std::fs::File::open("/proc/self").unwrap();
        let errno = open_by_number(root.as_fd(), 1 << 40, libc::O_PATH)
            .unwrap_err()
            .raw_os_error();
        assert!(
            [Some(libc::ESTALE), Some(libc::EOPNOTSUPP)].contains(&errno),
            "{errno:?}"
        );
    }
}
