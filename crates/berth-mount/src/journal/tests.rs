#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Barrier},
};

use proptest::prelude::*;

use super::*;

const SMALL: u64 = 64 << 10;
const MAX: u64 = 12 * SMALL;

type Map = BTreeMap<String, (Vec<u8>, Option<Vec<u8>>)>;

fn open(dir: &Path) -> (Arc<Journal>, Vec<Recovered>) {
    Journal::open_with(dir, MAX, SMALL).unwrap()
}

fn set(slot: &str, value: &str, content: Option<Content>) -> Op {
    Op {
        slot: slot.to_owned(),
        value: Some(value.into()),
        content,
    }
}

fn clear(slot: &str) -> Op {
    Op {
        slot: slot.to_owned(),
        value: None,
        content: None,
    }
}

fn bytes(seed: u64, len: usize) -> Bytes {
    (0..len as u64)
        .map(|at| (seed.wrapping_mul(31).wrapping_add(at * 7) >> 1) as u8)
        .collect::<Vec<_>>()
        .into()
}

fn small(seed: u64, len: usize) -> Option<Content> {
    Some(Content::Bytes(bytes(seed, len)))
}

fn body(journal: &Journal, content: &[u8]) -> Option<Content> {
    let file = journal.new_body().unwrap();
    file.write_all_at(content, 0).unwrap();
    Some(Content::File(file, content.len() as u64))
}

fn save(journal: &Journal, batch: Vec<Op>) -> Appended {
    let appended = journal.append(batch).unwrap();
    journal.commit(appended.seq).unwrap();
    appended
}

fn content(held: &Held) -> Vec<u8> {
    held.read(0, held.len() as usize).unwrap().to_vec()
}

fn map(recovered: &[Recovered]) -> Map {
    let slot = |found: &Recovered| (found.value.clone(), found.held.as_deref().map(content));
    recovered
        .iter()
        .map(|found| (found.slot.clone(), slot(found)))
        .collect()
}

