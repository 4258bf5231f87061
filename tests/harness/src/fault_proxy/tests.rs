//! The proxy between a plain HTTP client and a server that writes down what reached it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use super::*;

/// A server that answers each request with 4,000 bytes, and keeps the bodies it was sent.
fn server() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let got = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&got);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            while !request.ends_with(b"END") {
                match stream.read(&mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(size) => request.extend_from_slice(&chunk[..size]),
                }
            }
            if request.ends_with(b"END") {
                kept.lock().push(String::from_utf8(request).unwrap());
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n{}",
                    "x".repeat(4000)
                );
            }
        }
    });
    (address, got)
}

/// What came back of one PUT, whole or cut.
fn put(proxy: &FaultProxy) -> String {
    let Ok(mut stream) = TcpStream::connect(proxy.address()) else {
        return "refused".into();
    };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let asked = write!(
        stream,
        "PUT /b/key%20one?x=1 HTTP/1.1\r\nhost: signed.example:99\r\nconnection: close\r\ncontent-length: 3\r\n\r\nEND"
    );
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if asked.is_err() || read.is_err() && answer.is_empty() {
        return String::new();
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn without_faults_a_request_arrives_as_it_was_sent() {
    let (upstream, got) = server();
    let proxy = FaultProxy::start(upstream, 1).unwrap();
    let answer = put(&proxy);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with(&"x".repeat(4000)),
        "{answer}"
    );
    let sent = got.lock().remove(0);
    assert!(sent.starts_with("PUT /b/key%20one?x=1 HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains("host: signed.example:99\r\n"), "{sent}");
    assert_eq!(proxy.count("PUT", "/b/key"), 1);
}

#[test]
fn a_request_can_be_cut_before_and_after_the_server_has_it() {
    let (upstream, got) = server();
    let proxy = FaultProxy::start(upstream, 1).unwrap();
    proxy.set([Rule::once("PUT", Fault::CutBefore)]);
    assert_eq!(put(&proxy), "");
    assert_eq!(got.lock().len(), 0);
    proxy.set([Rule::once("PUT", Fault::CutDuring)]);
    assert_eq!(put(&proxy), "");
    assert_eq!(got.lock().len(), 0, "half a request is none");
    proxy.set([Rule::once("PUT", Fault::CutAfter)]);
    assert_eq!(put(&proxy), "");
    assert_eq!(got.lock().len(), 1);
    assert!(put(&proxy).starts_with("HTTP/1.1 200"), "the rule held once");
}

#[test]
fn answers_can_be_refusals_cut_or_slow() {
    let (upstream, _got) = server();
    let proxy = FaultProxy::start(upstream, 1).unwrap();
    proxy.set([Rule::always(Fault::Status(503))]);
    let answer = put(&proxy);
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("SlowDown"),
        "{answer}"
    );
    proxy.set([Rule::always(Fault::Truncated)]);
    let answer = put(&proxy);
    assert!(answer.contains("content-length: 4000"), "{answer}");
    let got = answer.matches('x').count();
    assert!(got < 4000, "{got}");
    proxy.set([Rule::always(Fault::Slow(Duration::from_millis(30)))]);
    let since = std::time::Instant::now();
    assert!(put(&proxy).ends_with(&"x".repeat(4000)));
    assert!(since.elapsed() >= Duration::from_millis(100));
}

#[test]
fn what_hangs_ends_when_the_fault_is_taken_away() {
    let (upstream, _got) = server();
    let proxy = FaultProxy::start(upstream, 1).unwrap();
    proxy.set([Rule::always(Fault::Hang)]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| put(&proxy));
        crate::wait("the request to arrive", Duration::from_secs(10), || {
            proxy.count("PUT", "") == 1
        });
        assert!(!waiting.is_finished());
        proxy.heal();
        assert_eq!(waiting.join().unwrap(), "");
    });
}

#[test]
fn it_can_be_away_and_come_back() {
    let (upstream, _got) = server();
    let proxy = FaultProxy::start(upstream, 1).unwrap();
    proxy.reach(Reach::Refused);
    crate::wait("connections to be refused", Duration::from_secs(10), || {
        put(&proxy) == "refused"
    });
    proxy.reach(Reach::Closed);
    crate::wait("connections to be closed", Duration::from_secs(10), || {
        put(&proxy).is_empty()
    });
    proxy.heal();
    crate::wait("answers", Duration::from_secs(10), || {
        put(&proxy).starts_with("HTTP/1.1 200")
    });
}

#[test]
fn the_same_seed_makes_the_same_faults() {
    let (upstream, _got) = server();
    let faults = |seed| {
        let proxy = FaultProxy::start(upstream, seed).unwrap();
        proxy.set([Rule::sometimes(50, Fault::Status(500))]);
        for _ in 0..20 {
            put(&proxy);
        }
        proxy
            .seen()
            .into_iter()
            .map(|seen| seen.fault.is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(faults(7), faults(7));
    assert_ne!(faults(7), faults(8));
}
