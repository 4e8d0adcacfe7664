//! What `latchkey bind --json` prints: one document, for programs that set machines up.

use std::io::{self, Write};
use std::path::Path;

use latchkey_protocol::{ClientName, ServerId, VolumeId};
use serde::Serialize;

use super::Binding;
use crate::commands::target::Target;

/// A volume that was bound.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    /// The mapping.
    name: &'a str,
    device: &'a Path,
    /// Such as `LUKS2`.
    kind: &'static str,
    /// In the header; of a plain volume that of its binding.
    uuid: &'a str,
    /// Its name at the key servers.
    volume: VolumeId,
    /// The keyslot that holds the machine secret; a plain volume has none.
    keyslot: Option<u32>,
    servers: Vec<Server<'a>>,
    /// The header from before.
    header_backup: Option<&'a Path>,
    /// What was written into crypttab, if it was.
    crypttab_line: Option<&'a str>,
}

#[derive(Serialize)]
struct Server<'a> {
    id: ServerId,
    client: &'a ClientName,
    policy: &'a str,
}

/// Prints it to stdout.
pub(super) fn print(target: &Target, binding: &Binding) -> io::Result<()> {
    let report = Report {
        name: &target.name,
        device: &target.device,
        kind: target.kind.name(),
        uuid: &target.uuid,
        volume: binding.volume,
        keyslot: binding.keyslot,
        servers: binding
            .servers
            .iter()
            .map(|one| Server {
                id: one.server,
                client: &one.client,
                policy: &one.policy,
            })
            .collect(),
        header_backup: binding.backup.as_deref(),
        crypttab_line: binding.line.as_ref().map(|(line, _)| line.as_str()),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &report)?;
    writeln!(out)
}
