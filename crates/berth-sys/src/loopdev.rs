//! Loop devices: a read-only block device over a file, for kernels that cannot mount a file system from a file.
//!
//! A device is attached with AUTOCLEAR: the kernel takes it back when its last user is gone, be that an unmount or the
//! end of this process. So nothing has to be remembered or cleaned up.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// `LOOP_CTL_GET_FREE` of linux/loop.h: the number of an unused device.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// `LOOP_CONFIGURE` of linux/loop.h (since Linux 5.8): attach and set up in one step.
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// How often another process may take the free device before we get to it.
const TRIES: usize = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// An attached loop device. Mount it before this is dropped: the device lives as long as it is open or mounted.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// The block device, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Attaches `file` read-only to a free loop device.
///
/// # Errors
/// `EACCES`/`EPERM` without root's rights; `ENOENT` without the loop driver; `EBUSY` if others took every free device
/// before us.
pub fn attach(file: &Path) -> io::Result<LoopDevice> {
    let backing = File::open(file)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let number = free_device(control.as_raw_fd())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        match configure(device.as_raw_fd(), backing.as_raw_fd()) {
            Ok(()) => return Ok(LoopDevice { path, _open: device }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn free_device(control: RawFd) -> io::Result<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours; the descriptor is open.
    let number = unsafe { libc::ioctl(control, LOOP_CTL_GET_FREE) };
    if number < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(number)
    }
}

fn configure(device: RawFd, backing: RawFd) -> io::Result<()> {
    let fd = u32::try_from(backing).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = LoopConfig {
        fd,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `struct loop_config` from the pointer, which lives through the call and has that
    // layout; both descriptors are open.
    let result = unsafe { libc::ioctl(device, LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn the_kernels_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn a_device_shows_the_file_and_goes_by_itself() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        file.flush().unwrap();
        let device = attach(file.path()).expect("loop devices need root and the loop driver");
        let mut content = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, [7; 8192]);
        assert!(
            File::options()
                .write(true)
                .open(device.path())
                .and_then(|mut f| f.write_all(b"x").and(f.sync_all()))
                .is_err()
        );
        let backing = PathBuf::from(format!(
            "/sys/block/{}/loop/backing_file",
            device.path().file_name().unwrap().to_str().unwrap()
        ));
        assert!(backing.exists());
        drop(device);
        // Autoclear happens in the kernel's own time; the device may also be given to another file.
        let gone = || std::fs::read_to_string(&backing).map_or(true, |now| now.trim() != file.path().to_str().unwrap());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !gone() {
            assert!(std::time::Instant::now() < deadline, "the device is still attached");
            std::thread::yield_now();
        }
    }
}
