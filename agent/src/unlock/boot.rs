//! The facts of this boot: kernel command line, image, kernel.

use std::path::Path;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::wire::{BootFacts, Text};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::kernel_command_line::KernelCommandLine;
use crate::files::{self, Files};

/// `/etc/latchkey/image.toml`, written into the image by the hook that built it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Image {
    /// When it was built, Unix seconds: a server certificate that had ended before is refused.
    pub built: u64,
    /// The init program of an ordinary boot.
    pub init: String,
}

/// What is known of this boot before anything is done.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The kernel command line.
    pub command_line: KernelCommandLine,
    /// The same, as the kernel gave it.
    pub command_line_text: String,
    /// The image, or why it says nothing.
    pub image: Result<Image, String>,
}

impl Boot {
    /// Reads the facts; what cannot be read only makes the boot stricter.
    pub fn read(files: &Files) -> Self {
        let command_line_text =
            std::fs::read_to_string(files.path("/proc/cmdline")).unwrap_or_default();
        Self {
            command_line: KernelCommandLine::parse(&command_line_text),
            image: read_image(&files.path("/etc/latchkey/image.toml")),
            command_line_text,
        }
    }

    /// Why nothing may be opened automatically in this boot, if so.
    pub fn forbids_automatic(&self) -> Option<String> {
        match &self.image {
            Err(why) => Some(why.clone()),
            Ok(image) => self
                .command_line
                .asks_for_shell(&image.init)
                .map(|word| format!("the kernel command line has '{word}'")),
        }
    }

    /// What a release request tells of this boot.
    pub fn facts(&self) -> BootFacts {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        BootFacts {
            kernel: Text::cut(&kernel),
            command_line: Bytes(Sha256::digest(self.command_line_text.as_bytes()).into()),
            image_built: self.image.as_ref().map_or(0, |image| image.built),
            image: None,
            header: None,
        }
    }
}

fn read_image(path: &Path) -> Result<Image, String> {
    let text = files::read_text(path).map_err(|error| crate::failure::chain(&error))?;
    toml::from_str(&text).map_err(|error| format!("'{}': {}", path.display(), error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(command_line: &str, image: &str) -> Boot {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        for (path, content) in [
            ("proc/cmdline", command_line),
            ("etc/latchkey/image.toml", image),
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Boot::read(&files)
    }

    const IMAGE: &str = "built = 1800000000\ninit = \"/sbin/init\"\n";

    #[test]
    fn an_ordinary_boot_may_open_automatically() {
        let boot = boot("root=/dev/mapper/a quiet\n", IMAGE);
        assert_eq!(boot.forbids_automatic(), None);
        assert_eq!(boot.facts().image_built, 1_800_000_000);
    }

    #[test]
    fn a_shell_or_an_unreadable_image_only_prompts() {
        for (command_line, image, word) in [
            ("break=mount", IMAGE, "break=mount"),
            ("init=/bin/sh", IMAGE, "init=/bin/sh"),
            ("quiet", "", "built"),
            (
                "quiet",
                "built = 1\ninit = \"/sbin/init\"\nserver = \"evil\"",
                "server",
            ),
        ] {
            let why = boot(command_line, image)
                .forbids_automatic()
                .expect(command_line);
            assert!(why.contains(word), "{why}");
        }
    }
}
