//! The S3 operations: buckets and objects here, LIST in `listing.rs`, uploads in parts in `multipart.rs`.
//!
//! Reads look in the index and then at the body. Writes take the body in, then hand one order to the writer and wait for
//! its answer, which comes when the change is durable.

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::sync::{mpsc, oneshot};

use super::convert::{
    check_copy_source, check_read, condition, content_type, copy_source, etag, expires, metadata, resolve, signed,
    timestamp, unix, user,
};
use super::disk::NewBlob;
use super::receive::{Announced, Place, Received, io_error, receive};
use super::record::{Blob, Body, Headers, INLINE_MAX, Record, now_secs};
use super::send::{Source, find, open};
use super::writer::{Command, Order, Shared, When};
use super::{listing, multipart};

/// How far past a batch a handler may run: more wait at the queue.
pub(super) const QUEUE: usize = 1024;

/// The S3 service over the shared state.
#[derive(Clone)]
pub(super) struct Service {
    pub shared: Arc<Shared>,
    pub orders: mpsc::Sender<Command>,
}

impl Service {
    /// Has the writer do it; answers when it is durable.
    pub(super) async fn order(&self, order: Order) -> S3Result<()> {
        let (answer, done) = oneshot::channel();
        let stopped = || s3_error!(ServiceUnavailable, "The embedded S3 server is stopping.");
        self.orders
            .send(Command { order, answer })
            .await
            .map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())?
    }

    pub(super) fn need_bucket(&self, bucket: &str) -> S3Result<()> {
        match self.shared.index.read().buckets.contains_key(bucket) {
            true => Ok(()),
            false => Err(s3_error!(NoSuchBucket)),
        }
    }

    /// Makes the received body an object.
    async fn store(
        &self,
        bucket: String,
        key: String,
        got: Received,
        headers: Headers,
        when: When,
    ) -> S3Result<Record> {
        let etag = hex::encode(got.md5);
        let (body, inline, files) = match got.place {
            Place::Memory(bytes) if bytes.is_empty() => (Body::Blobs(Vec::new()), None, Vec::new()),
            Place::Memory(bytes) => (Body::Inline(self.shared.blobs.new_id()), Some(bytes), Vec::new()),
            Place::File(file) => (
                Body::Blobs(vec![Blob {
                    id: file.id(),
                    len: got.size,
                }]),
                None,
                vec![file],
            ),
        };
        let record = Record {
            size: got.size,
            etag,
            modified: now_secs(),
            body,
            headers,
        };
        self.order(Order::Put {
            bucket,
            key,
            record: record.clone(),
            inline,
            files,
            when,
        })
        .await?;
        Ok(record)
    }

    /// A body of its own for a copy of `source`: new rows, or new names for the same files.
    async fn clone_body(
        &self,
        record: &Record,
        source: Source,
    ) -> S3Result<(Body, Option<bytes::Bytes>, Vec<NewBlob>)> {
        match source {
            Source::Memory(bytes) => Ok((Body::Inline(self.shared.blobs.new_id()), Some(bytes), Vec::new())),
            Source::Files(_) => {
                let (blobs, old) = (Arc::clone(&self.shared.blobs), record.body.blobs().to_vec());
                let linked = tokio::task::spawn_blocking(move || {
                    let files = old
                        .iter()
                        .map(|b| blobs.link(b.id))
                        .collect::<std::io::Result<Vec<_>>>()?;
                    blobs.sync_names()?;
                    let body = old
                        .iter()
                        .zip(&files)
                        .map(|(b, f)| Blob { id: f.id(), len: b.len })
                        .collect();
                    Ok((Body::Blobs(body), None, files))
                });
                let linked: std::io::Result<_> = linked.await.map_err(|_| s3_error!(InternalError))?;
                linked.map_err(|e| io_error("copy a body", &e))
            }
        }
    }
}

/// The kept headers of a request that carries them under their S3 names.
macro_rules! headers_of {
    ($input:expr) => {
        Headers {
            content_type: $input.content_type.take(),
            content_encoding: $input.content_encoding.take(),
            content_disposition: $input.content_disposition.take(),
            content_language: $input.content_language.take(),
            cache_control: $input.cache_control.take(),
            expires: unix($input.expires.take()),
            user: user($input.metadata.take()),
        }
    };
}

