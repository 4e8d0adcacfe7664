//! Looks for secrets in a machine's RAM: as they are, in hex and in base64, whole or any part of 16 bytes.

use std::collections::BTreeMap;
use std::path::Path;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::machine::{Machine, MachineError};

/// Bytes of the shortest part of a form that is looked for: chance finds none of them.
const WINDOW: usize = 16;

/// Looks for any number of secrets at once.
pub struct Search {
    names: Vec<String>,
    /// To which of `names` a pattern belongs.
    owners: Vec<usize>,
    patterns: AhoCorasick,
}

impl Search {
    /// A search for `secrets`, name and bytes each; several may bear one name.
    ///
    /// # Panics
    /// If a secret is shorter than 16 bytes, or there are too many of them.
    pub fn of(secrets: &[(String, Vec<u8>)]) -> Self {
        let mut names: Vec<String> = Vec::new();
        let (mut owners, mut windows) = (Vec::new(), Vec::new());
        for (name, secret) in secrets {
            assert!(
                secret.len() >= WINDOW,
                "'{name}' is too short to be looked for"
            );
            let owner = names.iter().position(|known| known == name);
            let owner = owner.unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            });
            for form in forms(secret) {
                for window in form.windows(WINDOW) {
                    windows.push(window.to_vec());
                    owners.push(owner);
                }
            }
        }
        let patterns = AhoCorasick::new(&windows).expect("a few thousand short patterns");
        Self {
            names,
            owners,
            patterns,
        }
    }

    /// The secrets of which something is in `memory`, and in how many places.
    pub fn finds(&self, memory: &[u8]) -> BTreeMap<String, usize> {
        let mut finds = BTreeMap::new();
        for (name, _) in self.places(memory) {
            *finds.entry(name.to_owned()).or_default() += 1;
        }
        finds
    }

    /// Whose part is found, and at which byte of `memory`.
    pub fn places<'a>(&'a self, memory: &'a [u8]) -> impl Iterator<Item = (&'a str, usize)> {
        self.patterns.find_iter(memory).map(|find| {
            let owner = self.owners[find.pattern().as_usize()];
            (self.names[owner].as_str(), find.start())
        })
    }
}

/// The texts in which a byte string may lie in memory. Base64 depends on where in a larger text it begins.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
    ];
    for before in 0..3 {
        let mut text = vec![0; before];
        text.extend(secret);
        // Whole groups of the secret alone, without the bytes around it.
        let begin = if before == 0 { 0 } else { 4 };
        for encoded in [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            let end = text.len() / 3 * 4;
            forms.push(encoded.as_bytes()[begin..end].to_vec());
        }
    }
    forms
}

/// The whole RAM of `machine` at this moment, by way of a file in `folder`.
///
/// # Errors
/// `Qmp` if QEMU cannot dump, `Host` for the file.
pub fn dump(machine: &mut Machine, folder: &Path) -> Result<Vec<u8>, MachineError> {
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
    Ok(ram)
}

/// The 32 bytes at the start of every page that holds nothing else: the form of a secret on a page of its own.
pub fn lone_secrets(memory: &[u8]) -> impl Iterator<Item = [u8; 32]> {
    const PAGE: usize = 4096;
    /// Fewer different bytes are no random 32 bytes.
    const DIFFERENT: usize = 20;
    memory.chunks_exact(PAGE).filter_map(|page| {
        let (secret, rest) = page.split_first_chunk::<32>()?;
        let mut seen = [false; 256];
        secret
            .iter()
            .for_each(|byte| seen[usize::from(*byte)] = true);
        let random = seen.iter().filter(|seen| **seen).count() >= DIFFERENT;
        (random && rest.iter().all(|byte| *byte == 0)).then_some(*secret)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Vec<u8> {
        (0..32u8)
            .map(|byte| byte.wrapping_mul(151) ^ 0x5c)
            .collect()
    }

    fn finds(memory: &[u8]) -> usize {
        let search = Search::of(&[("secret".to_owned(), secret())]);
        search.finds(memory).get("secret").copied().unwrap_or(0)
    }

    #[test]
    fn every_form_and_every_part_is_found() {
        let secret = secret();
        let hex: String = secret.iter().map(|byte| format!("{byte:02X}")).collect();
        for memory in [
            [&[9; 5000], &secret[..], &[9; 50]].concat(),
            [&[9; 77], &secret[3..19], &[9; 50]].concat(),
            [b"key=", &hex.as_bytes()[20..40], b"\n"].concat(),
            [b"key=", &hex.to_lowercase().as_bytes()[7..23], b"\n"].concat(),
        ] {
            assert!(finds(&memory) > 0, "{memory:?}");
        }
        for before in 0..3 {
            for around in [b"", &b"a private key before"[..]] {
                let text = [
                    &around[..around.len() - around.len() % 3],
                    &vec![7; before],
                    &secret,
                    around,
                ]
                .concat();
                assert!(
                    finds(STANDARD_NO_PAD.encode(&text).as_bytes()) > 0,
                    "{before} {around:?}"
                );
                assert!(
                    finds(URL_SAFE_NO_PAD.encode(&text).as_bytes()) > 0,
                    "{before} {around:?}"
                );
            }
        }
    }

    #[test]
    fn less_than_a_part_and_other_bytes_are_not_found() {
        let secret = secret();
        assert_eq!(finds(&secret[..15]), 0);
        let other: Vec<u8> = (0..1_000_000u32)
            .flat_map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes())
            .collect();
        assert_eq!(finds(&other), 0);
    }

    #[test]
    fn a_secret_alone_on_its_page_is_recognised() {
        let secret = secret();
        let mut memory = vec![0; 5 * 4096];
        memory[4096..4128].copy_from_slice(&secret);
        memory[8192..8224].copy_from_slice(&secret);
        memory[9000] = 1;
        memory[12288..12320].fill(7);
        let found: Vec<_> = lone_secrets(&memory).collect();
        assert_eq!(found, [<[u8; 32]>::try_from(&secret[..]).unwrap()]);
    }
}
