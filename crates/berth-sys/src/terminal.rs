//! The size of a terminal's window (`TIOCGWINSZ`).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The generated call has no documentation of its own.
mod raw {
    #![allow(missing_docs)]
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
}

/// Rows and columns of the terminal `fd`.
///
/// # Errors
/// `ENOTTY` if it is no terminal.
pub fn window_size(fd: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl writes one `winsize`, which lives on this stack; the borrow keeps the descriptor open.
    unsafe { raw::get_window_size(fd.as_raw_fd(), &raw mut size) }?;
    Ok((size.ws_row, size.ws_col))
}