/// The only log segment with records, and their bytes.
fn only_log(dir: &Path) -> PathBuf {
    let logs = fs::read_dir(dir.join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = logs
        .filter(|path| path.extension().is_some_and(|ext| ext == "log"))
        .collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.remove(0)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.path().extension().is_none_or(|ext| ext != "free") {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<(u8, Option<(u8, usize)>)>),
    Rename(u8, u8),
    Body(u8, usize),
    Commit,
    MakeRoom,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = (0..6u8, proptest::option::weighted(0.8, (any::<u8>(), 0..6000usize)));
    let step = prop_oneof![
        6 => proptest::collection::vec(op, 1..4).prop_map(Step::Batch),
        1 => (0..6u8, 0..6u8).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (0..6u8, 0..20_000usize).prop_map(|(slot, len)| Step::Body(slot, len)),
        3 => Just(Step::Commit),
        2 => Just(Step::MakeRoom),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_reopened_journal_holds_a_state_not_older_than_the_last_commit(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).0;
        let mut now = Map::new();
        let mut held: HashMap<String, Arc<Held>> = HashMap::new();
        let mut since_commit = vec![now.clone()];
        let mut last = 0;
        for (seed, step) in steps.into_iter().enumerate() {
            let mut batch = Vec::new();
            match step {
                Step::Commit => {
                    journal.commit(last).unwrap();
                    since_commit = vec![now.clone()];
                }
                Step::MakeRoom => journal.shared.make_room(),
                Step::Reopen => {
                    held.clear();
                    drop(journal);
                    let (again, found) = open(dir.path());
                    prop_assert!(again.damage().is_empty());
                    journal = again;
                    now = map(&found);
                    prop_assert!(since_commit.contains(&now), "{:?}", now.keys());
                    since_commit = vec![now.clone()];
                    held = found.into_iter().filter_map(|found| Some((found.slot, found.held?))).collect();
                    last = 0;
                }
                Step::Batch(ops) => for (slot, content) in ops {
                    let slot = format!("slot{slot}");
                    batch.push(match content {
                        Some((value, len)) => set(&slot, &value.to_string(), small(seed as u64, len)),
                        None => clear(&slot),
                    });
                },
                Step::Rename(from, to) => {
                    let (from, to) = (format!("slot{from}"), format!("slot{to}"));
                    if from != to && let Some(held) = held.get(&from) {
                        batch.push(set(&to, "renamed", Some(Content::Held(held.clone()))));
                        batch.push(clear(&from));
                    }
                }
                Step::Body(slot, len) => {
                    batch.push(set(&format!("slot{slot}"), "body", body(&journal, &bytes(seed as u64, len))));
                }
            }
            if batch.is_empty() {
                continue;
            }
            let names: Vec<_> = batch.iter().map(|op| (op.slot.clone(), op.value.clone())).collect();
            let Ok(appended) = journal.append(batch) else { continue };
            last = appended.seq;
            for ((slot, value), content) in names.into_iter().zip(appended.held) {
                held.remove(&slot);
                now.remove(&slot);
                if let Some(value) = value {
                    now.insert(slot.clone(), (value, content.as_deref().map(self::content)));
                }
                held.extend(content.map(|content| (slot, content)));
            }
            since_commit.push(now.clone());
        }
    }
}

#[test]
fn a_torn_tail_is_no_error_and_takes_only_the_last_record() {
    let (dir, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (journal, _) = open(dir.path());
    save(&journal, vec![set("a", "1", small(1, 100))]);
    let before = journal.shared.log.lock().at;
    save(&journal, vec![set("b", "2", small(2, 100))]);
    let after = journal.shared.log.lock().at;
    drop(journal);
    for end in before..after {
        let torn = work.path().join(end.to_string());
        copy(dir.path(), &torn);
        let log = OpenOptions::new().write(true).open(only_log(&torn)).unwrap();
        log.write_all_at(&vec![0; (after - end) as usize], end).unwrap();
        let (journal, found) = open(&torn);
        assert!(journal.damage().is_empty());
        // The last bytes are padding and zeros already.
        let whole = map(&found).contains_key("b");
        assert!(
            map(&found).contains_key("a") && (!whole || after - end < 8 || end + 8 >= after),
            "{end}"
        );
        drop(journal);
        fs::remove_dir_all(torn).unwrap();
    }
}

#[test]
fn damage_in_the_middle_is_reported_and_costs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    save(&journal, vec![set("a", "1", small(1, 100))]);
    let at = journal.shared.log.lock().at;
    save(&journal, vec![set("b", "2", small(2, 100))]);
    save(&journal, vec![set("c", "3", small(3, 100))]);
    drop(journal);
    let log = only_log(dir.path());
    OpenOptions::new()
        .write(true)
        .open(&log)
        .unwrap()
        .write_all_at(&[0xff; 4], at + 60)
        .unwrap();
    let (journal, found) = open(dir.path());
    assert_eq!(map(&found).into_keys().collect::<Vec<_>>(), ["a", "c"]);
    let [JournalError::Damaged { path, offset }] = journal.damage() else {
        panic!("{:?}", journal.damage())
    };
    assert_eq!((path, *offset), (&log, at));
    assert!(log.with_extension("log.damaged").exists());
}

#[test]
fn a_full_journal_refuses_then_takes_again_when_slots_were_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    for round in 0..3 {
        let mut count = 0;
        let refused = loop {
            match journal.append(vec![set(&format!("s{count}"), "v", small(count, 9000))]) {
                Ok(appended) => journal.commit(appended.seq).unwrap(),
                Err(error) => break error,
            }
            count += 1;
            assert!(journal.usage().disk <= MAX, "{round}: {:?}", journal.usage());
        };
        assert!(
            matches!(refused, JournalError::NoSpace { .. }) && count > 60,
            "{round}: {count} {refused}"
        );
        for slot in 0..count {
            // As the mount does it: what is done is cleared whether there is room for more or not.
            let cleared = journal.append_admitted(vec![clear(&format!("s{slot}"))]).unwrap();
            journal.commit(cleared.seq).unwrap();
        }
        journal.shared.make_room();
    }
    assert_eq!(journal.usage().live_slots, 0);
    journal.close();
    drop(journal);
    assert!(open(dir.path()).1.is_empty());
}

#[test]
fn savers_at_once_all_find_their_saves_again() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (journal, start) = (&journal, &start);
            scope.spawn(move || {
                start.wait();
                for turn in 0..20 {
                    save(
                        journal,
                        vec![set(&format!("t{thread}-{turn}"), "v", small(thread * 100 + turn, 500))],
                    );
                }
            });
        }
    });
    drop(journal);
    let (_journal, found) = open(dir.path());
    assert_eq!(found.len(), 160);
    assert!(found.is_sorted_by_key(|found| found.seq));
    let found = map(&found);
    assert_eq!(found["t7-19"].1.as_deref(), Some(&*bytes(719, 500)));
}

