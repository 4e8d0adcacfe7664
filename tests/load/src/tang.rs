//! tangd(8) from Debian, started for each connection as systemd does it for `tangd@.service`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Failure;
use crate::child::{self, Started};
use crate::wire;

const TANGD: &str = "/usr/libexec/tangd";
const KEYGEN: &str = "/usr/libexec/tangd-keygen";

/// A running tangd and a client of it.
pub struct Tang {
    address: SocketAddr,
    /// A recovery as clevis(1) sends it.
    request: Vec<u8>,
    /// The point that comes back.
    expected: Value,
    _server: Started,
}

impl Tang {
    /// Makes keys in `folder` with tang's own tool, and starts the acceptor.
    pub fn start(folder: &Path) -> Result<Self, Failure> {
        let keys = folder.join("keys");
        std::fs::create_dir_all(&keys)?;
        let mut command = Command::new(KEYGEN);
        command.arg(&keys);
        child::run("tangd-keygen", command)?;
        let exchange = exchange_key(&keys)?;
        let thumbprint = exchange.file_stem().ok_or("a key without a name")?;
        let path = format!("/rec/{}", thumbprint.to_string_lossy());
        // Any point of the curve does: clevis sends a blinded one. Ours is another key's.
        let point = public_key(&jose(&["jwk", "gen", "-i", r#"{"alg":"ECMR"}"#])?);

        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, wire::free_port()?));
        let mut command = Command::new("systemd-socket-activate");
        command.args(["--accept", "--inetd", "--listen"]);
        command.arg(address.to_string()).arg(TANGD).arg(&keys);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Started::new("systemd-socket-activate", command)?;
        server.wait_for(address)?;
        // What the same operation gives without a server.
        let shown = serde_json::to_string(&point)?;
        let remote = folder.join("point.jwk");
        std::fs::write(&remote, &shown)?;
        let (local, remote) = (path_text(&exchange)?, path_text(&remote)?);
        let expected = jose(&["jwk", "exc", "-l", local, "-r", remote])?;
        Ok(Self {
            address,
            request: wire::post(&path, shown.as_bytes()),
            expected,
            _server: server,
        })
    }

    /// One recovery on a new connection.
    pub async fn recover(&self, number: usize) -> Result<(), Failure> {
        let mut stream = wire::connect(number, self.address).await?;
        let (status, body) = wire::http(&mut stream, &self.request).await?;
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|error| format!("tangd answers {status}: {error}"))?;
        match answer["x"] == self.expected["x"] && answer["y"] == self.expected["y"] {
            true => Ok(()),
            false => Err(format!("tangd sent another point: {status}").into()),
        }
    }
}

/// The key in `folder` that recovers; its file has its thumbprint for a name.
fn exchange_key(folder: &Path) -> Result<PathBuf, Failure> {
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        let key: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        if key["alg"] == "ECMR" {
            return Ok(path);
        }
    }
    Err("tangd-keygen made no exchange key".into())
}

fn public_key(key: &Value) -> Value {
    let mut public = key.clone();
    if let Some(fields) = public.as_object_mut() {
        fields.remove("d");
    }
    public
}

fn path_text(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .ok_or_else(|| "the folder's name is no text".into())
}

fn jose(arguments: &[&str]) -> Result<Value, Failure> {
    let output = Command::new("jose").args(arguments).output()?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let text = String::from_utf8_lossy(&output.stderr);
        format!("jose {}: {error} {}", arguments[1], text.trim()).into()
    })
}
