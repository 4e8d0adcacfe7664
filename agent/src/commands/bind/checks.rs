//! What is looked at before anything is changed: what stands against a binding, and what people should know of it.

use std::path::Path;

use latchkey_protocol::wire::OpenedBy;

use super::BindError;
use crate::commands::initramfs::Framework;
use crate::commands::target::Target;
use crate::files::{Files, FilesError};
use crate::opening::fstab;
use crate::server::KeyServer;
use crate::volume::binding::{self, At};
use crate::volume::crypttab::Entry;
use crate::volume::keyslots;
use crate::volume::opened_in::OpenedIn;
use crate::volume::stack::{self, StackError};

/// The agent opens what the framework would open in the initramfs, root and what asks for it, and hands it only to a root that
/// it can look below.
pub(super) fn warn_unless_opened(files: &Files, entry: &Entry, framework: Framework) {
    let root = stack::lies_partly_on(files.root(), Path::new("/"), &entry.name);
    if !framework.takes(&entry.options) && matches!(root, Ok(false)) {
        log::warn!(
            "root does not lie on '{}': unless it is needed for resume or /usr, nothing opens it in the initramfs\n\
             '_netdev,nofail' among its options in crypttab lets the running system open it, '{}' the initramfs;\n\
             unbind it first, and bind it again",
            entry.name,
            framework.word()
        );
    }
    if framework == Framework::Dracut && entry.options.noauto {
        log::warn!(
            "'{}' has the option 'noauto': nothing opens it in the initramfs",
            entry.name
        );
    }
    if let Err(error @ StackError::NoDevice { .. }) = root {
        log::warn!(
            "{error}: a boot that finds such a root closes again what was opened automatically, and does not go on if it \
             cannot\nlatchkey opens no volume for a root on ZFS, bcachefs or the like; take the binding away again if this \
             is one"
        );
    }
}

/// Its line is new, and leaves it to the running system: where nothing tells what root lies on, that may be the wrong place.
pub(super) fn warn_of_root(files: &Files) {
    let root = stack::is_encrypted(files.root(), Path::new("/"));
    if let Err(error @ StackError::NoDevice { .. }) = root {
        log::warn!(
            "{error}, so its line in crypttab leaves this volume to the running system\n\
             latchkey opens no volume for a root on ZFS, bcachefs or the like; take the binding away again if root lies on \
             this one"
        );
    }
}

/// The policy is the only wall then, and has less to stand on.
pub(super) fn warn_if_exposed(opened_by: OpenedBy, entry: &Entry) {
    match opened_by {
        OpenedBy::BootKey | OpenedBy::HostKey => {}
        OpenedBy::ExposedBootKey | OpenedBy::ExposedHostKey => log::warn!(
            "root is not encrypted as far as can be told, so both keys of this machine are in every copy of its disk: only the \
             key server's policy keeps '{}' from whoever has one\n\
             a policy with 'life', 'armed' or 'silent-after' lets a person approve each boot, or refuses it",
            entry.name
        ),
    }
}

/// Nothing that the boot needs may lie on a volume that opens when the boot is over.
pub(super) fn check_mounts(
    files: &Files,
    device: &Path,
    entry: &Entry,
    framework: Framework,
) -> Result<(), BindError> {
    if OpenedIn::of(entry, files.root()) != OpenedIn::RunningSystem || entry.options.noauto {
        return Ok(());
    }
    match fstab::held_up(files, &entry.name)? {
        None => Ok(()),
        Some(held) => Err(BindError::NeededEarly {
            device: device.to_owned(),
            held,
            word: framework.word(),
        }),
    }
}

/// Of what is not there now nobody can tell whether it lies on the volume.
pub(super) fn warn_of_mounts(files: &Files, entry: &Entry) -> Result<(), FilesError> {
    let name = &entry.name;
    for line in fstab::unclear(files, name)? {
        log::warn!(
            "the device of {line} in fstab is not there now: if it lies on '{name}', write '_netdev,nofail' among its options \
             there, or the boot would wait for it in vain"
        );
    }
    Ok(())
}

/// Whether there is no binding yet, nor anything that looks like one.
pub(super) fn check_unbound(
    files: &Files,
    target: &Target,
    servers: &[KeyServer],
) -> Result<(), BindError> {
    let device = target.device.clone();
    let found = binding::find(files, &target.name, &target.place)?;
    let Some(found) = found.into_iter().next() else {
        return Ok(target.check_renamed(files)?);
    };
    let token = match found.token {
        Ok(token) => token,
        Err(error) => {
            let reason = error.to_string();
            return Err(BindError::BrokenToken { device, reason });
        }
    };
    if token.uuid != target.uuid && matches!(found.at, At::File(_)) {
        let reason = format!("{} is of the volume {}", found.at, token.uuid);
        return Err(BindError::BrokenToken { device, reason });
    }
    if let (Some(slot), Some(header)) = (token.bound.keyslot(), target.place.luks_header()) {
        let keyslots = keyslots::list(header)?;
        if !keyslots.iter().any(|one| one.slot == slot) {
            let reason = format!("its keyslot {slot} is gone");
            return Err(BindError::BrokenToken { device, reason });
        }
    }
    let missing: Vec<String> = servers
        .iter()
        .filter(|server| token.envelope_of(server.settings.id).is_none())
        .map(|server| format!("key server {}", server.settings.id.short()))
        .collect();
    if missing.is_empty() {
        let volume = token.volume;
        Err(BindError::AlreadyBound { device, volume })
    } else {
        let servers = missing.join(", ");
        Err(BindError::PartlyBound { device, servers })
    }
}
