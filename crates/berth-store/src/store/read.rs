//! Reading: LIST, GET of a whole object or a range of it, HEAD.

use std::ops::Range;
use std::time::UNIX_EPOCH;

use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use futures::{TryStreamExt as _, stream};
use http::Method;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::sign::Header;
use super::upload::quoted;
use super::wire::{Answer, Ask, Refused};
use super::{Inner, TOKEN_HEADER, length, time, unquoted};
use crate::{Act, ObjectInfo, Result};

/// Listings at once.
const LISTS: usize = 16;

/// One answer to a LIST.
struct Page {
    objects: Vec<ObjectInfo>,
    folders: Vec<String>,
    /// Where the next page begins.
    next: Option<String>,
}

impl Inner {
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut all = Vec::new();
        self.each_page(prefix, |mut page| all.append(&mut page)).await?;
        Ok(all)
    }

    /// Gives every page of the objects below `prefix` to `take`, in key order.
    pub(super) async fn each_page(&self, prefix: &str, take: impl FnMut(Vec<ObjectInfo>)) -> Result<()> {
        let first = self.page(prefix, None, None).await?;
        self.pages(prefix, None, first, take).await.map(drop)
    }

    /// `each_page("")`, of a bucket with more than one page the folders at the top side by side, in any order.
    pub(super) async fn each_page_of_all(&self, take: impl FnMut(Vec<ObjectInfo>) + Send) -> Result<()> {
        let take = Mutex::new(take);
        let taken = |page| (*take.lock())(page);
        let first = self.page("", None, None).await?;
        if first.next.is_none() {
            taken(first.objects);
            return Ok(());
        }
        let tops = self.page("", Some("/"), None).await?;
        let mut beside = Vec::new();
        let folders = self
            .pages("", Some("/"), tops, |mut page| beside.append(&mut page))
            .await?;
        if folders.len() < 2 {
            return self.pages("", None, first, taken).await.map(drop);
        }
        drop(first);
        taken(beside);
        stream::iter(folders.into_iter().map(Ok))
            .try_for_each_concurrent(LISTS, |folder| async move { self.each_page(&folder, taken).await })
            .await
    }

    /// Gives `page` and all after it to `take`; the folders that `delimiter` makes of the other objects.
    async fn pages(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        mut page: Page,
        mut take: impl FnMut(Vec<ObjectInfo>),
    ) -> Result<Vec<String>> {
        let (mut folders, mut last) = (Vec::new(), None);
        loop {
            folders.append(&mut page.folders);
            let next = page.next.take();
            take(page.objects);
            let Some(next) = next else {
                return Ok(folders);
            };
            if last.as_ref() == Some(&next) {
                return Err(self.broken_list("a page says that more follows, and not where"));
            }
            page = self.page(prefix, delimiter, Some(next.clone())).await?;
            last = Some(next);
        }
    }

    async fn page(&self, prefix: &str, delimiter: Option<&str>, token: Option<String>) -> Result<Page> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .encoding_type(EncodingType::Url);
        let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
        let page = request
            .set_prefix(prefix)
            .set_delimiter(delimiter.map(str::to_owned))
            .set_continuation_token(token)
            .send()
            .await;
        let page = page.map_err(|e| self.failure(Act::List, None, e))?;
        let encoded = page.encoding_type() == Some(&EncodingType::Url);
        let objects: Vec<_> = page
            .contents()
            .iter()
            .map(|object| ObjectInfo {
                key: decoded(object.key().unwrap_or_default(), encoded),
                size: length(object.size()),
                etag: unquoted(object.e_tag()),
                modified: time(object.last_modified()),
            })
            .collect();
        let folders: Vec<_> = page
            .common_prefixes()
            .iter()
            .filter_map(|folder| folder.prefix())
            .map(|folder| decoded(folder, encoded))
            .collect();
        // What is on a page that does not come, or not whole, would count as removed.
        let fewer = |said: i32| usize::try_from(said).is_ok_and(|said| objects.len() + folders.len() < said);
        let next = match page.is_truncated() {
            _ if page.key_count().is_some_and(fewer) => {
                return Err(self.broken_list("a page has fewer keys than it says"));
            }
            None => return Err(self.broken_list("a page does not say whether more follows")),
            Some(false) => None,
            Some(true) => match page.next_continuation_token() {
                None => return Err(self.broken_list("a page says that more follows, and not where")),
                Some(next) => Some(next.to_owned()),
            },
        };
        Ok(Page { objects, folders, next })
    }

    /// GET, of the version `etag` alone if one is named: the answer is of one version, whatever others write meanwhile.
    pub(super) async fn get(
        &self,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<(ObjectInfo, Bytes)> {
        let mut headers = Vec::new();
        headers.extend(etag.map(|etag| ("if-match", quoted(etag))));
        headers.extend(range.map(|r| ("range", format!("bytes={}-{}", r.start, r.end.saturating_sub(1)))));
        let answer = match self.ask(Act::Get, Method::GET, key, headers).await {
            Ok(answer) => answer,
            // The range begins after the object's end.
            Err((_, Some(416))) => return Ok((nothing(key), Bytes::new())),
            Err((error, _)) => return Err(error),
        };
        let info = ObjectInfo {
            key: key.to_owned(),
            size: answer.body.len() as u64,
            etag: unquoted(answer.header("etag")),
            modified: answer.modified(),
        };
        // A server may ignore the condition.
        if etag.is_some_and(|wanted| wanted != info.etag) {
            return Err(self.conflict(Act::Get, key));
        }
        Ok((info, answer.body))
    }

    /// The bytes of `range` that there are.
    pub(super) async fn get_range(&self, key: &str, etag: Option<&str>, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        Ok(self.get(key, etag, Some(range)).await?.1)
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.head_with_token(key).await?.map(|(info, _)| info))
    }

    pub(super) async fn head_with_token(&self, key: &str) -> Result<Option<(ObjectInfo, Option<String>)>> {
        let answer = match self.ask(Act::Head, Method::HEAD, key, Vec::new()).await {
            Ok(answer) => answer,
            Err((error, _)) if error.is_no_such_key() => return Ok(None),
            Err((error, _)) => return Err(error),
        };
        let info = ObjectInfo {
            key: key.to_owned(),
            size: answer.length(),
            etag: unquoted(answer.header("etag")),
            modified: answer.modified(),
        };
        Ok(Some((info, answer.header(TOKEN_HEADER).map(str::to_owned))))
    }

    /// A request without a body.
    pub(super) async fn ask(
        &self,
        act: Act,
        method: Method,
        key: &str,
        headers: Vec<Header>,
    ) -> Result<Answer, Refused> {
        let body = Bytes::new();
        self.send(Ask {
            act,
            method,
            key,
            headers,
            body,
        })
        .await
    }
}

