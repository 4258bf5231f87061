//! What is there after a crash: the mount, read by the file system, and the bucket, read by an S3 client that shares no code
//! with Berth's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result};
use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
};
use futures::{StreamExt, TryStreamExt};

use super::{
    model::{Entry, PLAIN, Tree},
    names::sum,
};

/// Whether an editor's file of this name never goes to S3, and is gone when the daemon is.
#[must_use]
pub fn is_transient(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.ends_with('~')
        || name == "4913"
        || name.starts_with(".goutputstream-")
        || name.starts_with('.') && name.ends_with(".swp")
}

/// Every name of the mount with what it holds.
///
/// # Errors
/// When something cannot be read, with its path.
pub fn mount(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        let listed = fs::read_dir(&at).with_context(|| format!("cannot list {}", at.display()))?;
        for entry in listed {
            let entry = entry.with_context(|| format!("cannot list {}", at.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            let found = one(&root.join(&path)).with_context(|| format!("cannot read {path}"))?;
            if found == Entry::Dir {
                folders.push(path.clone());
            }
            tree.insert(path, found);
        }
    }
    Ok(tree)
}

fn one(path: &Path) -> io::Result<Entry> {
    let about = fs::symlink_metadata(path)?;
    if about.is_dir() {
        return Ok(Entry::Dir);
    }
    if about.is_symlink() {
        return Ok(Entry::Link(fs::read_link(path)?.to_string_lossy().into_owned()));
    }
    let content = fs::read(path)?;
    if content.len() as u64 != about.len() {
        let (read, said) = (content.len(), about.len());
        return Err(io::Error::other(format!("{read} bytes were read of {said}")));
    }
    Ok(Entry::File {
        len: about.len(),
        sum: sum(&content),
        mode: about.permissions().mode() & 0o7777,
    })
}

/// The bucket, straight.
pub struct Bucket {
    runtime: tokio::runtime::Runtime,
    client: Client,
    name: String,
}

impl Bucket {
    /// A client for what `berth s3 env` describes.
    ///
    /// # Errors
    /// When no runtime can be made, or the description lacks something.
    pub fn open(env: &BTreeMap<String, String>) -> Result<Self> {
        let of = |name: &str| {
            env.get(name)
                .with_context(|| format!("no {name} in the S3 environment"))
        };
        let keys = Credentials::new(
            of("AWS_ACCESS_KEY_ID")?,
            of("AWS_SECRET_ACCESS_KEY")?,
            None,
            None,
            "test",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(keys)
            .region(Region::new("us-east-1"))
            .force_path_style(true)
            .endpoint_url(of("AWS_ENDPOINT_URL")?)
            .build();
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            client: Client::from_conf(config),
            name: of("S3_BUCKET")?.clone(),
        })
    }

    /// Every object with the length and MD5 of its bytes, without Berth's own in `.berth/` and the markers of folders.
    ///
    /// # Errors
    /// When a request fails.
    pub fn objects(&self) -> Result<BTreeMap<String, (u64, String)>> {
        self.runtime.block_on(async {
            let list = self.client.list_objects_v2().bucket(&self.name);
            let mut pages = list.into_paginator().send();
            let mut keys = Vec::new();
            while let Some(page) = pages.next().await {
                let page = page.context("cannot list the bucket")?;
                keys.extend(page.contents.into_iter().flatten().filter_map(|object| object.key));
            }
            keys.retain(|key| !key.starts_with(".berth/") && !key.ends_with('/'));
            futures::stream::iter(keys)
                .map(|key| async move {
                    let got = self.client.get_object().bucket(&self.name).key(&key).send();
                    let got = got.await.with_context(|| format!("cannot get {key}"))?;
                    let body = got.body.collect().await;
                    let bytes = body.with_context(|| format!("cannot get {key}"))?.into_bytes();
                    anyhow::Ok((key, (bytes.len() as u64, sum(&bytes))))
                })
                .buffer_unordered(8)
                .try_collect()
                .await
        })
    }

    /// The workspace indexes, as text, for the evidence.
    ///
    /// # Errors
    /// When a request fails.
    pub fn indexes(&self) -> Result<BTreeMap<String, String>> {
        self.runtime.block_on(async {
            let list = self.client.list_objects_v2().bucket(&self.name).prefix(".berth/index/");
            let mut found = BTreeMap::new();
            for key in list
                .send()
                .await?
                .contents
                .into_iter()
                .flatten()
                .filter_map(|object| object.key)
            {
                let got = self.client.get_object().bucket(&self.name).key(&key).send().await?;
                let bytes = got.body.collect().await?.into_bytes();
                found.insert(key, String::from_utf8_lossy(&bytes).into_owned());
            }
            Ok(found)
        })
    }

    /// Bits and links that the mount shows and the indexes do not say, or the other way round.
    fn unsaid(&self, shown: &Tree) -> Result<Vec<String>> {
        let mut said = BTreeMap::new();
        for (key, text) in self.indexes()? {
            let app = key
                .trim_start_matches(".berth/index/")
                .trim_end_matches(".json")
                .to_owned();
            let index: serde_json::Value = serde_json::from_str(&text)?;
            for (path, entry) in index["entries"].as_object().into_iter().flatten() {
                let text = |name: &str| entry[name].as_str().map(str::to_owned);
                if let Some(what) = text("mode").or_else(|| text("target")) {
                    said.insert(format!("{app}/{path}"), what);
                }
            }
        }
        let mut shows = BTreeMap::new();
        for (path, entry) in shown.iter().filter(|(path, _)| !is_transient(path)) {
            match entry {
                Entry::File { mode, .. } if *mode != PLAIN => shows.insert(path.clone(), format!("{mode:o}")),
                Entry::Link(target) => shows.insert(path.clone(), target.clone()),
                _ => None,
            };
        }
        let all: BTreeSet<&String> = said.keys().chain(shows.keys()).collect();
        Ok(all
            .into_iter()
            .filter(|path| said.get(*path) != shows.get(*path))
            .map(|path| {
                let (says, shows) = (said.get(path), shows.get(path));
                format!("{path} WRONG in the index: {says:?}, the mount shows {shows:?}")
            })
            .collect())
    }

    /// How the bucket differs from what the mount shows.
    ///
    /// # Errors
    /// When a request fails.
    pub fn differences(&self, shown: &Tree) -> Result<Vec<String>> {
        let objects = self.objects()?;
        let files: BTreeMap<&String, (u64, &String)> = shown
            .iter()
            .filter(|(path, _)| !is_transient(path))
            .filter_map(|(path, entry)| match entry {
                Entry::File { len, sum, .. } => Some((path, (*len, sum))),
                _ => None,
            })
            .collect();
        let mut wrong = self.unsaid(shown)?;
        let keys: BTreeSet<&String> = files.keys().copied().chain(objects.keys()).collect();
        for key in keys {
            match (files.get(key), objects.get(key)) {
                (Some((len, sum)), Some((has, of))) if len == has && *sum == of => {}
                (Some(want), None) => wrong.push(format!("{key} LOST in the bucket: the mount shows {want:?}")),
                (None, Some(has)) => wrong.push(format!("{key} STRAY in the bucket: {has:?}, not in the mount")),
                (want, has) => wrong.push(format!("{key} WRONG in the bucket: {has:?}, the mount shows {want:?}")),
            }
        }
        Ok(wrong)
    }
}
