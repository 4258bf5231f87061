//! What is published when, without a server.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn object(key: &str, etag: &str) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size: 1,
        etag: etag.to_owned(),
        modified: UNIX_EPOCH,
    }
}

fn gone(key: &str) -> Change {
    Change::Deleted { key: key.to_owned() }
}

/// A bucket that was listed, and what is published of it from then on.
struct Bucket {
    changes: Changes,
    seen: broadcast::Receiver<Change>,
}

impl Bucket {
    fn with(listed: &[(&str, &str)]) -> Self {
        let changes = Changes::watched();
        let seen = changes.subscribe();
        let bucket = Self { changes, seen };
        bucket.watched().prime(&objects(listed));
        bucket
    }

    fn watched(&self) -> &Watched {
        self.changes.watch().unwrap()
    }

    fn list(&self, listed: &[(&str, &str)]) {
        self.watched().begin_list();
        self.listed("", objects(listed));
    }

    fn listed(&self, prefix: &str, listed: Vec<ObjectInfo>) {
        let compared = self.watched().compare_whole(prefix, listed);
        self.watched().publish_differences(compared);
    }

    fn published(&mut self) -> Vec<Change> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }

    fn write(&self, key: &str, etag: &str) {
        let writing = self.changes.writing(key).unwrap();
        writing.done(Change::Put(object(key, etag)));
    }

    fn looks(&self) -> Vec<Look> {
        self.watched().state.lock().take_looks()
    }

    fn keys_to_look_at(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.looks().into_iter().map(|look| look.key).collect();
        keys.sort();
        keys
    }
}

fn objects(listed: &[(&str, &str)]) -> Vec<ObjectInfo> {
    listed.iter().map(|(key, etag)| object(key, etag)).collect()
}

#[test]
fn an_own_write_is_published_once_and_an_older_list_does_not_undo_it() {
    let mut bucket = Bucket::with(&[("old", "1")]);
    bucket.watched().begin_list();
    bucket.write("new", "2");
    // The LIST was answered before the write took place.
    bucket.listed("", objects(&[("old", "1")]));
    assert_eq!(bucket.published(), [Change::Put(object("new", "2"))]);
    let looks = bucket.looks();
    assert_eq!(looks.len(), 1, "the server is asked about it");
    bucket.watched().looked(&looks[0], Some(object("new", "2")));
    bucket.list(&[("new", "2"), ("old", "1")]);
    assert_eq!(bucket.published(), []);
    assert_eq!(bucket.keys_to_look_at(), [""; 0]);
}

#[test]
fn a_server_that_lists_late_undoes_no_own_write_and_no_own_removal() {
    let mut bucket = Bucket::with(&[("a", "1"), ("b", "1")]);
    bucket.write("a", "2");
    let writing = bucket.changes.writing("b").unwrap();
    writing.done(gone("b"));
    assert_eq!(bucket.published(), [Change::Put(object("a", "2")), gone("b")]);
    // Sent and answered after both.
    bucket.list(&[("a", "1"), ("b", "1")]);
    assert_eq!(bucket.published(), []);
    let mut looks = bucket.looks();
    looks.sort_by(|a, b| a.key.cmp(&b.key));
    bucket.watched().looked(&looks[0], Some(object("a", "2")));
    bucket.watched().looked(&looks[1], None);
    assert_eq!(bucket.published(), []);
}

#[test]
fn what_others_do_to_a_key_that_we_wrote_is_published_after_a_look() {
    let mut bucket = Bucket::with(&[]);
    bucket.write("a", "1");
    bucket.write("b", "1");
    bucket.published();
    bucket.list(&[("b", "2")]);
    for look in bucket.looks() {
        let found = (look.key == "b").then(|| object("b", "2"));
        bucket.watched().looked(&look, found);
    }
    let mut published = bucket.published();
    published.sort_by(|a, b| a.key().cmp(b.key()));
    assert_eq!(published, [gone("a"), Change::Put(object("b", "2"))]);
}

#[test]
fn a_write_that_was_cut_off_is_looked_at_when_it_has_ended() {
    let mut bucket = Bucket::with(&[]);
    {
        let _writing = bucket.changes.writing("k").unwrap();
        bucket.list(&[("k", "1")]);
        assert_eq!(bucket.keys_to_look_at(), [""; 0], "it is still under way");
    }
    assert_eq!(bucket.published(), []);
    let looks = bucket.looks();
    bucket.watched().looked(&looks[0], Some(object("k", "1")));
    assert_eq!(bucket.published(), [Change::Put(object("k", "1"))]);
}

#[test]
fn an_answer_from_before_an_own_write_is_asked_for_again() {
    let mut bucket = Bucket::with(&[("k", "1")]);
    bucket.watched().hear("k", Claim::Changed);
    let look = bucket.looks().pop().unwrap();
    bucket.write("k", "3");
    bucket.published();
    bucket.watched().looked(&look, Some(object("k", "2")));
    assert_eq!(bucket.published(), []);
    assert_eq!(bucket.keys_to_look_at(), ["k"]);
}

