//! `latchkey withdraw`: somebody is about to get a shell of the boot framework, and nobody has shown that he may read what
//! was opened automatically.

use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::volume::mapping;

/// Closes what was opened automatically, and suspends what is in use, which wipes its volume key from the kernel: before
/// anybody gets a shell. A passphrase opens or resumes it.
pub fn run(files: &Files) {
    for name in mapping::standing(Runtime::of(files).begun_automatically()) {
        match mapping::close(&name).or_else(|_| mapping::suspend(&name)) {
            Ok(()) => log::warn!(
                "'{name}', which was opened automatically, is closed before anybody gets a shell: 'cryptsetup open', or \
                 'cryptsetup luksResume' if it is in use, asks for the passphrase"
            ),
            Err(error) => log::error!("failed to close '{name}': {}", chain(&error)),
        }
    }
}
