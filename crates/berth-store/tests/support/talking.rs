//! A small S3 server that tells of changes as MinIO does, and that can be told to list late, wrongly or not to the end.
//!
//! It keeps keys and ETags alone; it looks at no signature but at the query being signed in order.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use super::BUCKET;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, String>,
    /// What LIST shows instead.
    frozen: Option<BTreeMap<String, String>>,
    broken: String,
    events_status: u16,
    down: bool,
    lists: usize,
    listeners: usize,
}

/// What goes down the streams; nothing ends them.
type Word = Option<String>;

#[derive(Clone)]
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    words: broadcast::Sender<Word>,
}

/// One line as MinIO writes it.
pub fn event(name: &str, encoded_key: &str, etag: &str) -> String {
    format!(
        "{{\"EventName\":\"s3:{name}\",\"Key\":\"{BUCKET}/x\",\"Records\":[{{\"eventName\":\"s3:{name}\",\"s3\":{{\
         \"bucket\":{{\"name\":\"{BUCKET}\"}},\"object\":{{\"key\":\"{encoded_key}\",\"size\":1,\"eTag\":\"{etag}\"}}}}}}]}}"
    )
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            words: broadcast::channel(1024).0,
        };
        server.state.lock().events_status = 200;
        let serving = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = serving.clone();
                let answer = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As another client.
    pub fn put(&self, key: &str, etag: &str) {
        self.state.lock().objects.insert(key.to_owned(), etag.to_owned());
    }

    pub fn remove(&self, key: &str) {
        self.state.lock().objects.remove(key);
    }

    pub fn tell(&self, line: &str) {
        self.words.send(Some(format!("{line}\n"))).expect("somebody listens");
    }

    /// Ends all streams.
    pub fn cut(&self) {
        let _ = self.words.send(None);
    }

    /// Waits until somebody follows the events.
    pub async fn listening(&self) {
        super::eventually(|| self.state.lock().listeners > 0).await;
    }

    /// How the question for events is answered; 200 with a listing, by a server that does not know it.
    pub fn events_answer(&self, status: u16) {
        let mut state = self.state.lock();
        state.events_status = if status == 200 { 299 } else { status };
    }

    /// Every request is answered 503.
    pub fn down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// LIST shows what is so now, whatever comes.
    pub fn freeze_lists(&self) {
        let mut state = self.state.lock();
        state.frozen = Some(state.objects.clone());
    }

    pub fn thaw_lists(&self) {
        self.state.lock().frozen = None;
    }

    /// "second page": it is answered 400; "endless": its token leads to itself; "no token": it is promised without one;
    /// "cut": the answer ends in its middle; "few": it has fewer keys than it says.
    pub fn break_lists(&self, how: &str) {
        self.state.lock().broken = how.to_owned();
    }

    /// Waits for so many LIST requests more.
    pub async fn lists_seen(&self, more: usize) {
        let wanted = self.state.lock().lists + more;
        super::eventually(|| self.state.lock().lists >= wanted).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if self.state.lock().down {
            return whole(503, &error("SlowDown"));
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let path = request.uri().path().trim_start_matches('/');
        let key = path.split_once('/').map_or("", |(_, key)| key);
        let key = percent_encoding::percent_decode_str(key)
            .decode_utf8()
            .unwrap()
            .into_owned();
        if query.contains("events=") {
            assert!(query.starts_with("events=s3%3AObjectCreated%3A%2A&events=s3%3AObjectRemoved%3A%2A&"));
            return self.stream();
        }
        if key.is_empty() {
            return self.list(&query);
        }
        match *request.method() {
            Method::PUT => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let etag = hex::encode(Md5::digest(&body));
                self.put(&key, &etag);
                object(&etag, "")
            }
            Method::DELETE => {
                self.remove(&key);
                whole(204, "")
            }
            _ => match self.state.lock().objects.get(&key) {
                Some(etag) => object(etag, "x"),
                None => whole(404, ""),
            },
        }
    }

    fn stream(&self) -> Response<Body> {
        let status = self.state.lock().events_status;
        match status {
            200 => {}
            299 => return self.list(""),
            _ => return whole(status, &error("NotImplemented")),
        }
        let words = self.words.subscribe();
        self.state.lock().listeners += 1;
        let alive = Alive(Arc::clone(&self.state));
        let lines = futures::stream::unfold((words, alive, true), |(mut words, alive, first)| async move {
            let line = match first {
                true => " ".to_owned(),
                false => tokio::select! {
                    word = words.recv() => word.unwrap()?,
                    () = tokio::time::sleep(Duration::from_millis(100)) => " ".to_owned(),
                },
            };
            Some((Ok(Frame::data(Bytes::from(line))), (words, alive, false)))
        });
        let answer = Response::builder().header("content-type", "text/event-stream");
        answer.body(StreamBody::new(lines.boxed()).boxed_unsync()).unwrap()
    }

    fn list(&self, query: &str) -> Response<Body> {
        let mut state = self.state.lock();
        state.lists += 1;
        let objects = state.frozen.as_ref().unwrap_or(&state.objects);
        let second = query.contains("continuation-token");
        let broken = state.broken.as_str();
        if broken == "second page" && second {
            return whole(400, &error("InvalidArgument"));
        }
        let shown = if broken.is_empty() {
            objects.len()
        } else {
            objects.len() / 3
        };
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult>");
        for (key, etag) in objects.iter().take(shown) {
            let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
            xml.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;{etag}&quot;</ETag>\
                 <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            ));
        }
        let token = if broken == "no token" {
            ""
        } else {
            "<NextContinuationToken>t</NextContinuationToken>"
        };
        match broken {
            "" => xml.push_str("<IsTruncated>false</IsTruncated>"),
            "cut" => return whole(200, &xml),
            "few" => xml.push_str("<IsTruncated>false</IsTruncated><KeyCount>1000</KeyCount>"),
            _ => xml.push_str(&format!("<IsTruncated>true</IsTruncated>{token}")),
        }
        whole(200, &(xml + "<EncodingType>url</EncodingType></ListBucketResult>"))
    }
}

struct Alive(Arc<Mutex<State>>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.lock().listeners -= 1;
    }
}

fn error(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>")
}

/// LIST says that each has one byte.
fn object(etag: &str, body: &'static str) -> Response<Body> {
    let answer = Response::builder().header("etag", format!("\"{etag}\""));
    answer
        .body(
            Full::new(Bytes::from_static(body.as_bytes()))
                .map_err(|never| match never {})
                .boxed_unsync(),
        )
        .unwrap()
}

fn whole(status: u16, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let answer = Response::builder()
        .status(status)
        .header("content-type", "application/xml");
    answer.body(body).unwrap()
}