#[test]
fn what_others_put_replaced_and_deleted_is_published() {
    let mut bucket = Bucket::with(&[("a", "1"), ("b", "1"), ("c", "1")]);
    bucket.list(&[("d", "1"), ("a", "1"), ("b", "2")]);
    let wanted = [Change::Put(object("b", "2")), gone("c"), Change::Put(object("d", "1"))];
    assert_eq!(bucket.published(), wanted);
}

#[test]
fn pages_say_what_the_whole_list_says_and_what_is_written_between_them_is_looked_at() {
    let mut bucket = Bucket::with(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1"), ("f", "1")]);
    bucket.watched().begin_list();
    let mut compared = Comparison::below("");
    let page = |compared: &mut Comparison, listed: &[(&str, &str)]| {
        bucket.watched().state.lock().compare(compared, objects(listed));
    };
    page(&mut compared, &[("a", "1"), ("b", "2")]);
    page(&mut compared, &[]);
    page(&mut compared, &[("d", "1"), ("d0", "1")]);
    // `b` was compared already, `e` is still to come, and the answers are from before.
    bucket.write("b", "3");
    bucket.write("e", "3");
    page(&mut compared, &[("e", "1")]);
    assert!(!compared.disordered);
    bucket.watched().publish_differences(compared);
    let wanted = [
        Change::Put(object("b", "3")),
        Change::Put(object("e", "3")),
        gone("c"),
        Change::Put(object("d0", "1")),
        gone("f"),
    ];
    assert_eq!(bucket.published(), wanted);
    assert_eq!(bucket.keys_to_look_at(), ["b", "e"]);
}

#[test]
fn pages_in_another_order_than_keys_are_noticed() {
    let bucket = Bucket::with(&[]);
    for pages in [[&["b", "a"][..], &[]], [&["a", "b"], &["b"]], [&["c"], &["b", "d"]]] {
        let mut compared = Comparison::below("");
        for page in pages {
            let listed = page.iter().map(|key| object(key, "1")).collect();
            bucket.watched().state.lock().compare(&mut compared, listed);
        }
        assert!(compared.disordered, "{pages:?}");
    }
}

#[test]
fn a_workspace_listed_for_itself_says_nothing_about_the_others() {
    let mut bucket = Bucket::with(&[
        ("a/1", "1"),
        ("app/1", "1"),
        ("app/2", "1"),
        ("app0", "1"),
        ("b/1", "1"),
    ]);
    bucket.watched().begin_list();
    bucket.listed("app/", objects(&[("app/1", "2")]));
    assert_eq!(bucket.published(), [Change::Put(object("app/1", "2")), gone("app/2")]);
    bucket.list(&[("a/1", "1"), ("app/1", "2"), ("app0", "1"), ("b/1", "1")]);
    assert_eq!(bucket.published(), []);
}

#[test]
fn own_writes_that_come_back_as_events_cost_no_request() {
    let bucket = Bucket::with(&[("gone", "1")]);
    let writing = bucket.changes.writing("k").unwrap();
    // The event is here before the answer.
    bucket.watched().hear("k", Claim::Is("1".into()));
    writing.done(Change::Put(object("k", "1")));
    bucket.watched().hear("k", Claim::Is("1".into()));
    let writing = bucket.changes.writing("gone").unwrap();
    bucket.watched().hear("gone", Claim::Gone);
    writing.done(gone("gone"));
    bucket.watched().hear("gone", Claim::Gone);
    assert_eq!(bucket.keys_to_look_at(), [""; 0]);
    bucket.watched().hear("k", Claim::Is("2".into()));
    assert_eq!(bucket.keys_to_look_at(), ["k"]);
}

#[test]
fn events_by_the_thousand_become_one_list() {
    let bucket = Bucket::with(&[]);
    for n in 0..5000 {
        bucket.watched().hear(&format!("k{n}"), Claim::Changed);
    }
    assert!(bucket.looks().len() <= 1000);
    let mut list = Box::pin(bucket.watched().list.notified());
    assert!(
        futures::FutureExt::now_or_never(list.as_mut()).is_some(),
        "a LIST is asked for"
    );
}

#[test]
fn a_server_that_lists_no_etags_is_looked_at_only_where_something_moved() {
    let mut bucket = Bucket::with(&[("a", ""), ("b", "")]);
    bucket.write("own", "1");
    bucket.published();
    let mut listed = objects(&[("a", ""), ("b", ""), ("new", ""), ("own", "")]);
    listed[1].modified += Duration::from_secs(1);
    listed[3].modified += Duration::from_secs(2);
    let list = |listed: &Vec<ObjectInfo>| {
        bucket.watched().begin_list();
        bucket.listed("", listed.clone());
        bucket.looks()
    };
    let looks = list(&listed);
    assert_eq!(looks.len(), 3);
    for look in looks {
        let mut found = listed.iter().find(|info| info.key == look.key).unwrap().clone();
        found.etag = "1".to_owned();
        bucket.watched().looked(&look, Some(found));
    }
    assert!(list(&listed).is_empty(), "nothing moved since");
    let mut keys: Vec<_> = bucket
        .published()
        .iter()
        .map(|change| change.key().to_owned())
        .collect();
    keys.sort();
    assert_eq!(keys, ["b", "new"]);
}
