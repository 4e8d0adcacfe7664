//! libcryptsetup's contexts and what it says when it fails.

use std::io;
use std::path::Path;

use latchkey_secret::{close_on_exec, crypt_log, udev};
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{CryptDevice, CryptInit, Either, LibcryptErr, set_log_callback};

/// libcryptsetup refused; the text is what it said, or the meaning of its errno.
#[derive(Debug, thiserror::Error)]
#[error("libcryptsetup: {text}")]
pub struct CryptError {
    text: String,
    /// The positive errno, where there is one.
    pub errno: Option<i32>,
}

impl CryptError {
    /// The copies of a header in memory are not one and the same header.
    pub(crate) fn of_two_headers() -> Self {
        Self {
            text: "the two copies of the header are two headers".to_owned(),
            errno: None,
        }
    }

    /// Whether somebody else has the device for himself. Of a table that the kernel refuses libcryptsetup gives the reason in
    /// words alone.
    pub(crate) fn is_busy(&self) -> bool {
        let busy = nix::errno::Errno::EBUSY;
        self.is(busy) || self.text.contains(busy.desc())
    }

    /// Whether the errno is `errno`.
    pub fn is(&self, errno: nix::errno::Errno) -> bool {
        self.errno == Some(errno as i32)
    }
}

impl From<LibcryptErr> for CryptError {
    fn from(error: LibcryptErr) -> Self {
        let said = crypt_log::take_errors();
        let (meaning, errno) = match error {
            LibcryptErr::IOError(error) => (meaning(&error), error.raw_os_error()),
            other => (other.to_string(), None),
        };
        let text = if said.is_empty() { meaning } else { said };
        Self { text, errno }
    }
}

/// libcryptsetup's errno values read oddly: EPERM is a wrong passphrase and EINVAL mostly "not such a device".
fn meaning(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc_errno) if libc_errno == nix::errno::Errno::EPERM as i32 => {
            "no keyslot opens with this passphrase".to_owned()
        }
        _ => error.to_string(),
    }
}

/// A context for the header on `device`, not loaded.
pub(crate) fn attached(device: &Path) -> Result<CryptDevice, CryptError> {
    start();
    Ok(CryptInit::init(device)?)
}

/// A context for a header that lies elsewhere than the data, not loaded.
pub(crate) fn detached(header: &Path, data: &Path) -> Result<CryptDevice, CryptError> {
    start();
    Ok(CryptInit::init_with_data_device(Either::Right((
        header, data,
    )))?)
}

/// Loads a header of one format.
pub(crate) fn load(context: &mut CryptDevice, format: EncryptionFormat) -> Result<(), CryptError> {
    Ok(context.context_handle().load::<()>(Some(format), None)?)
}

/// A loaded context for the LUKS2 header on `device`.
pub(crate) fn luks2(device: &Path) -> Result<CryptDevice, CryptError> {
    let mut context = attached(device)?;
    load(&mut context, EncryptionFormat::Luks2)?;
    Ok(context)
}

/// The UUID in a loaded header, lower case with hyphens.
pub(crate) fn uuid(context: &mut CryptDevice) -> Result<String, CryptError> {
    Ok(context.status_handle().get_uuid()?.to_string())
}

/// Before each operation: libcryptsetup's messages come to us, and old ones are forgotten.
pub(crate) fn start() {
    udev::link();
    close_on_exec::link();
    set_log_callback::<()>(Some(crypt_log::receive), None);
    crypt_log::take_errors();
    prepare_locking();
}

/// libcryptsetup locks headers on block devices by files in /run/cryptsetup; an initramfs may lack the directory.
fn prepare_locking() {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .mode(0o700)
        .create("/run/cryptsetup");
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        log::debug!("failed to make '/run/cryptsetup': {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::testing::Volume;
    use super::*;

    #[test]
    fn no_program_inherits_what_libcryptsetup_opens() {
        let volume = Volume::luks2();
        let _context = luks2(volume.path()).unwrap();
        let inherited: Vec<String> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == volume.path()))
            .map(|entry| Path::new("/proc/self/fdinfo").join(entry.file_name()))
            .map(|info| fs::read_to_string(info).unwrap())
            .collect();
        assert!(!inherited.is_empty(), "libcryptsetup keeps the device open");
        for info in inherited {
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            assert_ne!(flags & nix::libc::O_CLOEXEC, 0, "{info}");
        }
    }
}
