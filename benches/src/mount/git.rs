//! `git clone` of a thousand files into the mount, and `git status` there.

use std::{fs, time::Duration};

use anyhow::Result;

use super::{
    Bench, command,
    subject::{self, Subject},
};

const LIMIT: Duration = Duration::from_secs(60);
/// `git status` after the first.
const STATUSES: usize = 5;

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    let source = bench.memory.join("repository");
    if !source.exists() {
        for number in 0..1000 / bench.size.part {
            let path = source.join(format!("src/m{:02}/f{number:04}.js", number / 20));
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(path, subject::text(number, 2000 + number))?;
        }
        let line = "git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm one";
        command::timed(line, &source, LIMIT)?;
    }
    subject.fresh(&format!("git-{}", name.replace(' ', "-")))?;
    // Of the peers one clone says enough.
    let n = if subject.is_ours() || subject.is_floor() {
        bench.size.n
    } else {
        1
    };
    for round in 0..n {
        let _watch = subject.watch(LIMIT * 2);
        let line = format!("git clone -q --no-hardlinks {} clone{round}", source.display());
        bench
            .table
            .add("git.clone", name, command::timed(&line, &subject.folder(), LIMIT)?.0);
        let clone = subject.folder().join(format!("clone{round}"));
        for turn in 0..=STATUSES {
            let (taken, changed) = command::timed("git status --porcelain", &clone, LIMIT)?;
            let changed = changed.lines().count();
            if changed > 0 {
                bench
                    .table
                    .note("git.status", name, format!("{changed} files seem changed"));
            }
            bench
                .table
                .add(if turn == 0 { "git.first" } else { "git.status" }, name, taken);
        }
    }
    Ok(())
}
