//! A store behind TLS: trusted through the host's certificate bundle (`SSL_CERT_FILE`), refused without it. This program is
//! the test, and with `connect URL` the client, which has to start with its environment.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use berth_store::{Precondition, Store};
use bytes::Bytes;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::{fixture, store_config};
use tokio::net::{TcpListener, TcpStream};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if args.get(1).is_some_and(|a| a == "connect") {
        return runtime.block_on(client(&args[2]));
    }
    runtime.block_on(the_hosts_bundle_decides_whom_to_trust());
    println!("test result: ok");
}

async fn client(url: &str) {
    let mut cfg = store_config(SocketAddr::from(([127, 0, 0, 1], 1)));
    cfg.endpoint = Some(url.to_owned());
    let store = match Store::connect(cfg, None).await {
        Ok(store) => store,
        Err(e) => {
            println!("refused: unavailable {} {e}", e.is_unavailable());
            return;
        }
    };
    store
        .put("over-tls", Bytes::from_static(b"sealed"), Precondition::Absent)
        .await
        .unwrap();
    println!("got {:?}", store.get("over-tls").await.unwrap().1);
}

async fn the_hosts_bundle_decides_whom_to_trust() {
    let f = fixture().await;
    certificate(f.dir.path());
    let bundle = f.dir.path().join("cert.pem");
    let address = tls_proxy(f.dir.path(), f.server.local_addr()).await;
    let url = format!("https://localhost:{}", address.port());

    let trusting = run_client(&url, &bundle).await;
    let said = String::from_utf8_lossy(&trusting.stdout).into_owned();
    assert!(
        said.contains("got b\"sealed\""),
        "{said} {}",
        String::from_utf8_lossy(&trusting.stderr)
    );
    assert_eq!(f.store.get("over-tls").await.unwrap().1, "sealed");

    // The same server, with a bundle that does not have its certificate.
    let other = f.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    certificate(&other);
    refused(&url, &other, "does not know the authority").await;

    let by_address = format!("https://127.0.0.1:{}", address.port());
    refused(&by_address, f.dir.path(), "another host name").await;

    let old = f.dir.path().join("old");
    std::fs::create_dir(&old).unwrap();
    expired_certificate(&old);
    let address = tls_proxy(&old, f.server.local_addr()).await;
    refused(&format!("https://localhost:{}", address.port()), &old, "has expired").await;

    let plain = format!("https://localhost:{}", f.server.local_addr().port());
    refused(&plain, f.dir.path(), "write the endpoint with http://").await;
}

/// The client says what is wrong, and that it is worth trying again once that is mended.
async fn refused(url: &str, certificate: &Path, reason: &str) {
    let said = run_client(url, &certificate.join("cert.pem")).await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let wanted = format!("no secure connection to {url}: ");
    assert!(
        said.contains("refused: unavailable true") && said.contains(&wanted) && said.contains(reason),
        "{said}"
    );
}

async fn run_client(url: &str, bundle: &Path) -> Output {
    let mut client = Command::new(std::env::current_exe().unwrap());
    client
        .args(["connect", url])
        .env("SSL_CERT_FILE", bundle)
        .env_remove("SSL_CERT_DIR");
    tokio::task::spawn_blocking(move || client.output().unwrap())
        .await
        .unwrap()
}

/// One whose last day was in 2021.
fn expired_certificate(dir: &Path) {
    certificate(dir);
    let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n\
                  copy_extensions=copy\n[p]\ncommonName=supplied\n";
    std::fs::write(dir.join("ca.conf"), config).unwrap();
    std::fs::write(dir.join("index"), "").unwrap();
    std::fs::write(dir.join("serial"), "01").unwrap();
    let request = "req -new -key key.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost -out request.pem";
    let sign = "ca -batch -selfsign -config ca.conf -keyfile key.pem -in request.pem -out cert.pem -notext \
                -startdate 200101000000Z -enddate 210101000000Z";
    for args in [request, sign] {
        let run = Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

/// A certificate for `localhost` that is its own authority.
fn certificate(dir: &Path) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args([
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ])
        .current_dir(dir)
        .output()
        .expect("openssl is needed for this test");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

async fn tls_proxy(dir: &Path, server: SocketAddr) -> SocketAddr {
    let cert = CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![cert], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us hangs up here.
                let Ok(mut client) = acceptor.accept(client).await else {
                    return;
                };
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}
