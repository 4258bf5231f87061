//! The tree of names: every file, folder and symlink of the bucket, in memory.
//!
//! It is built once by one flat LIST and kept true by the operations that come through the mount and by the change
//! feed. So lookups, misses and directory listings never ask S3. Inode numbers count upwards and are never used twice:
//! a file that somebody else replaced gets a new number, and whoever has the old one open keeps the old bytes.
//!
//! A folder exists by the keys below it, by a marker object `NAME/`, or by its entry in the workspace's index.
//!
//! Lock order: the tree first, then a file's state ([`crate::file::File`]). Neither is ever held across an S3 request.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::SystemTime,
};

use berth_workspace::WorkspaceFile;
use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::{
    announce::lineage::Lineage, file::Attachment, leaf::Leaf, rules::Stale, source::known::Known, times::Stamps,
};

pub(crate) use crate::times::Times;

/// An inode number.
pub(crate) type Ino = u64;
/// The mount's root folder.
pub(crate) const ROOT: Ino = 1;
/// Permission bits of a file nobody gave others.
pub(crate) const FILE_PERM: u16 = 0o644;
/// Permission bits of a folder nobody gave others.
pub(crate) const DIR_PERM: u16 = 0o755;
/// Whatever is made in a folder with this bit gets the folder's group.
const SET_GID: u16 = 0o2000;
/// The longest key that S3 stores, in bytes.
pub(crate) const MAX_KEY: usize = 1024;

/// A folder's own part.
#[derive(Debug, Default)]
pub(crate) struct Dir {
    pub(crate) children: BTreeMap<Arc<str>, Ino>,
    subdirs: u32,
    /// How many of `children` are not local-only. Counted, since it is asked for with every change of a name.
    stored: usize,
    /// The bucket has a marker object `path/` for it.
    pub(crate) marker: bool,
    /// The index in the bucket has an entry for it.
    pub(crate) indexed: bool,
}

impl Dir {
    /// Whether something below the folder is an object or an index entry of its own.
    pub(crate) fn has_stored_children(&self) -> bool {
        self.stored > 0
    }

    fn add(&mut self, name: Arc<str>, ino: Ino, (is_dir, local): (bool, bool)) {
        self.children.insert(name, ino);
        self.subdirs += u32::from(is_dir);
        self.stored += usize::from(!local);
    }

    /// Takes `name` away, if it is `ino`'s.
    fn remove(&mut self, name: &str, ino: Ino, (is_dir, local): (bool, bool)) {
        if self.children.get(name) == Some(&ino) {
            self.children.remove(name);
            self.subdirs -= u32::from(is_dir);
            self.stored -= usize::from(!local);
        }
    }
}

/// User and group of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What an inode is.
#[derive(Debug)]
pub(crate) enum Node {
    Dir(Box<Dir>),
    File(Leaf),
    Symlink(Box<str>),
    /// A FIFO, a socket, or a device with its number: local-only wherever it is.
    Special(FileType, u32),
}

/// What a new inode has beside its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) local: bool,
    pub(crate) perm: u16,
    pub(crate) times: Times,
}

/// One inode.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) parent: Ino,
    pub(crate) name: Arc<str>,
    /// Whether `parent` still has it under `name`.
    pub(crate) linked: bool,
    /// Never stored in S3, nor anything below it. Changed by [`Tree::set_local`] alone.
    pub(crate) local: bool,
    pub(crate) perm: u16,
    /// User and group; `None`: the mount's own.
    pub(crate) owner: Option<Owner>,
    /// Times of all but used files ([`crate::leaf`]), which keep theirs beside their content.
    pub(crate) times: Stamps,
    /// How many times the kernel was told of it and has not forgotten it.
    lookups: u64,
    pub(crate) node: Node,
}

impl Inode {
    pub(crate) fn as_dir(&self) -> Result<&Dir, Errno> {
        match &self.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.node, Node::Dir(_))
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self.node, Node::File(_))
    }
}

/// Inode numbers are ours and count upwards: they need no hash that resists an enemy.
#[derive(Default)]
pub(crate) struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

