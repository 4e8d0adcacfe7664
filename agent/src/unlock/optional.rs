//! Bound volumes that the boot goes on without.
//!
//! The image says which: `nofail` in crypttab is not enough for it (`latchkey image-optional`). With other frameworks that is all.
//!
//! initramfs-tools knows no `nofail`: it would prompt for such a volume, and a machine with nobody at its console would
//! stand there, with its root open. So what is not open when the agent has done its part is taken out of the initramfs'
//! own crypttab. The running system may still open it, by crypttab(5) of the root.

use std::fs;
use std::io;
use std::path::Path;

use super::volumes::INITRAMFS_TOOLS_CRYPTTAB;
use crate::files::Files;
use crate::flow::Outcome;
use crate::volume::crypttab;
use crate::volume::mapping;

/// In the image: their names, by lines.
const LIST: &str = "/etc/latchkey/optional";

/// Their names; none if the image does not say.
pub fn names(files: &Files) -> Vec<String> {
    let list = fs::read_to_string(files.path(LIST)).unwrap_or_default();
    list.lines().map(str::to_owned).collect()
}

/// Takes the optional volumes that are not open away from the native unlocker; none where the agent did not come to its end.
pub fn leave(files: &Files, outcome: Outcome) {
    if matches!(outcome, Outcome::Stopped | Outcome::NativePrompt) {
        return;
    }
    let mut closed = names(files);
    closed.retain(|name| !mapping::name_is_taken(name));
    match take_out(&files.path(INITRAMFS_TOOLS_CRYPTTAB), &closed) {
        Ok(taken) => {
            for name in taken {
                log::warn!("'{name}' is not open: the boot goes on without it, by 'nofail'");
            }
        }
        Err(error) => {
            log::warn!("what has 'nofail' may be prompted for again: {error}");
        }
    }
}

/// Takes the lines of `names` out of the crypttab at `path`, all at once; returns the names of those that were there.
fn take_out(path: &Path, names: &[String]) -> io::Result<Vec<String>> {
    let table = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let mut taken = Vec::new();
    let mut kept = String::new();
    for line in table.split_inclusive('\n') {
        match crypttab::parse(line).pop() {
            Some(Ok(entry)) if names.contains(&entry.name) => taken.push(entry.name),
            _ => kept += line,
        }
    }
    if !taken.is_empty() {
        let new = path.with_extension("latchkey-new");
        fs::write(&new, kept)?;
        fs::rename(&new, path)?;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "root UUID=a none luks\n# two words\nmy\\040data UUID=b none luks,nofail\nother /dev/c none luks";

    fn left(optional: &str, outcome: Outcome) -> String {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        for (path, content) in [(LIST, optional), (INITRAMFS_TOOLS_CRYPTTAB, TABLE)] {
            let path = files.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        leave(&files, outcome);
        fs::read_to_string(files.path(INITRAMFS_TOOLS_CRYPTTAB)).unwrap()
    }

    #[test]
    fn what_the_boot_goes_on_without_is_not_prompted_for() {
        let without_data = TABLE.replace("my\\040data UUID=b none luks,nofail\n", "");
        for outcome in [
            Outcome::OptionalLeft,
            Outcome::Open,
            Outcome::NothingBound,
            Outcome::DeviceMissing,
        ] {
            assert_eq!(left("my data\nabsent\n", outcome), without_data);
        }
        let one_left = left("my data\nother\n", Outcome::OptionalLeft);
        assert_eq!(one_left, "root UUID=a none luks\n# two words\n");
    }

    #[test]
    fn the_native_prompt_stays_where_the_agent_did_not_do_its_part() {
        assert_eq!(left("", Outcome::OptionalLeft), TABLE);
        for outcome in [Outcome::Stopped, Outcome::NativePrompt] {
            assert_eq!(left("my data\n", outcome), TABLE);
        }
    }

    #[test]
    fn another_framework_has_no_such_file() {
        let root = tempfile::tempdir().unwrap();
        let absent = root.path().join("cryptroot/crypttab");
        assert_eq!(
            take_out(&absent, &["a".to_owned()]).unwrap(),
            Vec::<String>::new()
        );
    }
}
