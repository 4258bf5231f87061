//! The kernel's requests, one function each.
//!
//! Here is only translation: what needs no S3 is answered at once, the rest becomes a task that answers when it is done.

use std::{ffi::OsStr, io, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use crate::{
    announce::{NEVER, order::Kind},
    answer::{BerthFs, GENERATION, creator, done, entry_reply, opened, perm},
    file::is_foreign,
    handles::{NO_FILE, OpenDir, Opened},
    ops::Changes,
    rename::Missing,
    tree::{Node, check_name},
};

/// Bytes of one write request. The session has a buffer of 16 MiB a thread, of which this much is ever touched.
const MAX_WRITE: u32 = 1 << 20;

impl Filesystem for BerthFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel's FUSE lacks it");
            }
        }
        // Out of range is answered with the nearest that works; all three are within every kernel's range.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_readahead(MAX_WRITE);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut tree = self.tree();
        if self.core.announcer.is(req.pid())
            && let Some(told) = name
                .to_str()
                .and_then(|name| self.core.announcer.lookup(&tree, parent.0, name))
        {
            if let Ok(attr) = &told {
                tree.remember(attr.ino.0);
            }
            drop(tree);
            return Self::now(reply, told, entry_reply(NEVER));
        }
        // A name that no key can have is a name that is not there.
        let mut ttl = self.ttl;
        let child = name.to_str().map_or(Ok(None), |name| {
            self.core.kernel.asked(&tree, parent.0, name);
            tree.child(parent.0, name)
        });
        let result = match child {
            _ if name.len() > 255 => Err(Errno::ENAMETOOLONG),
            Ok(Some(ino)) => self.core.entry(&mut tree, ino),
            // Number 0 says "not there, and remember that": the feed ends it.
            Ok(None) => {
                if name
                    .to_str()
                    .is_some_and(|name| self.core.announcer.removes(parent.0, name))
                {
                    ttl = NEVER;
                }
                let nothing = |attr| FileAttr {
                    ino: INodeNo(0),
                    ..attr
                };
                tree.attr(crate::tree::ROOT).map(nothing)
            }
            Err(errno) => Err(errno),
        };
        drop(tree);
        Self::now(reply, result, entry_reply(ttl));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.tree().forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let tree = self.tree();
        let attr = if self.core.announcer.is(req.pid()) {
            self.core.announcer.attr(&tree, ino.0)
        } else {
            tree.attr(ino.0)
        };
        drop(tree);
        Self::now(reply, attr, |reply, attr| reply.attr(&self.ttl, &attr));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if self.core.announcer.is(req.pid()) {
            return self.getattr(req, ino, fh, reply);
        }
        let (core, ttl) = (self.core.clone(), self.ttl);
        let changes = Changes {
            perm: mode.map(perm),
            uid,
            gid,
            atime,
            mtime,
        };
        let give = move |reply: ReplyAttr, attr: FileAttr| reply.attr(&ttl, &attr);
        // Nearly all need no S3.
        let resized = match size {
            None => Ok(Some(())),
            Some(_) if fh.is_none() => Ok(None),
            Some(size) => self
                .file(ino.0)
                .and_then(|file| core.truncate_here(&file, size, req.pid())),
        };
        match resized {
            Err(errno) => reply.error(errno),
            Ok(Some(())) => {
                let done = core.set_attributes(ino.0, changes);
                let attr = done.and_then(|()| core.tree.lock().attr(ino.0));
                Self::now(reply, attr, give);
            }
            Ok(None) => self.later(
                reply,
                async move {
                    let file = core.tree.lock().file(ino.0)?;
                    if let Some(size) = size {
                        core.truncate(&file, size, fh.is_some()).await?;
                    }
                    core.set_attributes(ino.0, changes)?;
                    core.tree.lock().attr(ino.0)
                },
                give,
            ),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let tree = self.tree();
        match tree.get(ino.0).map(|inode| &inode.node) {
            Ok(Node::Symlink(target)) => reply.data(target.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => FileType::RegularFile,
            libc::S_IFIFO => FileType::NamedPipe,
            libc::S_IFSOCK => FileType::Socket,
            // Shown, and never opened: the mount is without devices.
            libc::S_IFCHR => FileType::CharDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            _ => return reply.error(Errno::EPERM),
        };
        let name = match check_name(name) {
            Ok(name) => name.to_owned(),
            Err(errno) => return reply.error(errno),
        };
        if self.core.announcer.is(req.pid()) {
            let there = self.core.announced_make(parent.0, &name, Kind::File);
            return Self::now(reply, there, entry_reply(self.ttl));
        }
        let (core, by) = (self.core.clone(), creator(req));
        self.later(
            reply,
            async move { core.mknod(parent.0, &name, (kind, rdev), (perm(mode), by)).await },
            entry_reply(self.ttl),
        );
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = check_name(name).and_then(|name| {
            if self.core.announcer.is(req.pid()) {
                return self.core.announced_make(parent.0, name, Kind::Dir);
            }
            self.core.mkdir(parent.0, name, (perm(mode), creator(req)))
        });
        Self::now(reply, made, entry_reply(self.ttl));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let announced = self.core.announcer.is(req.pid());
        let removed = check_name(name)
            .map_err(|_| Errno::ENOENT)
            .and_then(|name| match announced {
                true => self.core.announced_removal(parent.0, name, false),
                false => self.core.unlink(parent.0, name, req.pid()),
            });
        Self::now(reply, removed, done);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let announced = self.core.announcer.is(req.pid());
        let removed = check_name(name)
            .map_err(|_| Errno::ENOENT)
            .and_then(|name| match announced {
                true => self.core.announced_removal(parent.0, name, true),
                false => self.core.rmdir(parent.0, name, req.pid()),
            });
        Self::now(reply, removed, done);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = check_name(link_name).and_then(|name| {
            if self.core.announcer.is(req.pid()) {
                return self.core.announced_make(parent.0, name, Kind::Symlink);
            }
            let target = target.to_str().ok_or(Errno::EILSEQ)?;
            self.core.symlink(parent.0, name, target, creator(req))
        });
        Self::now(reply, made, entry_reply(self.ttl));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = match (check_name(name), check_name(newname)) {
            (Ok(name), Ok(new_name)) => (name.to_owned(), new_name.to_owned()),
            (Err(errno), _) | (_, Err(errno)) => return reply.error(errno),
        };
        if self.core.announcer.is(req.pid()) {
            return reply.error(Errno::EBUSY);
        }
        let by = req.pid();
        match self
            .core
            .rename_here((parent.0, &name), (newparent.0, &new_name), (flags, by))
        {
            Err(errno) => reply.error(errno),
            Ok(Missing::Nothing) => reply.ok(),
            Ok(Missing::Content(_)) => {
                let core = self.core.clone();
                self.later(
                    reply,
                    async move {
                        core.rename((parent.0, &name), (newparent.0, &new_name), (flags, by))
                            .await
                    },
                    done,
                );
            }
        }
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.core.announcer.is(req.pid()) {
            // Nothing is read or written through it, whatever the file: there is no such handle.
            let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            return reply.opened(FileHandle(NO_FILE), keep);
        }
        let core = self.core.clone();
        match self.open_file(ino.0, flags, req.pid()) {
            Err(errno) => reply.error(errno),
            Ok((file, false)) => opened(&core, reply, file, flags),
            Ok((file, true)) => self.later(
                reply,
                async move {
                    match core.pin(&file).await {
                        Ok(()) => Ok((core, file)),
                        Err(errno) => {
                            core.closed(&file);
                            let key = file.state().base.as_ref().map(|base| base.key.clone());
                            if let Some(key) = key.filter(|_| errno.code() == libc::ESTALE) {
                                core.reconcile(&key).await;
                            }
                            Err(errno)
                        }
                    }
                },
                move |reply, (core, file)| opened(&core, reply, file, flags),
            ),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let core = self.core.clone();
        let file = match core.handle_file(fh.0) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        let give = |reply: ReplyData, bytes: Bytes| reply.data(&bytes);
        match core.read_here(&file, offset, size as usize) {
            Some(result) => Self::now(reply, result, give),
            None => self.later(
                reply,
                async move { core.read(&file, offset, size as usize).await },
                give,
            ),
        }
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (core, by) = (self.core.clone(), req.pid());
        let len = data.len() as u32;
        match core
            .handle_file(fh.0)
            .and_then(|file| Ok((core.write_here(&file, offset, data, by)?, file)))
        {
            Err(errno) => reply.error(errno),
            Ok((Some(()), _)) => reply.written(len),
            Ok((None, file)) => {
                let data = data.to_vec();
                self.later(
                    reply,
                    async move { core.write(&file, offset, &data, by).await },
                    move |reply, ()| reply.written(len),
                );
            }
        }
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        match self.core.handle_file(fh.0) {
            Err(errno) => reply.error(errno),
            Ok(file) if is_foreign(&file, req.pid()) => reply.ok(),
            Ok(file) => self.save(file, reply),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(Opened::File(file)) = self.core.close_handle(fh.0) {
            self.core.closed(&file);
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Attributes set before are in the journal's order before it.
        match self.core.handle_file(fh.0) {
            Err(errno) => reply.error(errno),
            Ok(file) => self.save(file, reply),
        }
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let listing = Mutex::new(Arc::default());
        let fh = self
            .core
            .open_handle(Opened::Dir(Arc::new(OpenDir { ino: ino.0, listing })));
        reply.opened(FileHandle(fh), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.entries(fh, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let tree = self.tree();
        for (at, (name, ino)) in entries.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = tree.attr(*ino) else { continue };
            if reply.add(attr.ino, at as u64 + 1, attr.kind, &**name) {
                break;
            }
        }
        drop(tree);
        reply.ok();
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let entries = match self.entries(fh, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let mut tree = self.tree();
        for (at, (name, ino)) in entries.iter().enumerate().skip(offset as usize) {
            // Gone meanwhile; but `.` and `..` of a removed folder are still there.
            let Ok(attr) = tree.attr(*ino) else { continue };
            let dots = at < 2;
            if !dots && tree.get(*ino).is_ok_and(|inode| !inode.linked) {
                continue;
            }
            if reply.add(attr.ino, at as u64 + 1, &**name, &self.ttl, &attr, GENERATION) {
                break;
            }
            if !dots {
                tree.remember(*ino);
            }
        }
        drop(tree);
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.core.close_handle(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Names are in the journal before each answer; attributes may wait for this.
        Self::now(reply, self.core.sync_folder(ino.0), done);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // A bucket has no end: 1 EiB in blocks of 4 KiB.
        let blocks = 1 << 48;
        reply.statfs(blocks, blocks, blocks, 1 << 40, 1 << 40, 4096, 255, 4096);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // The kernel stops asking, and tells programs EOPNOTSUPP.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks the bits itself (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        if self.core.announcer.is(req.pid()) {
            return reply.error(Errno::EBUSY);
        }
        let made = check_name(name).and_then(|name| self.core.create(parent.0, name, (perm(mode), creator(req))));
        Self::now(reply, made, |reply, (attr, fh)| {
            reply.created(
                &self.ttl,
                &attr,
                GENERATION,
                FileHandle(fh),
                FopenFlags::FOPEN_KEEP_CACHE,
            )
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Only the plain form: make the file at least so long.
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let core = self.core.clone();
        let file = match core.handle_file(fh.0) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        let Some(end) = offset.checked_add(length) else {
            return reply.error(Errno::EFBIG);
        };
        if file.state().size() >= end {
            return reply.ok();
        }
        self.later(reply, async move { core.truncate(&file, end, true).await }, done);
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: i64, _whence: i32, reply: ReplyLseek) {
        // The kernel then treats a file as one piece of data without holes.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies through the page cache instead.
        reply.error(Errno::ENOSYS);
    }
}
