//! The tables behind [`super::Intents`], and the rules that keep them true. Everything here runs under one lock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Aside, ECHO, EMPTY, Hold, Inner, Intent, Key, MAX_PACE, META, NEW_NAME, OBJECT, PACE, REMOVED, Record, Restored,
    Step, TEMPORARY, Want, Who, cleared, looks_temporary, now_ms,
};
use crate::{
    journal::{Content, Held, Op},
    pending::Job,
};

/// So many copies whose end is not known are kept in mind for a key.
const COPIES: usize = 4;

impl Inner {
    pub(super) fn take_step(&mut self, step: Step, batch: &mut Vec<Op>, touched: &mut Vec<(String, bool)>) {
        match step {
            Step::Put {
                key,
                content,
                remote,
                mtime_ns,
                from,
            } => {
                let holds = from.map(|from| (Key::from(from), Hold::Name));
                self.set(key, Want::Put, remote, mtime_ns, (Some(content), holds), batch, touched);
            }
            Step::Copy {
                key,
                from,
                remote,
                mtime_ns,
            } => {
                let holds = Some((Key::from(&*from.key), Hold::Copy));
                let want = Want::Copy {
                    key: from.key,
                    etag: from.etag,
                    size: from.size,
                };
                self.set(key, want, remote, mtime_ns, (None, holds), batch, touched);
            }
            Step::Delete { key, remote, linger } => {
                let known = self.intents.get(&*key);
                let nothing_there = known.map_or(remote.is_none(), |intent| {
                    intent.record.expect.is_none() && !intent.attempted
                });
                if !nothing_there {
                    self.set(key.clone(), Want::Delete, remote, 0, (None, None), batch, touched);
                    if let Some(intent) = self.intents.get_mut(&*key) {
                        intent.not_before = Instant::now() + linger.max(REMOVED);
                    }
                } else if known.is_some() {
                    self.forget(key, batch, touched);
                }
            }
            Step::Aside { key, remote, entry } => {
                let etag = match self.intents.get(&*key) {
                    Some(intent) if intent.record.want == Want::Delete => return,
                    Some(_) => None,
                    None if remote.is_none() => return,
                    None => remote,
                };
                self.aside.insert(Key::from(key), Aside { etag, entry });
            }
            Step::BackupGone { key } => {
                let Some(aside) = self.aside.remove(&*key) else { return };
                if aside.entry.is_some() {
                    self.take_step(
                        Step::Meta {
                            key: key.clone(),
                            entry: None,
                        },
                        batch,
                        touched,
                    );
                }
                self.take_step(
                    Step::Delete {
                        key,
                        remote: aside.etag,
                        linger: Duration::ZERO,
                    },
                    batch,
                    touched,
                );
            }
            Step::Forget { key } => {
                if self.intents.contains_key(&*key) {
                    self.forget(key, batch, touched);
                }
            }
            Step::Meta { key, entry } => {
                batch.push(Op {
                    slot: format!("{META}{key}"),
                    value: Some(serde_json::to_vec(&entry).unwrap_or_default()),
                    content: None,
                });
                touched.push((key, true));
            }
        }
    }

