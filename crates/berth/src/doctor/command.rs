//! The command: asks the configuration and the rest of Berth for what the checks need, and shows what they found.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use berth_image::ImageStore;

use super::{Check, ImageProblem, ImageState, Port, Status, StoreAnswer, Subject, resolve, run, worst};
use crate::client::Client;
use crate::config::{Config, IMAGES};
use crate::failure::Failure;

/// How long S3 is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer's headers are not longer than this.
const MOST_HEADERS: u64 = 16 << 10;

/// `berth doctor`: exit code 1 when something does not work, 0 otherwise, warnings included.
pub async fn command(config: Config, json: bool) -> Result<ExitCode, Failure> {
    let running = Client::new(config.admin_socket())
        .get::<serde_json::Value>("/v1/status")
        .await
        .is_ok();
    // The checks block: on names, on disks, on S3.
    let checks = tokio::task::spawn_blocking(move || look(&config, running)).await;
    let checks = checks.map_err(|error| Failure::from_error(&error))?;
    let text = if json {
        serde_json::to_string_pretty(&checks).map_err(|error| Failure::from_error(&error))?
    } else {
        shown(&checks)
    };
    // A reader that has gone away (`berth doctor | head`) is no error.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(if worst(&checks) == Status::Fail {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn look(config: &Config, running: bool) -> Vec<Check> {
    let endpoint = config
        .s3
        .endpoint
        .clone()
        .unwrap_or_else(|| format!("http://{}", config.s3.listen));
    let mut ports: Vec<_> = config
        .edge
        .listen
        .iter()
        .map(|&address| Port {
            purpose: "edge".into(),
            address,
        })
        .collect();
    if config.s3.endpoint.is_none() {
        ports.push(Port {
            purpose: "S3".into(),
            address: config.s3.listen,
        });
    }
    let mut names = vec![config.domain.clone()];
    names.extend(
        Endpoint::parse(&endpoint)
            .map(|endpoint| endpoint.host)
            .filter(|_| config.s3.endpoint.is_some()),
    );
    names.dedup();
    run(&Subject {
        state_dir: config.paths.state.clone(),
        run_dir: config.paths.run.clone(),
        log_dir: config.paths.logs.clone(),
        mountpoint: config.mount.path.clone(),
        running,
        embedded_store: config.s3.endpoint.is_none(),
        network: config.network.egress,
        ports,
        names,
        ca_bundle: std::env::var_os("SSL_CERT_FILE").map(Into::into),
        resolve: &resolve,
        store: &|| ask(&endpoint),
        images: &|| images(config),
    })
}

fn images(config: &Config) -> Vec<ImageState> {
    let store = ImageStore::open(config.images_dir(), config.paths.run.join("images"));
    let check = |name: &str| match &store {
        Err(error) => Err(ImageProblem::Broken(berth_workspace::chain(error))),
        Ok(store) => match store.verify(name) {
            Ok(info) => Ok(format!(
                "{}, as built",
                bytesize::ByteSize::b(info.size).display().iec()
            )),
            Err(error) if error.is_not_found() => Err(ImageProblem::Missing),
            Err(error) => Err(ImageProblem::Broken(berth_workspace::chain(&error))),
        },
    };
    IMAGES
        .iter()
        .map(|&name| ImageState {
            name: name.into(),
            verified: check(name),
        })
        .collect()
}

/// Checks as lines: the state, what was looked at, what was found, and under it how to mend it.
fn shown(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        text.push_str(&format!("{:5} {:width$}  {}\n", check.status, check.name, check.found));
        if let Some(mend) = &check.mend {
            text.push_str(&format!("{:5} {:width$}  to mend: {mend}\n", "", ""));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    text.push_str(&format!(
        "{} checks, {} warnings, {} failures",
        checks.len(),
        count(Status::Warn),
        count(Status::Fail)
    ));
    text
}

/// An S3 endpoint's parts.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    secure: bool,
    host: String,
    port: u16,
}

impl Endpoint {
    fn parse(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let secure = uri.scheme_str()? == "https";
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        Some(Self {
            secure,
            host,
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
        })
    }
}

/// Asks an S3 server anything: its refusal also has the time in it. One that speaks TLS is only connected to, and its time asked
/// for on port 80, where the large providers answer too.
fn ask(endpoint: &str) -> Result<StoreAnswer, String> {
    let endpoint = Endpoint::parse(endpoint).ok_or_else(|| format!("`{endpoint}` is no http or https address"))?;
    let begun = Instant::now();
    let said = |error: io::Error| format!("{} port {}: {error}", endpoint.host, endpoint.port);
    let stream = connect(&endpoint.host, endpoint.port).map_err(said)?;
    let date = if endpoint.secure {
        connect(&endpoint.host, 80)
            .and_then(|stream| date(stream, &endpoint.host))
            .unwrap_or(None)
    } else {
        date(stream, &endpoint.host).map_err(said)?
    };
    Ok(StoreAnswer {
        date,
        received: SystemTime::now(),
        took: begun.elapsed(),
    })
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends one request and takes the `Date` out of the answer's headers.
fn date(mut stream: TcpStream, host: &str) -> io::Result<Option<String>> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // A server that hangs up rudely after its answer has answered all the same.
    let read = stream.take(MOST_HEADERS).read_to_end(&mut answer);
    if answer.is_empty() {
        read?;
    }
    if !answer.starts_with(b"HTTP/1.") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what answers does not speak HTTP",
        ));
    }
    Ok(date_header(&String::from_utf8_lossy(&answer)))
}

fn date_header(answer: &str) -> Option<String> {
    let headers = answer.split("\r\n\r\n").next()?.lines().skip(1);
    headers
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn endpoints_have_the_port_of_their_scheme_unless_they_say_another() {
        let parts = |url: &str| Endpoint::parse(url).map(|found| (found.secure, found.host, found.port));
        assert_eq!(parts("https://s3.example"), Some((true, "s3.example".into(), 443)));
        assert_eq!(parts("http://10.0.0.1:9000/"), Some((false, "10.0.0.1".into(), 9000)));
        assert_eq!(parts("http://[::1]:9000"), Some((false, "::1".into(), 9000)));
        assert_eq!(parts("s3.example"), None);
        assert_eq!(parts(""), None);
    }

    #[test]
    fn the_date_of_a_refusal_is_taken() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream
                .write_all(
                    b"HTTP/1.1 403 Forbidden\r\nserver: x\r\nDATE: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\ndate: no",
                )
                .unwrap();
        });
        let answer = ask(&format!("http://{address}")).unwrap();
        serving.join().unwrap();
        assert_eq!(answer.date.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(
            ask(&format!("http://{address}"))
                .unwrap_err()
                .contains(&address.port().to_string()),
            "nobody is there now"
        );
        assert_eq!(date_header("HTTP/1.1 200 OK\r\n\r\nDate: in the body"), None);
    }

    #[test]
    fn what_is_shown_has_the_way_to_mend_under_what_was_found() {
        let text = shown(&[Check::ok("a", "fine"), Check::fail("long name", "broken", "mend it")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ok    a          fine");
        assert_eq!(lines[1], "FAIL  long name  broken");
        assert_eq!(lines[2], "                 to mend: mend it");
        assert_eq!(lines[3], "2 checks, 0 warnings, 1 failures");
    }
}