/// What a request says about its body.
macro_rules! announced_of {
    ($input:expr, $trailer:expr, $headers:expr) => {
        Announced {
            length: $input.content_length,
            md5: $input.content_md5.take(),
            checksum: checksum_of!($input),
            trailer: $trailer,
            trailer_name: $headers
                .get("x-amz-trailer")
                .and_then(|v| v.to_str().ok())
                .map(|v| v.trim().to_owned()),
        }
    };
}

macro_rules! checksum_of {
    ($input:expr) => {{
        let mut sum = Checksum::default();
        sum.checksum_crc32 = $input.checksum_crc32.take();
        sum.checksum_crc32c = $input.checksum_crc32c.take();
        sum.checksum_crc64nvme = $input.checksum_crc64nvme.take();
        sum.checksum_sha1 = $input.checksum_sha1.take();
        sum.checksum_sha256 = $input.checksum_sha256.take();
        sum
    }};
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let index = self.shared.index.read();
        let buckets = index.buckets.iter().map(|(name, b)| Bucket {
            name: Some(name.clone()),
            creation_date: Some(timestamp(b.created)),
            ..Default::default()
        });
        let owner = Owner {
            id: Some("berth".to_owned()),
            ..Default::default()
        };
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            owner: Some(owner),
            ..Default::default()
        }))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let name = req.input.bucket;
        self.order(Order::CreateBucket {
            name: name.clone(),
            created: now_secs(),
        })
        .await?;
        Ok(S3Response::new(CreateBucketOutput {
            location: Some(format!("/{name}")),
        }))
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.order(Order::DeleteBucket { name: req.input.bucket }).await?;
        Ok(S3Response::with_status(
            DeleteBucketOutput {},
            http::StatusCode::NO_CONTENT,
        ))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.need_bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.need_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.need_bucket(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketVersioningOutput::default()))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let (mut input, sent) = (req.input, req.headers);
        self.need_bucket(&input.bucket)?;
        let announced = announced_of!(input, req.trailing_headers, sent);
        let large = announced.length.is_some_and(|l| l > signed(INLINE_MAX as u64));
        let got = receive(&self.shared.blobs, input.body.take(), announced, large).await?;
        let headers = headers_of!(input);
        let when = When {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
        };
        let record = self.store(input.bucket, input.key, got, headers, when).await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(etag(&record)),
            ..Default::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let (record, source) = open(&self.shared, &input.bucket, &input.key).await?;
        check_read(
            &record,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since,
            input.if_unmodified_since,
        )?;
        let (range, content_range) = resolve(input.range, record.size)?;
        let partial = content_range.is_some();
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(signed(range.end - range.start)),
            body: Some(source.stream(&self.shared, range)),
            content_range,
            cache_control: record.headers.cache_control.clone(),
            content_disposition: record.headers.content_disposition.clone(),
            content_encoding: record.headers.content_encoding.clone(),
            content_language: record.headers.content_language.clone(),
            content_type: Some(content_type(&record)),
            e_tag: Some(etag(&record)),
            expires: expires(&record),
            last_modified: Some(timestamp(record.modified)),
            metadata: metadata(&record),
            ..Default::default()
        };
        let status = if partial {
            http::StatusCode::PARTIAL_CONTENT
        } else {
            http::StatusCode::OK
        };
        Ok(S3Response::with_status(output, status))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let record = find(&self.shared, &input.bucket, &input.key)?;
        check_read(
            &record,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since,
            input.if_unmodified_since,
        )?;
        let (range, content_range) = resolve(input.range, record.size)?;
        let status = if content_range.is_some() {
            http::StatusCode::PARTIAL_CONTENT
        } else {
            http::StatusCode::OK
        };
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(signed(range.end - range.start)),
            content_range,
            cache_control: record.headers.cache_control.clone(),
            content_disposition: record.headers.content_disposition.clone(),
            content_encoding: record.headers.content_encoding.clone(),
            content_language: record.headers.content_language.clone(),
            content_type: Some(content_type(&record)),
            e_tag: Some(etag(&record)),
            expires: expires(&record),
            last_modified: Some(timestamp(record.modified)),
            metadata: metadata(&record),
            ..Default::default()
        };
        Ok(S3Response::with_status(output, status))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let (mut input, sent) = (req.input, req.headers);
        self.need_bucket(&input.bucket)?;
        let when = When {
            if_match: condition(&sent, http::header::IF_MATCH)?,
            if_none_match: condition(&sent, http::header::IF_NONE_MATCH)?,
        };
        let (bucket, key) = copy_source(&input.copy_source)?;
        let (old, source) = open(&self.shared, bucket, key).await?;
        check_copy_source(
            &old,
            input.copy_source_if_match.as_ref(),
            input.copy_source_if_none_match.as_ref(),
            input.copy_source_if_modified_since.take(),
            input.copy_source_if_unmodified_since.take(),
        )?;
        let replace = input
            .metadata_directive
            .as_ref()
            .is_some_and(|d| d.as_str() == MetadataDirective::REPLACE);
        if !replace && (bucket, key) == (input.bucket.as_str(), input.key.as_str()) {
            return Err(s3_error!(
                InvalidRequest,
                "A copy onto itself must replace the metadata."
            ));
        }
        let headers = if replace {
            headers_of!(input)
        } else {
            old.headers.clone()
        };
        let (body, inline, files) = self.clone_body(&old, source).await?;
        let record = Record {
            size: old.size,
            etag: old.etag.clone(),
            modified: now_secs(),
            body,
            headers,
        };
        let result = CopyObjectResult {
            e_tag: Some(etag(&record)),
            last_modified: Some(timestamp(record.modified)),
            ..Default::default()
        };
        let (bucket, key) = (input.bucket, input.key);
        self.order(Order::Put {
            bucket,
            key,
            record,
            inline,
            files,
            when,
        })
        .await?;
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let DeleteObjectInput {
            bucket, key, if_match, ..
        } = req.input;
        self.order(Order::Delete { bucket, key, if_match }).await?;
        Ok(S3Response::with_status(
            DeleteObjectOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        self.need_bucket(&bucket)?;
        let quiet = delete.quiet.unwrap_or(false);
        // All at once, so that they share a commit.
        let each = delete.objects.into_iter().map(|object| {
            let (bucket, key) = (bucket.clone(), object.key.clone());
            let order = Order::Delete {
                bucket,
                key,
                if_match: object.e_tag.map(ETagCondition::ETag),
            };
            async move { (object.key, self.order(order).await) }
        });
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for (key, result) in futures::future::join_all(each).await {
            match result {
                Ok(()) if quiet => {}
                Ok(()) => deleted.push(DeletedObject {
                    key: Some(key),
                    ..Default::default()
                }),
                Err(e) => errors.push(Error {
                    key: Some(key),
                    code: Some(e.code().as_str().to_owned()),
                    message: e.message().map(str::to_owned),
                    ..Default::default()
                }),
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            errors: Some(errors),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        listing::list_v2(&self.shared, req.input).map(S3Response::new)
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        listing::list_v1(&self.shared, req.input).map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let mut input = req.input;
        let headers = headers_of!(input);
        multipart::start(self, input.bucket, input.key, headers)
            .await
            .map(S3Response::new)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (mut input, sent) = (req.input, req.headers);
        let announced = announced_of!(input, req.trailing_headers, sent);
        multipart::put_part(self, input, announced).await.map(S3Response::new)
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        multipart::copy_part(self, req.input).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        multipart::complete(self, req.input).await.map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let AbortMultipartUploadInput {
            bucket, key, upload_id, ..
        } = req.input;
        multipart::find(&self.shared, &bucket, &key, &upload_id)?;
        self.order(Order::AbortUpload { id: upload_id }).await?;
        Ok(S3Response::with_status(
            AbortMultipartUploadOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        multipart::list_parts(&self.shared, req.input).map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        multipart::list_uploads(&self.shared, req.input).map(S3Response::new)
    }
}