    pub(super) fn forget(&mut self, key: String, batch: &mut Vec<Op>, touched: &mut Vec<(String, bool)>) {
        self.remove(&key);
        batch.push(cleared(OBJECT, &key));
        touched.push((key, false));
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn set(
        &mut self,
        key: String,
        want: Want,
        remote: Option<String>,
        mtime_ns: i64,
        (content, holds): (Option<Content>, Option<(Key, Hold)>),
        batch: &mut Vec<Op>,
        touched: &mut Vec<(String, bool)>,
    ) {
        let old = self.remove(&key);
        let aside = self.aside.remove(&*key).and_then(|aside| aside.etag);
        let old_name = old.as_ref().and_then(|old| old.holds.clone());
        let after = old.as_ref().map_or(0, |old| old.after);
        let (expect, attempted, since_ms, copies) = match old {
            Some(old) => {
                let mut copies = old.record.copies;
                if old.attempted && matches!(old.record.want, Want::Copy { .. }) {
                    copies.push(old.record.want);
                }
                copies.drain(..copies.len().saturating_sub(COPIES));
                (old.record.expect, old.attempted, old.record.since_ms, copies)
            }
            None => (aside.or(remote), false, now_ms(), Vec::new()),
        };
        // The name it had stays until S3 has the content somewhere.
        let holds = holds.or(old_name.filter(|_| want == Want::Put).map(|from| (from, Hold::Name)));
        let record = Record {
            want,
            expect,
            mtime_ns,
            since_ms,
            copies,
        };
        let empty = matches!(&content, Some(Content::Bytes(bytes)) if bytes.is_empty()) && !key.ends_with('/');
        batch.push(Op {
            slot: format!("{OBJECT}{key}"),
            value: Some(serde_json::to_vec(&record).unwrap_or_default()),
            content,
        });
        let shared: Key = Key::from(&*key);
        let mut not_before = self.earliest(&shared, &record);
        if empty {
            not_before = not_before.max(Instant::now() + EMPTY);
        }
        if let Some((from, hold)) = &holds {
            self.hold(from, &shared, Who::Intent, *hold);
        }
        let intent = Intent {
            record,
            content: None,
            seq: 0,
            attempted,
            not_before,
            tries: 0,
            holds: holds.map(|(from, _)| from),
            after,
        };
        self.intents.insert(shared, intent);
        touched.push((key, false));
    }

    /// When a new intent may be carried out.
    pub(super) fn earliest(&mut self, key: &Key, record: &Record) -> Instant {
        let now = Instant::now();
        let own = self.own.get_mut(key);
        if let Some(own) = own
            && let Some(started) = own.started
        {
            own.pace = if now - started < PACE.max(own.pace) {
                MAX_PACE.min(PACE.max(own.pace * 2))
            } else {
                PACE
            };
            return now.max(started + own.pace);
        }
        match record.expect {
            None if looks_temporary(key) => now + TEMPORARY,
            None => now + NEW_NAME,
            Some(_) => now,
        }
    }

    pub(super) fn restore(&mut self, key: &str, record: Record, content: Option<Arc<Held>>, seq: u64) -> Restored {
        let shared = Key::from(key);
        let holds = match &record.want {
            Want::Copy { key: from, .. } => Some(Key::from(&**from)),
            _ => None,
        };
        if let Some(from) = &holds {
            self.hold(from, &shared, Who::Intent, Hold::Copy);
        }
        let restored = Restored::Object {
            key: key.to_owned(),
            want: record.want.clone(),
            content: content.clone(),
            mtime_ns: record.mtime_ns,
            seq,
        };
        self.bytes += content.as_ref().map_or(0, |held| held.len());
        let intent = Intent {
            record,
            content,
            seq,
            // Whether the process that ended had sent it is not known.
            attempted: true,
            not_before: Instant::now(),
            tries: 0,
            holds,
            after: 0,
        };
        self.intents.insert(shared.clone(), intent);
        self.queue(&shared);
        // A later record may hold this key: then it is queued again by nobody before that one is done.
        let blocked: Vec<Key> = self.held_by.keys().cloned().collect();
        for key in blocked {
            self.queue(&key);
        }
        restored
    }

    pub(super) fn hold(&mut self, source: &str, holder: &Key, who: Who, hold: Hold) {
        if source != &**holder {
            let holders = self.held_by.entry(Key::from(source)).or_default();
            holders.insert((holder.clone(), who), hold);
        }
        self.queue(source);
    }

    pub(super) fn release(&mut self, source: &str, holder: &Key, who: Who) {
        if let Some(holders) = self.held_by.get_mut(source) {
            holders.remove(&(holder.clone(), who));
            if holders.is_empty() {
                self.held_by.remove(source);
            }
        }
        self.queue(source);
    }

    /// Takes the intent away.
    pub(super) fn remove(&mut self, key: &str) -> Option<Intent> {
        let (key, intent) = self.intents.remove_entry(key)?;
        self.ready.remove(&(intent.seq, key.clone()));
        self.delayed.remove(&(intent.not_before, key.clone()));
        self.bytes -= intent.content.as_ref().map_or(0, |held| held.len());
        if let Some(from) = &intent.holds {
            self.release(from, &key, Who::Intent);
        }
        Some(intent)
    }

    /// Puts the key's intent where it belongs now.
    pub(super) fn queue(&mut self, key: &str) {
        let Some((key, intent)) = self.intents.get_key_value(key) else {
            return;
        };
        let key = key.clone();
        let (ready, delayed) = ((intent.seq, key.clone()), (intent.not_before, key.clone()));
        let delete = intent.record.want == Want::Delete;
        let held = self
            .held_by
            .get(&key)
            .is_some_and(|holders| holders.values().any(|hold| delete || *hold == Hold::Copy));
        self.ready.remove(&ready);
        self.delayed.remove(&delayed);
        // Without a number its batch is not entered yet.
        if self.busy.contains(&key) || held || ready.0 == 0 {
            return;
        }
        if self.hurry || delayed.0 <= Instant::now() {
            self.ready.insert(ready);
        } else {
            self.delayed.insert(delayed);
        }
    }

    pub(super) fn end_request(&mut self, job: &Job) {
        self.busy.remove(&job.key);
        if let Want::Copy { key: from, .. } = &job.want {
            self.release(from, &job.key, Who::Request);
        }
    }

    pub(super) fn metas_of<'a>(&'a self, app: &'a str) -> impl Iterator<Item = (String, u64)> + 'a {
        let prefix = format!("{app}/");
        let own = self.metas.get(app).map(|seq| (app.to_owned(), *seq));
        let below = self.metas.range(prefix.clone()..);
        let below = below.take_while(move |(key, _)| key.starts_with(&prefix));
        own.into_iter().chain(below.map(|(key, seq)| (key.clone(), *seq)))
    }

    pub(super) fn forget_echoes(&mut self) {
        if self.own.len() > 10_000 {
            let busy = std::mem::take(&mut self.busy);
            self.own
                .retain(|key, own| busy.contains(key) || own.at.is_some_and(|at| at.elapsed() < ECHO));
            self.busy = busy;
        }
    }
}
