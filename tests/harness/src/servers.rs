//! S3 servers that others wrote, each started for one test in a folder and on ports of its own.
//!
//! Garage has no conditional writes and no `a` beside `a/b` in its way; SeaweedFS has conditional writes. Both are installed
//! by `cargo xtask test` ([`crate::tool`]). A server is ended when it is dropped; [`Foreign::kill`] and
//! [`Foreign::launch`] make an outage.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{daemon::free_ports, tool};

/// How long a server may take until it stores objects.
const UP: Duration = Duration::from_secs(60);
/// Throw-away keys in the form that Garage asks for.
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Who wrote the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// Garage, which ignores the preconditions of writes.
    Garage,
    /// SeaweedFS, which keeps them.
    SeaweedFs,
}

/// A server of another make.
#[derive(Debug)]
pub struct Foreign {
    make: Make,
    dir: tempfile::TempDir,
    ports: [u16; 8],
    child: Option<Child>,
}

#[allow(clippy::expect_used, clippy::missing_panics_doc)]
impl Foreign {
    /// Starts a server and waits until it can store objects.
    #[must_use]
    pub fn start(make: Make) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/var/tmp")
            .expect("a folder in /var/tmp");
        let mut server = Self {
            make,
            dir,
            ports: free_ports(),
            child: None,
        };
        server.launch();
        server
    }

    /// Starts the process (again), with what it stored before.
    pub fn launch(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .expect("the server's log");
        let mut command = match self.make {
            Make::Garage => self.garage(),
            Make::SeaweedFs => self.seaweedfs(),
        };
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("its second descriptor"))
            .stderr(log);
        self.child = Some(command.spawn().expect("the server's program runs"));
        let since = Instant::now();
        while !self.is_up() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && since.elapsed() < UP,
                "{:?} did not start ({ended:?}):\n{}",
                self.make,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL: what it had not stored is lost, and nobody answers on its port.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it stores objects: for SeaweedFS, whether a volume takes them.
    fn is_up(&self) -> bool {
        let [s3, second, ..] = self.ports;
        match self.make {
            Make::Garage => answer(s3, "/").is_some(),
            Make::SeaweedFs => {
                let assigned = answer(second, "/dir/assign").is_some_and(|text| text.contains("\"fid\""));
                assigned && answer(s3, "/").is_some()
            }
        }
    }

    fn garage(&self) -> Command {
        let [s3, rpc, admin, ..] = self.ports;
        let dir = self.dir.path().display();
        let config = self.dir.path().join("garage.toml");
        let text = format!(
            "metadata_dir = \"{dir}/meta\"\ndata_dir = \"{dir}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{SECRET_KEY}\"\n\
             [s3_api]\ns3_region = \"{region}\"\napi_bind_addr = \"127.0.0.1:{s3}\"\n\
             [admin]\napi_bind_addr = \"127.0.0.1:{admin}\"\n",
            region = Self::REGION,
        );
        fs::write(&config, text).expect("Garage's configuration is written");
        let mut command = Command::new(tool("garage"));
        command
            .args(["server", "--single-node", "--default-bucket"])
            .env("GARAGE_CONFIG_FILE", config)
            .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
            .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
            .env("GARAGE_DEFAULT_BUCKET", Self::BUCKET)
            .env("RUST_LOG", "garage=warn");
        command
    }

    fn seaweedfs(&self) -> Command {
        let [s3, master, volume, filer, ..] = self.ports;
        let [.., s3_rpc, master_rpc, volume_rpc, filer_rpc] = self.ports;
        let keys = self.dir.path().join("s3.json");
        let identity = format!(
            "{{\"identities\":[{{\"name\":\"test\",\"credentials\":[{{\"accessKey\":\"{ACCESS_KEY}\",\"secretKey\":\
             \"{SECRET_KEY}\"}}],\"actions\":[\"Admin\",\"Read\",\"Write\",\"List\",\"Tagging\"]}}]}}"
        );
        fs::write(&keys, identity).expect("SeaweedFS's keys are written");
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).expect("SeaweedFS's folder is made");
        let mut command = Command::new(tool("weed"));
        command.arg("server").arg(format!("-dir={}", data.display())).args([
            "-ip=127.0.0.1",
            // It would report home.
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=100",
            "-s3",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]);
        for (option, port) in [
            ("s3.port", s3),
            ("master.port", master),
            ("volume.port", volume),
            ("filer.port", filer),
            ("s3.port.grpc", s3_rpc),
            ("master.port.grpc", master_rpc),
            ("volume.port.grpc", volume_rpc),
            ("filer.port.grpc", filer_rpc),
        ] {
            command.arg(format!("-{option}={port}"));
        }
        command.arg(format!("-s3.config={}", keys.display()));
        command
    }

    /// The region it thinks it is in.
    pub const REGION: &str = "us-east-1";
    /// The bucket; SeaweedFS makes it when it is asked to.
    pub const BUCKET: &str = "workspaces";

    /// Who wrote it.
    #[must_use]
    pub fn make(&self) -> Make {
        self.make
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// The public half of its key pair.
    #[must_use]
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The secret half.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The end of what it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.kill();
        // SeaweedFS leaves the sockets of its parts behind.
        for port in self.ports {
            for part in ["master", "volume", "filer", "s3"] {
                let _ = fs::remove_file(Path::new("/tmp").join(format!("seaweedfs-{part}-grpc-{port}.sock")));
                let _ = fs::remove_file(Path::new("/tmp").join(format!("seaweedfs-{part}-{port}.sock")));
            }
        }
    }
}

/// What a server on this host says to a GET without signature, if it says anything.
fn answer(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").ok()?;
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}
