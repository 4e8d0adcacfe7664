//! One heartbeat: this machine runs; these images were built on it; that was the end of the audit when it last heard.

use std::fs;

use latchkey_protocol::RequestId;
use latchkey_protocol::wire::{BootReport, HeartbeatAnswer, HeartbeatRequest, Version};

use super::{head, images};
use crate::files::Files;
use crate::server::{KeyServer, Unreachable};

/// Sends a heartbeat to `server`. What the answer shows of the audit, `head::take` judges.
///
/// # Errors
/// [`Unreachable`].
pub async fn beat(files: &Files, server: &KeyServer) -> Result<HeartbeatAnswer, Unreachable> {
    let request = HeartbeatRequest {
        version: Version::default(),
        head: head::load(files, &server.settings.id).map(|kept| kept.head),
        images: images::built(files),
        boot: this_boot(files),
    };
    server
        .ask(async |client, address| client.heartbeat(address, &request).await)
        .await
}

/// The boot session that this system came up by.
fn this_boot(files: &Files) -> Option<RequestId> {
    let report = fs::read(files.report()).ok()?;
    serde_json::from_slice::<BootReport>(&report).ok()?.request
}