/// `encoding-type=url`, where a `+` is a space. Bytes that are no text become a NUL and their escape, so that the object
/// counts, is no path, and can be named to people.
fn decoded(key: &str, encoded: bool) -> String {
    if !encoded {
        return key.to_owned();
    }
    let bytes = percent_decode_str(&key.replace('+', " ")).collect::<Vec<u8>>();
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\0%{byte:02X}"));
        }
    }
    text
}

fn nothing(key: &str) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size: 0,
        etag: String::new(),
        modified: UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn odd_keys_are_listed_as_they_are() {
        assert_eq!(decoded("a+b%2Bc%C3%BC%0A%1B", true), "a b+c\u{fc}\n\u{1b}");
        assert_eq!(decoded("a+b%2B", false), "a+b%2B");
        assert_eq!(decoded("a/%FF%FEb%C3", true), "a/\0%FF\0%FEb\0%C3");
        assert_eq!(decoded("a%00b", true), "a\0b");
        assert_eq!(decoded("100%", true), "100%");
    }

    proptest! {
        #[test]
        fn every_key_comes_back_as_it_was_encoded(key: String) {
            let encoded = percent_encoding::utf8_percent_encode(&key, percent_encoding::NON_ALPHANUMERIC);
            prop_assert_eq!(decoded(&encoded.to_string().replace("%20", "+"), true), key);
        }
    }
}