#[test]
fn content_stays_readable_while_anybody_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let large = bytes(9, 200_000);
    let appended = save(
        &journal,
        vec![set("a", "1", small(1, 5000)), set("b", "2", body(&journal, &large))],
    );
    let [Some(inline), Some(file)] = &appended.held[..] else {
        panic!()
    };
    save(
        &journal,
        vec![
            set("c", "3", Some(Content::Held(inline.clone()))),
            clear("a"),
            clear("b"),
        ],
    );
    for turn in 0..100 {
        save(&journal, vec![set("other", "v", small(turn, 3000))]);
        journal.shared.make_room();
    }
    assert_eq!(content(inline), bytes(1, 5000));
    assert_eq!(content(file), large);
    assert_eq!(file.read(199_990, 100).unwrap(), large.slice(199_990..));
    drop(appended);
    save(&journal, vec![set("other", "w", None)]);
    journal.shared.make_room();
    assert_eq!(
        fs::read_dir(dir.path().join("bodies")).unwrap().count(),
        0,
        "a body nobody has is removed"
    );
    drop(journal);
    let (_journal, found) = open(dir.path());
    assert_eq!(map(&found)["c"].1.as_deref(), Some(&*bytes(1, 5000)));
}

#[test]
fn a_body_survives_and_one_never_named_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let large = bytes(4, 100_000);
    save(&journal, vec![set("a", "1", body(&journal, &large))]);
    let _unnamed = body(&journal, b"nobody's");
    drop(journal);
    let (_journal, found) = open(dir.path());
    assert_eq!(map(&found)["a"].1.as_deref(), Some(&*large));
    assert!(found[0].held.as_ref().unwrap().as_file().is_some());
    assert_eq!(fs::read_dir(dir.path().join("bodies")).unwrap().count(), 1);
}

#[test]
fn a_batch_longer_than_a_segment_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let many = (0..2000)
        .map(|at| set(&format!("slot-with-a-long-name-{at}"), "value", None))
        .collect();
    save(&journal, many);
    save(&journal, vec![set("after", "v", None)]);
    drop(journal);
    assert_eq!(open(dir.path()).1.len(), 2001);
}

#[test]
fn a_journal_is_one_process_s_and_keeps_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    assert!(matches!(
        Journal::open(dir.path(), MAX),
        Err(JournalError::InUse { .. })
    ));
    let id = journal.id().to_owned();
    journal.close();
    drop(journal);
    assert_eq!(open(dir.path()).0.id(), id);
    assert_eq!(id.len(), 16);
}

const CHILD_DIR: &str = "BERTH_TEST_JOURNAL";
const POINTS: [&str; 9] = [
    "journal.append",
    "journal.write.before",
    "journal.write.after",
    "journal.segment.new",
    "journal.state.before",
    "journal.state.written",
    "journal.state.renamed",
    "journal.segment.freed",
    "journal.relocate",
];

/// What step `at` does: contents that go soon, among some that stay.
fn work(journal: Option<&Journal>, at: u64, model: &mut Map) -> Vec<Op> {
    let mut batch = Vec::new();
    let mut put = |slot: String, len: usize, large: bool| {
        let content = bytes(at, len);
        model.insert(slot.clone(), (at.to_string().into(), Some(content.to_vec())));
        if let Some(journal) = journal {
            let given = if large {
                body(journal, &content)
            } else {
                Some(Content::Bytes(content))
            };
            batch.push(set(&slot, &at.to_string(), given));
        }
    };
    put(format!("s{}", at % 7), 3000, false);
    if at % 25 == 3 {
        put(format!("keep{}", at / 25 % 5), 700, false);
    }
    if at % 20 == 7 {
        put(format!("body{}", at / 20 % 2), 20_000, true);
    }
    if at % 5 == 4 {
        model.remove(&format!("s{}", (at - 2) % 7));
        batch.push(clear(&format!("s{}", (at - 2) % 7)));
    }
    batch
}

/// Run by the test below in a process of its own; without its variable it has nothing to do.
#[test]
fn child_that_works_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else {
        return;
    };
    let (journal, _) = open(&dir.join("journal"));
    let mut acknowledged = OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("acknowledged"))
        .unwrap();
    let mut model = Map::new();
    for at in 0..600 {
        let appended = journal.append(work(Some(&journal), at, &mut model)).unwrap();
        journal.commit(appended.seq).unwrap();
        acknowledged.write_all(b".").unwrap();
        journal.shared.make_room();
    }
}

#[test]
fn nothing_committed_is_lost_wherever_the_process_is_killed() {
    for point in POINTS {
        for count in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "journal::tests::child_that_works_until_it_is_killed"])
                .env(CHILD_DIR, dir.path())
                .env("BERTH_CRASH_POINT", format!("{point}:{count}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(status.signal(), Some(9), "{point}:{count} was not passed: {status}");
            let done = fs::metadata(dir.path().join("acknowledged")).map_or(0, |meta| meta.len());
            let (journal, found) = open(&dir.path().join("journal"));
            let mut model = Map::new();
            (0..done).for_each(|at| drop(work(None, at, &mut model)));
            let acknowledged = model.clone();
            work(None, done, &mut model);
            let found = map(&found);
            assert!(journal.damage().is_empty(), "{point}:{count}");
            assert!(found == acknowledged || found == model, "{point}:{count} after {done}");
        }
    }
}
