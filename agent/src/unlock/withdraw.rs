//! `latchkey withdraw`: somebody is about to get a shell of the boot framework, and nobody has shown that he may read what
//! was opened automatically.

use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::volume::mapping;

/// Somebody would get a shell beside an open volume.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' was opened automatically and cannot be closed: nobody may get a shell")]
pub struct StillOpen(String);

/// Closes what was opened automatically. What is in use loses its volume key, and whoever uses it gets errors.
///
/// # Errors
/// The first mapping that still stands as it was.
pub fn run(files: &Files) -> Result<(), StillOpen> {
    let runtime = Runtime::of(files);
    let begun = mapping::standing(runtime.begun_automatically());
    let in_use = mapping::close_all(begun.clone());
    let mut still_open = None;
    for name in begun {
        if in_use.contains(&name) {
            if let Err(error) = mapping::cut_off(&name) {
                log::error!("failed to close '{name}': {}", chain(&error));
                still_open.get_or_insert(name);
                continue;
            }
            log::warn!(
                "'{name}', which was opened automatically, is cut off before anybody gets a shell, for it is in use: \
                 'latchkey=off' on the kernel command line boots by passphrase"
            );
        } else {
            log::warn!(
                "'{name}', which was opened automatically, is closed before anybody gets a shell: 'cryptsetup open' asks \
                 for the passphrase"
            );
        }
        // What bears the name from now on was opened by a person.
        if let Err(error) = runtime.refuse_automatic(&name) {
            log::error!("{}", chain(&error));
        }
    }
    match still_open {
        Some(name) => Err(StillOpen(name)),
        None => Ok(()),
    }
}
