//! What is to be known of a volume's device before anything of it is opened: whose its mapping is, and what is bound there.

use std::path::Path;

use latchkey_protocol::envelope::{Bound, PlainSecret, Token};

use super::shown::shown;
use crate::failure::chain;
use crate::files::Files;
use crate::flow::Header;
use crate::volume::binding::{self, At};
use crate::volume::mapping::{self, Holder};
use crate::volume::place::{HeaderPlace, Kind, Place};
use crate::volume::plain;

/// Why no mapping of that name can be made for the volume on `device`: there is one, which somebody else made.
pub fn is_taken(name: &str, device: &Path) -> Option<String> {
    match mapping::holder(name, device) {
        Holder::Nobody => None,
        Holder::Volume => Some("somebody opened it".to_owned()),
        Holder::Other(what) => Some(format!("{what} has its name")),
    }
}

/// What is bound at `place`, and the token that says so.
pub(super) fn look(files: &Files, name: &str, place: &Place) -> (Header, Option<Token>) {
    // Without its binding nothing but LUKS can be opened here, by a typed passphrase neither.
    let broken = |why: String| match place.header {
        HeaderPlace::Attached => Header::Unusable(why),
        HeaderPlace::Detached(_) | HeaderPlace::None(_) => Header::LeftAlone(why),
    };
    let found = match binding::find(files, name, place) {
        Ok(found) => found,
        Err(error) => return (broken(chain(&error)), None),
    };
    let mut problem = None;
    for found in found {
        match found.token {
            Ok(token) => {
                if let At::File(_) = found.at
                    && let Some(why) = is_of_another_kind(place, &token)
                {
                    return (Header::LeftAlone(why), None);
                }
                if let (HeaderPlace::None(options), Bound::Plain(bound)) =
                    (&place.header, &token.bound)
                    && let Err(why) = plain::settings_as_bound(options, bound)
                {
                    return (Header::LeftAlone(why), None);
                }
                return (bound(place, &token), Some(token));
            }
            Err(error) => {
                let why = format!("{}: {error}", found.at);
                problem = Some(match place.luks_header() {
                    Some(_) => Header::Unusable(why),
                    None => Header::LeftAlone(why),
                });
            }
        }
    }
    (problem.unwrap_or(Header::NotBound), None)
}

fn bound(place: &Place, token: &Token) -> Header {
    let envelopes = token.envelopes.iter();
    let envelopes = envelopes.map(|envelope| (envelope.server, envelope.generation));
    let envelopes = envelopes.collect();
    let shown = shown(place, token);
    match &token.bound {
        Bound::Plain(bound) if bound.secret == PlainSecret::VolumeKey => {
            Header::BoundByKey(token.volume, envelopes, shown)
        }
        _ => Header::Bound(token.volume, envelopes, shown),
    }
}

