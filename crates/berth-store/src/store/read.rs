//! Reading: LIST, GET of a whole object or a range of it, HEAD.

use std::ops::Range;
use std::time::UNIX_EPOCH;

use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Method;
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
        let first = self.page(prefix, None, None).await?;
        Ok(self.pages(prefix, None, first).await?.0)
    }

    /// `list("")`, of a bucket with more than one page the folders at the top side by side.
    pub(super) async fn list_all(&self) -> Result<Vec<ObjectInfo>> {
        let first = self.page("", None, None).await?;
        if first.next.is_none() {
            return Ok(first.objects);
        }
        let tops = self.page("", Some("/"), None).await?;
        let (mut objects, folders) = self.pages("", Some("/"), tops).await?;
        if folders.len() < 2 {
            return Ok(self.pages("", None, first).await?.0);
        }
        let mut lists = stream::iter(folders)
            .map(|folder| async move { self.list(&folder).await })
            .buffer_unordered(LISTS);
        while let Some(list) = lists.next().await {
            objects.extend(list?);
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// `page` and all after it: the objects, and the folders that `delimiter` makes of the others.
    async fn pages(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        mut page: Page,
    ) -> Result<(Vec<ObjectInfo>, Vec<String>)> {
        let (mut objects, mut folders, mut last) = (Vec::new(), Vec::new(), None);
        loop {
            objects.append(&mut page.objects);
            folders.append(&mut page.folders);
            let Some(next) = page.next.take() else {
                return Ok((objects, folders));
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
