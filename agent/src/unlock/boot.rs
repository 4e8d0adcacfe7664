//! The facts of this boot: kernel command line, image, kernel.

use std::path::Path;

use latchkey_protocol::encoding::{Bytes, unhex};
use latchkey_protocol::wire::{BootFacts, Text};
use serde::{Deserialize, Deserializer};
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
    /// Tells it from every other image: 32 random bytes, 64 hexadecimal digits. The running machine announces it.
    #[serde(default, deserialize_with = "build_id")]
    pub build_id: Option<Bytes<32>>,
}

/// What is known of this boot before anything is done.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The kernel command line.
    pub command_line: KernelCommandLine,
    /// The same, as the kernel gave it.
    pub command_line_text: String,
    /// Whether another kernel crashed, and this one came to write the dump.
    pub is_of_crash_kernel: bool,
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
            is_of_crash_kernel: files.path("/proc/vmcore").exists(),
        }
    }

    /// Whether the agent is to do nothing: `latchkey=off`, and a crash kernel (Documentation/admin-guide/kdump), which comes to
    /// write a dump and may have the image of the ordinary boot.
    pub fn is_switched_off(&self) -> bool {
        self.command_line.is_switched_off() || self.is_of_crash_kernel
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
            image: self.image.as_ref().ok().and_then(|image| image.build_id),
            header: None, // none was read yet
        }
    }
}

fn build_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes<32>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let id =
        unhex(&text).ok_or_else(|| serde::de::Error::custom("'build-id' is no such number"))?;
    Ok(Some(Bytes(id)))
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
        assert_eq!(boot.facts().image, None, "an older image has none");
    }

    #[test]
    fn a_crash_kernel_opens_nothing() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        assert!(!Boot::read(&files).is_switched_off());
        std::fs::create_dir(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/vmcore"), "").unwrap();
        assert!(Boot::read(&files).is_switched_off());
    }

    #[test]
    fn the_image_says_which_build_it_is() {
        let image = format!("{IMAGE}build-id = \"{}\"\n", "0f".repeat(32));
        let boot = boot("quiet", &image);
        assert_eq!(boot.facts().image, Some(Bytes([0x0f; 32])));
    }

    #[test]
    fn a_shell_or_an_unreadable_image_only_prompts() {
        for (command_line, image, word) in [
            ("break=mount", IMAGE, "break=mount"),
            ("init=/bin/sh", IMAGE, "init=/bin/sh"),
            ("quiet", "", "built"),
            (
                "quiet",
                "built = 1\ninit = \"/sbin/init\"\nbuild-id = \"0F\"",
                "build-id",
            ),
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