/// Why an envelope file is not of what is at `place`, as when crypttab lost the word `plain`.
fn is_of_another_kind(place: &Place, token: &Token) -> Option<String> {
    let bound = Kind::of_bound(&token.bound);
    match place.identify() {
        Ok((kind, _)) if kind == bound => None,
        Ok((kind, _)) => Some(format!(
            "the volume is {}, bound was {}",
            kind.name(),
            bound.name()
        )),
        Err(error) => Some(format!("{}, bound was {}", chain(&error), bound.name())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use latchkey_protocol::envelope::{BoundLuks1, MachineSecret};

    use super::*;
    use crate::volume::crypttab::{Options, PlainOptions};
    use crate::volume::envelopes;
    use crate::volume::identity::volume_key_id;
    use crate::volume::plain::Settings;
    use crate::volume::testing::{PASSPHRASE, Volume, passphrase, sealed};

    const PLAIN: &str = "plain,cipher=aes-xts-plain64,hash=sha256,size=512";

    /// A machine with noise on a disk, and what it is bound as.
    struct Machine {
        root: tempfile::TempDir,
        disk: tempfile::NamedTempFile,
    }

    impl Machine {
        fn bound(secret: PlainSecret) -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("etc/latchkey")).unwrap();
            let disk = tempfile::NamedTempFile::new().unwrap();
            fs::write(disk.path(), vec![0xa5; 1 << 20]).unwrap();
            let machine = Self { root, disk };
            machine.seal(machine.plain(secret));
            machine
        }

        fn plain(&self, secret: PlainSecret) -> Bound {
            let options: PlainOptions = Options::parse(PLAIN).plain;
            let settings = Settings::of(&options).unwrap();
            let mut context = settings.context(self.disk.path()).unwrap();
            let key = settings.key_of_passphrase(&mut context, PASSPHRASE.as_bytes());
            let key = key.unwrap();
            Bound::Plain(settings.bound(secret, volume_key_id(&key, UUID)))
        }

        fn seal(&self, bound: Bound) {
            let (token, _) = sealed(UUID.to_owned(), bound, &MachineSecret::random().unwrap());
            envelopes::write(&self.files(), "data", &token).unwrap();
        }

        fn files(&self) -> Files {
            Files::under(self.root.path())
        }

        fn look(&self, options: &str, device: &Path) -> Header {
            let place = Place::of(&Options::parse(options), device, Path::new("/"));
            look(&self.files(), "data", &place).0
        }
    }

    const UUID: &str = "7d1f0e5c-2b7e-4a55-9a3c-1b2c3d4e5f60";

    #[track_caller]
    fn assert_left_alone(header: &Header, why: &str) {
        match header {
            Header::LeftAlone(said) => assert!(said.contains(why), "{said}"),
            other => panic!("expected '{why}', got {other:?}"),
        }
    }

    #[test]
    fn a_plain_volume_is_bound_by_its_passphrase_or_by_its_key() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        let header = machine.look(PLAIN, machine.disk.path());
        assert!(matches!(header, Header::Bound(..)), "{header:?}");
        machine.seal(machine.plain(PlainSecret::VolumeKey));
        let header = machine.look(PLAIN, machine.disk.path());
        assert!(matches!(header, Header::BoundByKey(..)), "{header:?}");
    }

    #[test]
    fn a_plain_volume_without_a_readable_envelope_is_left_alone() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        let path = envelopes::path(&machine.files(), "data");
        fs::write(&path, "{").unwrap();
        assert_left_alone(&machine.look(PLAIN, machine.disk.path()), "data.json");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_left_alone(&machine.look(PLAIN, machine.disk.path()), "data.json");
        fs::remove_dir(&path).unwrap();
        let header = machine.look(PLAIN, machine.disk.path());
        assert_eq!(header, Header::NotBound);
    }

    #[test]
    fn a_plain_volume_that_crypttab_calls_otherwise_is_left_alone() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        let header = machine.look("luks", machine.disk.path());
        assert_left_alone(&header, "bound was plain dm-crypt");
        // Somebody made a LUKS1 volume of it: its passphrases are the native unlocker's.
        let luks1 = Volume::luks1();
        let header = machine.look("luks", luks1.path());
        assert_left_alone(&header, "the volume is LUKS1, bound was plain dm-crypt");
    }

    #[test]
    fn an_envelope_of_another_kind_leaves_a_plain_volume_alone() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        let luks1 = luks1_facts();
        machine.seal(Bound::Luks1(luks1));
        let header = machine.look(PLAIN, machine.disk.path());
        assert_left_alone(&header, "the volume is plain dm-crypt, bound was LUKS1");
    }

    fn luks1_facts() -> BoundLuks1 {
        use crate::volume::gate::Position;
        use crate::volume::keyslots;
        let volume = Volume::luks1();
        let secret = MachineSecret::random().unwrap();
        keyslots::add_keyslot(volume.path(), 1, &passphrase(PASSPHRASE), &secret).unwrap();
        let facts = keyslots::bound_facts(volume.path(), Position::Attached, 1, &secret);
        match facts.unwrap().bound {
            Bound::Luks1(bound) => bound,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broken_token_in_a_luks_header_leaves_the_prompt() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        let luks2 = Volume::luks2().bind().volume;
        luks2.forge(|json| json["tokens"]["0"]["volume"] = "x".into());
        let header = machine.look("luks", luks2.path());
        assert!(matches!(header, Header::Unusable(_)), "{header:?}");
    }

    #[test]
    fn a_detached_header_that_is_not_there_leaves_the_volume_alone() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        let header = machine.look("luks,header=/absent/header", machine.disk.path());
        assert_left_alone(&header, "/absent/header");
    }

    #[test]
    fn a_plain_volume_that_crypttab_would_open_otherwise_is_left_alone() {
        let machine = Machine::bound(PlainSecret::Passphrase);
        for (from, to, why) in [
            ("aes-xts", "twofish-xts", "cipher="),
            ("sha256", "sha512", "hash="),
            ("size=512", "size=256", "size="),
            ("size=512", "size=512,offset=1", "offset="),
            (",size=512", "", "size="),
        ] {
            let header = machine.look(&PLAIN.replace(from, to), machine.disk.path());
            assert_left_alone(&header, why);
        }
    }
}
