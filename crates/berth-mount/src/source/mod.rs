//! The bucket once more, read-only, for sandboxes: a session of its own with the kernel, in which a file is opened, read and
//! closed without a request.
//!
//! ```text
//!   who edits ──▶ kernel ──▶ fs.rs ────────┐
//!                                          ├──▶ core.rs, tree.rs: one tree, one content
//!   sandboxes ──▶ kernel ──▶ here ─────────┘        │ what changed, if this kernel knows it (known.rs)
//!                   ▲                               ▼
//!                   └────── forget this ─────── notices.rs
//! ```
//! `open` is answered with `ENOSYS`, upon which the kernel never sends `OPEN`, `FLUSH` or `RELEASE` again, and keeps pages,
//! attributes and names until it is told otherwise. So three things are different from the other session:
//! - **Reads come by inode number**, with no handle in which bytes could be held. An inode that lost its name keeps its bytes
//!   where they are at hand (in the kernel, the cache, the journal, S3); else a read is answered with `ESTALE`.
//! - **It shows what was saved** (saved.rs): of a file that is being written, the version before; of a new one, nothing. The
//!   kernel does not ask between two writes, and nobody wants to run half a file.
//! - **Every change has to be told** (notices.rs), also those that programs of this host make: the kernel makes them for the
//!   other session alone.
//!
//! An inode lives until both sessions have forgotten it: whatever this one knows counts as one reference in the tree.

pub(crate) mod known;
pub(crate) mod notices;
mod saved;

use std::{ffi::OsStr, io, sync::Arc};

use bytes::Bytes;
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use crate::{
    answer::{BerthFs, GENERATION, entry_reply},
    core::Core,
    handles::NO_FILE,
    tree::{Ino, ROOT, Tree},
};

/// Bytes that the kernel reads ahead.
const READ_AHEAD: u32 = 1 << 20;

/// The file system that the read-only session's threads serve.
#[derive(Debug)]
pub(crate) struct SourceFs {
    /// What is the same in both.
    both: BerthFs,
    /// Whether the kernel can do without `open`.
    no_open: bool,
}

impl SourceFs {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            both: BerthFs::new(core),
            no_open: false,
        }
    }

    fn core(&self) -> &Arc<Core> {
        &self.both.core
    }

    /// What is called `name`, counted as one more reference of this kernel.
    fn child(tree: &mut Tree, parent: Ino, name: &OsStr) -> Result<FileAttr, Errno> {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        let child = name.to_str().map_or(Ok(None), |name| tree.child(parent, name))?;
        if let Some(ino) = child.filter(|ino| tree.is_shown(*ino)) {
            let attr = tree.saved_attr(ino)?;
            tree.remember_saved(ino);
            return Ok(attr);
        }
        // Number 0 says "not there, and remember that".
        let nothing = |attr| FileAttr {
            ino: INodeNo(0),
            ..attr
        };
        tree.attr(ROOT).map(nothing)
    }
}

impl Filesystem for SourceFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel's FUSE lacks it");
            }
        }
        self.no_open = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok();
        // Out of range is answered with the nearest that works.
        let _ = config.set_max_readahead(READ_AHEAD);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = Self::child(&mut self.both.tree(), parent.0, name);
        BerthFs::now(reply, result, entry_reply(self.both.ttl));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.core().forget_saved(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.both.tree().saved_attr(ino.0);
        BerthFs::now(reply, attr, |reply, attr| reply.attr(&self.both.ttl, &attr));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.both.readlink(req, ino, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            return reply.error(Errno::ENOSYS);
        }
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(NO_FILE), keep);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.both.file(ino.0) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        let give = |reply: ReplyData, bytes: Bytes| reply.data(&bytes);
        match self.core().read_saved_here(&file, offset, size as usize) {
            Some(result) => BerthFs::now(reply, result, give),
            None => {
                let core = self.core().clone();
                let work = async move { core.read_saved(&file, offset, size as usize).await };
                self.both.later(reply, work, give);
            }
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// Folders do have handles: without one, a reader's place in a folder that changes meanwhile would be lost.
    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.both.opendir(req, ino, flags, reply);
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.both.entries(fh, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let tree = self.both.tree();
        for (at, (name, ino)) in entries.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = tree.saved_attr(*ino) else { continue };
            if !tree.is_shown(*ino) {
                continue;
            }
            if reply.add(attr.ino, at as u64 + 1, attr.kind, &**name) {
                break;
            }
        }
        drop(tree);
        reply.ok();
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let entries = match self.both.entries(fh, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let mut tree = self.both.tree();
        for (at, (name, ino)) in entries.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = tree.saved_attr(*ino) else { continue };
            let dots = at < 2;
            // Gone meanwhile; but `.` and `..` of a removed folder are still there.
            if !dots && (attr.nlink == 0 || !tree.is_shown(*ino)) {
                continue;
            }
            if reply.add(attr.ino, at as u64 + 1, &**name, &self.both.ttl, &attr, GENERATION) {
                break;
            }
            if !dots {
                tree.remember_saved(*ino);
            }
        }
        drop(tree);
        reply.ok();
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, flags: OpenFlags, reply: ReplyEmpty) {
        self.both.releasedir(req, ino, fh, flags, reply);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.both.statfs(req, ino, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.both.getxattr(req, ino, name, size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.both.listxattr(req, ino, size, reply);
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.both.access(req, ino, mask, reply);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        input: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.both.ioctl(req, ino, fh, flags, cmd, input, out_size, reply);
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.both.lseek(req, ino, fh, offset, whence, reply);
    }
}