type Inodes = HashMap<Ino, Box<Inode>, BuildHasherDefault<InoHasher>>;

/// All inodes.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Inodes,
    /// Files that may be used.
    used: RefCell<Vec<Ino>>,
    next: Ino,
    uid: u32,
    gid: u32,
    /// Told of every `workspace.json` that comes or goes.
    pub(crate) stale: Arc<Stale>,
    /// What files were before somebody else changed them.
    pub(crate) lineage: Lineage,
    /// What the read-only session's kernel knows of it.
    pub(crate) known: Known,
}

/// The first name of a key or path: its workspace.
pub(crate) fn app_of(key: &str) -> &str {
    key.split('/').next().unwrap_or(key)
}

impl Tree {
    pub(crate) fn new(uid: u32, gid: u32) -> Self {
        let root = Inode {
            parent: ROOT,
            name: "".into(),
            linked: true,
            local: false,
            perm: DIR_PERM,
            owner: None,
            times: Times::at(SystemTime::now()).into(),
            lookups: 1,
            node: Node::Dir(Box::default()),
        };
        Self {
            inodes: Inodes::from_iter([(ROOT, Box::new(root))]),
            used: RefCell::default(),
            next: ROOT + 1,
            uid,
            gid,
            stale: Arc::default(),
            lineage: Lineage::default(),
            known: Known::default(),
        }
    }

    /// `name` below `folder` comes or goes.
    fn note_rules(&self, folder: Ino, name: &str, is_dir: bool) {
        if folder == ROOT && is_dir {
            self.stale.note(name);
        } else if name == WorkspaceFile::PATH
            && folder != ROOT
            && let Some(workspace) = self.inodes.get(&folder).filter(|inode| inode.parent == ROOT)
        {
            self.stale.note(&workspace.name);
        }
    }

