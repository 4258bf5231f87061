//! What is measured: a folder that is a mount of a bucket, or a plain one as the floor.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    bucket::Bucket,
    command::{self, Watch},
};

/// One column of the table.
pub trait Subject {
    /// Its name there.
    fn name(&self) -> &'static str;

    /// Mounts the bucket for work called `work` with nothing cached on this host, also not in the kernel; how long
    /// the mount took.
    fn fresh(&mut self, work: &str) -> Result<Duration>;

    /// Kills the mount's process (-9).
    fn kill(&mut self) -> Result<()>;

    /// Mounts again after that, with what the process left on the disk.
    fn again(&mut self) -> Result<()>;

    /// Unmounts and forgets.
    fn down(&mut self);

    /// The mounted folder: keys of the bucket are paths in it.
    fn folder(&self) -> PathBuf;

    /// The same folder as sandboxes read it, where that is another mount.
    fn session(&self) -> Option<PathBuf> {
        None
    }

    /// The mount's process; a plain folder has none.
    fn pid(&self) -> Option<u32>;

    /// The bucket from elsewhere; a plain folder has none.
    fn bucket(&self) -> Option<&Bucket>;

    /// Whether the server is the Garage node, whose log is known.
    fn on_garage(&self) -> bool;

    /// Whether it is a plain folder.
    fn is_floor(&self) -> bool {
        false
    }

    /// Whether this is Berth.
    fn is_ours(&self) -> bool {
        false
    }

    /// Kills the mount's process when the work takes too long: who waits in the mount then gets an error.
    fn watch(&self, limit: Duration) -> Option<Watch> {
        self.pid().map(|pid| Watch::over(pid, limit))
    }
}

/// Puts files into the bucket from elsewhere, or into the plain folder.
pub fn populate(subject: &dyn Subject, files: &[String], body: impl Fn(usize) -> Vec<u8>) -> Result<()> {
    let Some(bucket) = subject.bucket() else {
        for (number, name) in files.iter().enumerate() {
            let path = subject.folder().join(name);
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(path, body(number))?;
        }
        return Ok(());
    };
    if bucket.list("")?.len() >= files.len() {
        return Ok(());
    }
    let begun = Instant::now();
    bucket.put_all(
        files
            .iter()
            .enumerate()
            .map(|(number, name)| (name.clone(), body(number))),
    )?;
    let taken = begun.elapsed().as_secs_f64();
    let name = subject.name();
    eprintln!(
        "    {name:<15} {} objects put from elsewhere in {taken:.1} s",
        files.len()
    );
    Ok(())
}

/// `size` bytes of source-like text that no other number has.
pub fn text(number: usize, size: usize) -> Vec<u8> {
    let mut line = format!("// file {number}\n").into_bytes();
    let word = format!(
        "const v{:016x} = {number};\n",
        (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    );
    while line.len() < size {
        line.extend_from_slice(word.as_bytes());
    }
    line.truncate(size);
    line
}

/// A plain folder.
pub struct Folder {
    name: &'static str,
    place: PathBuf,
}

impl Folder {
    pub fn new(name: &'static str, place: &Path) -> Self {
        Self {
            name,
            place: place.join(name),
        }
    }
}

impl Subject for Folder {
    fn name(&self) -> &'static str {
        self.name
    }

    fn fresh(&mut self, _: &str) -> Result<Duration> {
        fs::create_dir_all(&self.place)?;
        command::drop_caches(3)?;
        Ok(Duration::ZERO)
    }

    fn kill(&mut self) -> Result<()> {
        anyhow::bail!("a folder has no process")
    }

    fn again(&mut self) -> Result<()> {
        Ok(())
    }

    fn down(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
    }

    fn folder(&self) -> PathBuf {
        self.place.clone()
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn bucket(&self) -> Option<&Bucket> {
        None
    }

    fn on_garage(&self) -> bool {
        false
    }

    fn is_floor(&self) -> bool {
        true
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.down();
    }
}
