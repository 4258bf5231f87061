//! What the edge costs: the same requests straight to an app and through the edge.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::double::{World, tcp_app};

const ROUNDS: usize = 2000;

/// Time for one request and its answer, for each of many on one connection; sorted.
async fn measure(addr: std::net::SocketAddr) -> Vec<Duration> {
    let mut stream = TcpStream::connect(addr).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut bytes = [0; 4096];
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        stream
            .write_all(b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\n\r\n")
            .await
            .expect("send");
        let mut read = 0;
        while !bytes[..read].ends_with(b"hello") {
            match stream.read(&mut bytes[read..]).await.expect("an answer") {
                0 => panic!("closed after {}", String::from_utf8_lossy(&bytes[..read])),
                more => read += more,
            }
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_costs_little() {
    let app = tcp_app(|mut stream| async move {
        let (mut bytes, mut read) = ([0; 4096], 0);
        while let Ok(more @ 1..) = stream.read(&mut bytes[read..]).await {
            read += more;
            if bytes[..read].ends_with(b"\r\n\r\n") {
                read = 0;
                if stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    })
    .await;
    let world = World::new(&[("blog", app)]);
    measure(world.addr).await;
    let (direct, through) = (measure(app).await, measure(world.addr).await);
    let at = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100];
    let added = at(&through, 50).saturating_sub(at(&direct, 50));
    println!(
        "direct p50 {:?} p95 {:?}; through the edge p50 {:?} p95 {:?}; added p50 {added:?}",
        at(&direct, 50),
        at(&direct, 95),
        at(&through, 50),
        at(&through, 95),
    );
    // The promise is 0.3 ms on a quiet machine; this only catches a request that waits for a timer or a delayed packet.
    assert!(added < Duration::from_millis(5), "{added:?}");
    assert_eq!(world.app("blog").sockets(), 1);
}