    pub(crate) fn get(&self, ino: Ino) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).map(Box::as_ref).ok_or(Errno::ESTALE)
    }

    pub(crate) fn get_mut(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).map(Box::as_mut).ok_or(Errno::ESTALE)
    }

    pub(crate) fn dir_mut(&mut self, ino: Ino) -> Result<&mut Dir, Errno> {
        match &mut self.get_mut(ino)?.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The file at `ino` is used from now on.
    pub(crate) fn note_used(&self, ino: Ino) {
        self.used.borrow_mut().push(ino);
    }

    /// The files that may be used; each is noted again if it still is.
    pub(crate) fn take_used(&mut self) -> Vec<Ino> {
        std::mem::take(self.used.get_mut())
    }

    pub(crate) fn child(&self, parent: Ino, name: &str) -> Result<Option<Ino>, Errno> {
        Ok(self.get(parent)?.as_dir()?.children.get(name).copied())
    }

    /// Takes the next inode number.
    pub(crate) fn number(&mut self) -> Ino {
        self.next += 1;
        self.next - 1
    }

    /// Enters `node` as `name` below `parent`, where nothing has that name.
    pub(crate) fn insert(&mut self, ino: Ino, parent: Ino, name: &str, look: Look, node: Node) -> Result<(), Errno> {
        let Look { local, perm, times } = look;
        let name: Arc<str> = name.into();
        let is_dir = matches!(node, Node::Dir(_));
        let dir = self.dir_mut(parent)?;
        if dir.children.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        dir.add(name.clone(), ino, (is_dir, local));
        self.came(parent, &name, &node);
        let inode_name = name.clone();
        if matches!(&node, Node::File(leaf) if leaf.used().is_some()) {
            self.note_used(ino);
        }
        self.inodes.insert(
            ino,
            Box::new(Inode {
                parent,
                name,
                linked: true,
                local,
                perm,
                owner: None,
                times: times.into(),
                lookups: 0,
                node,
            }),
        );
        if !is_dir {
            self.note_rules(parent, &inode_name, false);
        }
        Ok(())
    }

    /// The mount's own user and group.
    pub(crate) fn own(&self) -> Owner {
        Owner {
            uid: self.uid,
            gid: self.gid,
        }
    }

    /// Who owns an inode.
    pub(crate) fn owner(&self, ino: Ino) -> Result<Owner, Errno> {
        Ok(self.get(ino)?.owner.unwrap_or(self.own()))
    }

    /// Gives an inode to somebody.
    pub(crate) fn set_owner(&mut self, ino: Ino, owner: Owner) {
        let own = self.own() == owner;
        if let Ok(inode) = self.get_mut(ino) {
            inode.owner = (!own).then_some(owner);
        }
    }

    /// Whom something new below `parent` belongs to, and with which bits: a set-group-id folder passes its group on.
    pub(crate) fn heir(&self, parent: Ino, made: Look, by: Owner, is_dir: bool) -> Result<(Look, Owner), Errno> {
        if self.get(parent)?.perm & SET_GID == 0 {
            return Ok((made, by));
        }
        let gid = self.owner(parent)?.gid;
        let perm = if is_dir { made.perm | SET_GID } else { made.perm };
        Ok((Look { perm, ..made }, Owner { gid, ..by }))
    }

    /// Takes the inode away from its folder. It lives on while the kernel knows it.
    pub(crate) fn detach(&mut self, ino: Ino, how: Attachment) {
        if self.is_known(ino) {
            // While it has the name by which its object is found. What is no file has no object.
            let _ = self.file(ino);
        }
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        if !inode.linked || ino == ROOT {
            return;
        }
        inode.linked = false;
        if let Node::File(leaf) = &inode.node
            && let Some(file) = leaf.used()
        {
            file.state().attachment = how;
        }
        let (parent, name, known) = (inode.parent, inode.name.clone(), inode.lookups > 0);
        let kind = (inode.is_dir(), inode.local);
        if let Ok(dir) = self.dir_mut(parent) {
            dir.remove(&name, ino, kind);
        }
        self.note_rules(parent, &name, kind.0);
        self.name_changed(parent, &name, Some(ino).filter(|_| how == Attachment::Unlinked));
        self.attributes_changed(ino);
        if !known {
            self.inodes.remove(&ino);
        }
    }

    /// Moves an inode to another name, where nothing may be.
    pub(crate) fn relink(&mut self, ino: Ino, parent: Ino, name: &str) -> Result<(), Errno> {
        let name: Arc<str> = name.into();
        for below in self.below(ino) {
            // While they have the names by which their objects are found. What is no file has no object.
            let _ = self.file(below);
        }
        let inode = self.get(ino)?;
        let (old_parent, old_name, kind) = (inode.parent, inode.name.clone(), (inode.is_dir(), inode.local));
        self.dir_mut(old_parent)?.remove(&old_name, ino, kind);
        self.dir_mut(parent)?.add(name.clone(), ino, kind);
        let inode = self.get_mut(ino)?;
        inode.parent = parent;
        inode.name = name;
        inode.linked = true;
        let new_name = inode.name.clone();
        self.change_times(ino, |times| times.ctime = SystemTime::now());
        self.note_rules(old_parent, &old_name, kind.0);
        self.note_rules(parent, &new_name, kind.0);
        self.name_changed(old_parent, &old_name, None);
        self.name_changed(parent, &new_name, None);
        self.content_changed(ino);
        self.lineage.forgotten(ino);
        Ok(())
    }

    /// Says whether an inode is local-only from now on.
    pub(crate) fn set_local(&mut self, ino: Ino, local: bool) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let (was, parent, linked) = (inode.local, inode.parent, inode.linked);
        inode.local = local;
        if let Ok(dir) = self.dir_mut(parent)
            && linked
        {
            dir.stored = dir.stored + usize::from(was) - usize::from(local);
        }
    }

    /// A name of `parent` was added or removed.
    pub(crate) fn touch_dir(&mut self, parent: Ino) {
        if let Ok(inode) = self.get_mut(parent) {
            inode.times.change(Times::changed_now);
        }
        self.attributes_changed(parent);
    }

    /// The key of an inode that is linked: its path without a leading slash; the root's is empty.
    pub(crate) fn key(&self, ino: Ino) -> Result<String, Errno> {
        let mut names: Vec<&str> = Vec::with_capacity(8);
        let mut at = ino;
        while at != ROOT {
            let inode = self.get(at)?;
            if !inode.linked {
                return Err(Errno::ESTALE);
            }
            names.push(&inode.name);
            at = inode.parent;
        }
        names.reverse();
        Ok(names.join("/"))
    }

    /// The key that `name` below `parent` has or would have.
    pub(crate) fn key_below(&self, parent: Ino, name: &str) -> Result<String, Errno> {
        let mut key = self.key(parent)?;
        if !key.is_empty() {
            key.push('/');
        }
        key.push_str(name);
        if key.len() > MAX_KEY {
            Err(Errno::ENAMETOOLONG)
        } else {
            Ok(key)
        }
    }

    /// The inode at `key`.
    pub(crate) fn find(&self, key: &str) -> Option<Ino> {
        let mut at = ROOT;
        for name in key.split('/').filter(|name| !name.is_empty()) {
            at = self.child(at, name).ok()??;
        }
        Some(at)
    }

    /// Every inode below `ino`, itself first, parents before children.
    pub(crate) fn below(&self, ino: Ino) -> Vec<Ino> {
        let mut all = vec![ino];
        let mut next = 0;
        while next < all.len() {
            if let Ok(dir) = self.get(all[next]).and_then(Inode::as_dir) {
                all.extend(dir.children.values());
            }
            next += 1;
        }
        all
    }

    /// Whether the kernel has a reference to it, as it has to everything that is open or watched.
    pub(crate) fn is_known(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|inode| inode.lookups > 0)
    }

    /// `new` has the place of `old`, which somebody else changed.
    pub(crate) fn succeed(&mut self, old: Ino, new: Ino) {
        let known = self.is_known(old);
        self.lineage.replaced(old, new, known);
    }

    /// What the kernel and `Announcement`s call the inode's kind.
    pub(crate) fn kind(&self, ino: Ino) -> Option<FileType> {
        Some(match &self.get(ino).ok()?.node {
            Node::Dir(_) => FileType::Directory,
            Node::File(_) => FileType::RegularFile,
            Node::Symlink(_) => FileType::Symlink,
            Node::Special(kind, _) => *kind,
        })
    }

    /// Counts one more reference of the kernel.
    pub(crate) fn remember(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups += 1;
        }
    }

    /// The kernel let go of `count` references.
    pub(crate) fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(count);
            if inode.lookups == 0 && !inode.linked && ino != ROOT {
                self.inodes.remove(&ino);
                self.lineage.forgotten(ino);
            }
        }
    }

    /// What `stat` shows.
    pub(crate) fn attr(&self, ino: Ino) -> Result<FileAttr, Errno> {
        let inode = self.get(ino)?;
        let owner = self.owner(ino)?;
        let (kind, size, nlink) = match &inode.node {
            Node::Dir(dir) => (FileType::Directory, 4096, 2 + dir.subdirs),
            Node::File(leaf) => (FileType::RegularFile, leaf.size(), 1),
            Node::Symlink(target) => (FileType::Symlink, target.len() as u64, 1),
            Node::Special(kind, _) => (*kind, 0, 1),
        };
        let times = self.times(ino)?;
        let rdev = match &inode.node {
            Node::Special(_, rdev) => *rdev,
            _ => 0,
        };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: times.atime,
            mtime: times.mtime,
            ctime: times.ctime,
            crtime: times.ctime,
            kind,
            perm: inode.perm,
            nlink: if inode.linked { nlink } else { 0 },
            uid: owner.uid,
            gid: owner.gid,
            rdev,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// Whether S3 keys can carry the name, and the errno if not.
pub(crate) fn check_name(name: &std::ffi::OsStr) -> Result<&str, Errno> {
    if name.len() > 255 {
        return Err(Errno::ENAMETOOLONG);
    }
    // A key is UTF-8 by S3's definition; no byte sequence can be stored in its place and come back.
    let name = name.to_str().ok_or(Errno::EILSEQ)?;
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        Err(Errno::EINVAL)
    } else {
        Ok(name)
    }
}
