//! Looks for secrets in a machine's RAM.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::machine::{Machine, MachineError};

/// A byte string that should or should not be in memory.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// What it is.
    pub name: String,
    bytes: Vec<u8>,
}

impl Pattern {
    /// These bytes as they are.
    pub fn raw(name: &str, bytes: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            bytes: bytes.to_owned(),
        }
    }

    /// A private key in PEM: its base64 lines, and both halves of the seed inside.
    ///
    /// # Panics
    /// If `pem` is no PEM of a PKCS#8 Ed25519 key.
    pub fn private_key(pem: &str) -> Vec<Self> {
        let base64: String = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let der = STANDARD.decode(base64.trim()).expect("the boot key is PEM");
        // RFC 8410 §7: version, algorithm, then the seed as an OCTET STRING in an OCTET STRING at byte 16.
        let seed = &der[16..48];
        let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        vec![
            Self::raw("boot key, first half", &seed[..16]),
            Self::raw("boot key, second half", &seed[16..]),
            Self::raw("boot key in hex", &hex.as_bytes()[..32]),
            // The first 16 bytes of a PKCS#8 Ed25519 key are the same in all of them: 22 of its base64 digits.
            Self::raw("boot key in base64", &base64.as_bytes()[22..54]),
        ]
    }
}

/// Dumps the whole RAM of `machine` to a file in `folder` and counts each pattern in it.
///
/// # Errors
/// `Qmp` if QEMU cannot dump, `Host` for the file.
pub fn count(
    machine: &mut Machine,
    folder: &Path,
    patterns: &[Pattern],
) -> Result<Vec<usize>, MachineError> {
    let path = folder.join("ram");
    let size = machine
        .qmp
        .execute("query-memory-size-summary", json!({}))?["base-memory"]
        .clone();
    machine.qmp.execute("stop", json!({}))?;
    let dump = json!({ "val": 0, "size": size, "filename": path });
    machine.qmp.execute("pmemsave", dump)?;
    machine.qmp.execute("cont", json!({}))?;
    let ram = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    Ok(patterns
        .iter()
        .map(|pattern| memchr::memmem::find_iter(&ram, &pattern.bytes).count())
        .collect())
}
