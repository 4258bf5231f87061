//! What knowing 100,000 files costs in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{process::Command, time::SystemTime};

use berth_store::ObjectInfo;

use crate::tree::{DIR_PERM, FILE_PERM, Look, Node, ROOT, Times, Tree};

const CHILD: &str = "BERTH_TEST_FOOTPRINT";
const FILES: u64 = 100_000;
const MOST: u64 = 32 << 20;

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn build() -> Tree {
    let mut tree = Tree::new(0, 0);
    let times = Times::at(SystemTime::now());
    let look = |perm| Look {
        local: false,
        perm,
        times,
    };
    for n in 0..FILES / 100 {
        let folder = format!("workspace-{n}");
        let parent = tree.number();
        let node = Node::Dir(Box::default());
        tree.insert(parent, ROOT, &folder, look(DIR_PERM), node).unwrap();
        for m in 0..100 {
            let name = format!("component-{m}.ts");
            let info = ObjectInfo {
                key: format!("{folder}/{name}"),
                etag: format!("{:032x}", n * 100 + m),
                size: m,
                modified: times.mtime,
            };
            let ino = tree.number();
            let node = Node::File((&info).into());
            tree.insert(ino, parent, &name, look(FILE_PERM), node).unwrap();
        }
    }
    tree
}

/// In a process of its own, where no other test takes memory meanwhile.
#[test]
fn a_hundred_thousand_known_files_take_less_than_32_mib() {
    if std::env::var_os(CHILD).is_some() {
        let before = resident();
        let tree = build();
        println!("grew {}", resident() - before);
        drop(tree);
        return;
    }
    let name = "footprint::a_hundred_thousand_known_files_take_less_than_32_mib";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, grew) = text.split_once("grew ").expect(&text);
    let grew: u64 = grew.lines().next().unwrap().trim().parse().unwrap();
    println!("{} bytes a file", grew / FILES);
    assert!(grew <= MOST, "{grew} bytes, {} a file", grew / FILES);
}
