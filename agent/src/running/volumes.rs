//! The bound volumes of this machine, as their headers have them.

use std::path::{Path, PathBuf};

use latchkey_protocol::ServerId;
use latchkey_protocol::envelope::{self, Token};
use latchkey_protocol::tickets::Tickets;

use crate::commands::target::read_crypttab;
use crate::failure::chain;
use crate::files::{Files, FilesError};
use crate::volume::crypttab::{Entry, Key};
use crate::volume::header::{self, HeaderCopy, HeaderError};
use crate::volume::place::{HeaderPlace, Place};
use crate::volume::{tickets, tokens};

/// A bound volume whose LUKS2 header stands in front of its data: no other has room for tickets.
#[derive(Debug)]
pub struct Bound {
    /// As crypttab calls it.
    pub name: String,
    /// The encrypted device.
    pub device: PathBuf,
    /// What its token says.
    pub token: Token,
    /// Its tickets.
    pub tickets: Tickets,
}

impl Bound {
    /// Whether it has an envelope of `server`.
    pub fn is_of(&self, server: ServerId) -> bool {
        self.token.envelope_of(server).is_some()
    }

    /// The key servers that it has an envelope of.
    pub fn servers(&self) -> Vec<ServerId> {
        let servers = self.token.envelopes.iter();
        servers.map(|envelope| envelope.server).collect()
    }
}

/// The bound volumes of crypttab that boot opens without a key file, each once. What cannot be read is left out,
/// and what crypttab says to be of another kind than LUKS2 with its header in front, whatever stands there.
///
/// # Errors
/// crypttab cannot be read.
pub fn bound(files: &Files) -> Result<Vec<Bound>, FilesError> {
    let mut found: Vec<Bound> = Vec::new();
    for entry in read_crypttab(files)? {
        if entry.key != Key::None {
            continue; // latchkey does not open it
        }
        if let Some(bound) = read(files, &entry)
            && !found
                .iter()
                .any(|one| one.token.volume == bound.token.volume)
        {
            found.push(bound);
        }
    }
    Ok(found)
}

fn read(files: &Files, entry: &Entry) -> Option<Bound> {
    let name = &entry.name;
    let place = match Place::of_entry(entry, files) {
        Ok(place) => place?,
        Err(error) => {
            log::warn!("'{name}': {error}");
            return None;
        }
    };
    if place.header != HeaderPlace::Attached {
        return None;
    }
    // The device itself is written to.
    let device = place.device.canonicalize().unwrap_or(place.device);
    let header = match read_whole(&device) {
        Ok(header) => header,
        Err(HeaderError::NotLuks2(_)) => return None,
        Err(error) => {
            log::warn!("'{name}': {}", chain(&error));
            return None;
        }
    };
    let tokens = tokens::find_in(header.json());
    let token = tokens.into_iter().find_map(|found| found.token.ok())?;
    if !matches!(token.bound, envelope::Bound::Luks2(_)) {
        return None;
    }
    Some(Bound {
        name: name.clone(),
        tickets: tickets::find_in(header.json(), token.volume),
        device,
        token,
    })
}

/// The header, if what will be written to is that one and not merely the rest of it.
fn read_whole(device: &Path) -> Result<HeaderCopy, HeaderError> {
    let header = HeaderCopy::read(device)?;
    header::require_primary(device)?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;
    use crate::volume::keyslots::{self, KeyslotError};
    use crate::volume::testing::{BoundVolume, PASSPHRASE, Volume, passphrase, sealed};
    use crate::volume::tokens::TokenError;

    /// How many bound volumes the service sees where crypttab says `options` of `volume`.
    fn seen(volume: &Volume, options: &str) -> usize {
        let root = tempfile::tempdir().unwrap();
        for folder in ["etc", "dev"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        symlink(volume.path(), root.path().join("dev/data")).unwrap();
        let files = Files::under(root.path());
        fs::write(files.crypttab(), format!("data /dev/data none {options}\n")).unwrap();
        bound(&files).unwrap().len()
    }

    #[test]
    fn only_luks2_with_its_header_in_front_is_the_service_s_to_write_to() {
        let bound = Volume::luks2().bind();
        assert_eq!(seen(&bound.volume, "luks"), 1);
        for other in [
            "plain",
            "plain,cipher=aes-xts-plain64,hash=sha256,size=512",
            "luks,header=/boot/header",
        ] {
            assert_eq!(seen(&bound.volume, other), 0, "{other}");
        }
    }

    #[test]
    fn a_token_of_another_kind_of_volume_is_none_of_the_service() {
        let BoundVolume {
            volume,
            secret,
            token,
            token_id,
            ..
        } = Volume::luks2().bind();
        let envelope::Bound::Luks2(facts) = token.bound else {
            panic!("{:?}", token.bound);
        };
        let (other, _) = sealed(token.uuid, envelope::Bound::DetachedLuks2(facts), &secret);
        tokens::replace(volume.path(), token_id, &other).unwrap();
        assert_eq!(seen(&volume, "luks"), 0);
    }

    #[test]
    fn what_was_written_over_a_bound_volume_is_not_written_over_again() {
        let bound = Volume::luks2().bind();
        let path = bound.volume.path();
        let whole = bound.volume.metadata();
        let write = |at: u64, bytes: &[u8]| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(bytes, at).unwrap();
        };
        let others: &[(u64, &[u8])] = &[
            (0, &[0; 6]),                // as wipefs(8) leaves it
            (512, b"LABELONE"),          // LVM
            (1080, b"\x53\xef"),         // ext4
            (4096, b"\xfc\x4e\x2b\xa9"), // md
            (168, b"another uuid"),
        ];
        for (at, other) in others {
            write(*at, other);
            let before = fs::read(path).unwrap();
            assert_eq!(seen(&bound.volume, "luks"), 0);
            for result in [
                tickets::write(path, &Tickets::none(bound.token.volume)),
                tokens::remove(path, bound.token_id),
                tokens::replace(path, bound.token_id, &bound.token),
            ] {
                assert!(
                    matches!(result, Err(TokenError::Header(HeaderError::NoPrimary(_)))),
                    "{result:?}"
                );
            }
            for result in [
                keyslots::add_keyslot(path, 5, &passphrase(PASSPHRASE), &bound.secret),
                keyslots::destroy_keyslot(path, 1, Some(1)),
            ] {
                assert!(
                    matches!(result, Err(KeyslotError::Header(HeaderError::NoPrimary(_)))),
                    "{result:?}"
                );
            }
            assert!(fs::read(path).unwrap() == before, "the device was changed");
            bound.volume.restore(&whole);
        }
        assert_eq!(seen(&bound.volume, "luks"), 1);
    }

    #[test]
    fn a_header_that_a_power_cut_left_half_written_is_written_to() {
        let bound = Volume::luks2().bind();
        let path = bound.volume.path();
        for (at, length) in [(448, 64), (5000, 100)] {
            bound.volume.wipe(at, length);
            assert_eq!(seen(&bound.volume, "luks"), 1);
            tickets::write(path, &Tickets::none(bound.token.volume)).unwrap();
            let metadata = bound.volume.metadata();
            assert!(
                metadata[at as usize..][..length]
                    .iter()
                    .any(|byte| *byte != 0)
            );
        }
    }
}
