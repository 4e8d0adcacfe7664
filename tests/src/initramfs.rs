//! Files added to an initramfs from outside, to act in the middle of a boot: the kernel unpacks archives that stand
//! one after the other, and a later file replaces an earlier one.
//!
//! Format: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst` ("newc").

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::flavour::Framework;
use crate::machine::BootFiles;
use crate::tool::{self, ToolError};

/// Shell lines in this file are run by initramfs-tools' init at its very start, by that same shell.
pub const START: &str = "conf/conf.d/rig";

/// Where shell lines of an initramfs' own shell are run at its very start. On dracut there is no grep and no pidof.
pub fn script_at_start(framework: Framework) -> &'static str {
    match framework {
        Framework::InitramfsTools => START,
        Framework::DracutSystemd | Framework::DracutScript => "lib/dracut/hooks/cmdline/00-rig.sh",
    }
}

/// Shell lines for [`script_at_start`] that run `script` when the agent's prompt stands; `$agent` is its process id.
pub fn script_at_prompt(framework: Framework, script: &str) -> String {
    let stands = match framework {
        Framework::DracutSystemd => "ls /run/systemd/ask-password/ask.latchkey-* >/dev/null 2>&1",
        Framework::InitramfsTools | Framework::DracutScript => "askpass_runs",
    };
    format!(
        r#"(
    askpass_runs() {{ for one in /proc/[0-9]*; do case "$(readlink $one/exe)" in */askpass) return 0;; esac; done; return 1; }}
    until [ -s /run/latchkey/agent.pid ] && {stands}; do sleep 1; done
    read -r agent </run/latchkey/agent.pid
{script}
) </dev/null >/dev/null 2>&1 &
"#
    )
}

/// A file by which shell lines are run when the agent has gone and before the root is mounted, and what has to be run
/// at the start for that.
pub fn script_after_agent(framework: Framework, script: &str) -> (AddedFile, &'static str) {
    match framework {
        // Next after local-top/latchkey.
        Framework::InitramfsTools => {
            let content = format!("#!/bin/sh\n[ \"$1\" = prereqs ] || {{\n{script}}}\n");
            let enlist = r#"sed -i '\,/latchkey ,a /scripts/local-top/rig "$@"' /scripts/local-top/ORDER
"#;
            (("scripts/local-top/rig", content), enlist)
        }
        Framework::DracutSystemd | Framework::DracutScript => {
            let path = "lib/dracut/hooks/pre-mount/00-rig.sh";
            ((path, script.to_owned()), "")
        }
    }
}

/// Path and content of a file for [`BootFiles::with_files`].
pub type AddedFile = (&'static str, String);

impl BootFiles {
    /// The same kernel with an initramfs, left in `folder`, that also holds `files` (path and content). Their folders
    /// must be in it already.
    ///
    /// # Errors
    /// The initramfs cannot be copied.
    pub fn with_files(&self, folder: &Path, files: &[(&str, &[u8])]) -> io::Result<Self> {
        let mut image = fs::read(&self.initramfs)?;
        pad(&mut image);
        image.extend(archive(files));
        let initramfs = folder.join("initrd-with-files.img");
        fs::write(&initramfs, image)?;
        Ok(Self {
            kernel: self.kernel.clone(),
            initramfs,
        })
    }
}

/// What an initramfs weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Bytes as update-initramfs(8) writes it with Debian's own settings (`zstd -q -9`).
    pub compressed: usize,
    /// Bytes of the archive in it.
    pub content: usize,
    /// Members of the archive: files, folders, links.
    pub members: usize,
}

impl BootFiles {
    /// Weighs the initramfs, whatever level it was compressed with.
    ///
    /// # Errors
    /// `Tool` if zstd fails.
    pub fn weigh(&self) -> Result<Weight, ToolError> {
        let content = tool::run(Command::new("zstd").arg("-dcq").arg(&self.initramfs))?;
        let compressed =
            tool::run_with_input(Command::new("zstd").args(["-q", "-9", "-c"]), &content)?;
        Ok(Weight {
            compressed: compressed.len(),
            content: content.len(),
            members: memchr::memmem::find_iter(&content, MAGIC).count() - 1,
        })
    }
}

/// What each member begins with. The last one only ends the archive.
const MAGIC: &[u8] = b"070701";

/// A newc archive of regular files, owned by root and executable.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (number, (path, content)) in (1..).zip(files) {
        member(&mut archive, number, REGULAR, path, content);
    }
    member(&mut archive, 0, 0, "TRAILER!!!", b"");
    archive
}

const REGULAR: usize = 0o100_755;

fn member(archive: &mut Vec<u8>, number: usize, mode: usize, name: &str, content: &[u8]) {
    // inode, mode, owner, group, links, time, size, four device numbers, name with its zero byte, checksum
    let links = 1;
    let size = content.len();
    let fields = [
        number,
        mode,
        0,
        0,
        links,
        0,
        size,
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend(MAGIC);
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_on_multiples_of_four_and_the_trailer_ends_them() {
        let archive = archive(&[("conf/a", b"hello"), ("b", b"")]);
        let text = String::from_utf8(archive).unwrap();
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 3, "{text:?}");
        assert!(starts.iter().all(|start| start % 4 == 0), "{starts:?}");
        assert_eq!(&text[54..62], "00000005", "the size of the first file");
        assert_eq!(&text[94..102], "00000007", "its name with the zero byte");
        assert_eq!(&text[110..117], "conf/a\0");
        assert_eq!(&text[120..128], "hello\0\0\0", "after the padded name");
        assert!(text[starts[2]..].contains("TRAILER!!!\0"));
    }

    #[test]
    fn the_first_image_is_padded_before_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let files = BootFiles::in_folder(folder.path());
        fs::write(&files.initramfs, b"image").unwrap();
        let more = files
            .with_files(folder.path(), &[(START, b"true")])
            .unwrap();
        let image = fs::read(&more.initramfs).unwrap();
        assert_eq!(&image[..14], b"image\x00\x00\x00070701");
        assert_eq!(more.kernel, files.kernel);
    }
}
