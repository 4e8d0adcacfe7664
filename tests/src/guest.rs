//! The guests: plain VPSs as Debian's installer leaves them, with an encrypted root, GRUB, ifupdown and DHCP, and
//! without latchkey. Each is made once by mmdebstrap and cached under a key of its recipe.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, CacheError, Key};
use crate::disk::{self, DiskError, Parts};
use crate::flavour::{Flavour, Suite};
use crate::layout::Layout;
use crate::lvm;
use crate::tool::{self, ToolError};

/// What opens the root of every guest.
pub const PASSPHRASE: &str = "correct horse battery staple";
/// The mapping's name in `/etc/crypttab`.
pub const MAPPING: &str = "vda2_crypt";
/// The encrypted root's device in the guest.
pub const DEVICE: &str = "/dev/vda2";
/// UUID of the LUKS2 volume.
pub const LUKS_UUID: &str = "5f0c6c1e-9a51-4f67-9c0b-1a7c8e000002";
/// UUID of the root file system in it.
pub const ROOT_UUID: &str = "5f0c6c1e-9a51-4f67-9c0b-1a7c8e000003";
/// UUID of the `/boot` file system.
pub const BOOT_UUID: &str = "5f0c6c1e-9a51-4f67-9c0b-1a7c8e000001";

/// A guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The cache folder cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program of the host failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The disk could not be put together.
    #[error("failed to put the guest's disk together")]
    Disk(#[from] DiskError),
    /// A file of the recipe could not be laid out.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The cached guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// What it is to become: its first initramfs is that of [`Flavour::image`].
    pub flavour: Flavour,
    /// What its second partition holds.
    pub layout: Layout,
    /// What more is installed, if anything.
    pub more: Option<&'static str>,
    /// Its disk, a raw image that nobody writes to.
    pub disk: PathBuf,
    /// Key of the recipe that made it.
    pub key: String,
}

impl Guest {
    /// What its first boot, with nothing changed yet, asks with.
    pub fn first_prompt(&self) -> &'static str {
        self.flavour.image().native_prompt()
    }

    /// What machines that are made from it are called in the cache.
    pub fn name(&self) -> String {
        let name = self.layout.kind(self.flavour.name());
        match self.more {
            Some(more) => format!("{name}-{more}"),
            None => name,
        }
    }
}

/// The guest of a flavour and a layout from the cache; made first if it is not there (two to four minutes).
///
/// # Errors
/// Whatever step of the making failed.
pub fn guest(flavour: Flavour, layout: Layout) -> Result<Guest, GuestError> {
    made(flavour, layout, None, &[])
}

/// The same guest with more packages of Debian, told from others by the name `more`.
///
/// # Errors
/// Whatever step of the making failed.
pub fn guest_with(
    flavour: Flavour,
    more: &'static str,
    packages: &[&str],
) -> Result<Guest, GuestError> {
    made(flavour, Layout::Root, Some(more), packages)
}

fn made(
    flavour: Flavour,
    layout: Layout,
    more: Option<&'static str>,
    packages: &[&str],
) -> Result<Guest, GuestError> {
    let packages = [PACKAGES, own_packages(flavour), layout.packages(), packages].concat();
    let key = || recipe_key(flavour, layout, &packages);
    let kind = layout.kind(flavour.image().name());
    let kind = more.map_or(kind.clone(), |more| format!("{kind}-{more}"));
    let folder = cache::folder_for(&kind, key(), |folder| {
        build(folder, flavour, layout, &packages)
    })?;
    Ok(Guest {
        flavour,
        layout,
        more,
        disk: folder.join(DISK),
        key: key().digits(),
    })
}

const DISK: &str = "disk.raw";

/// Kernel, boot, encryption and network of a small server. The kernel is Debian's for virtual machines: with the one
/// for all hardware, every new initramfs in an emulated guest would take five minutes.
const PACKAGES: &[&str] = &[
    "busybox",
    "cryptsetup",
    "dbus",
    "dmsetup",
    "e2fsprogs",
    "grub-common",
    "grub-pc-bin",
    "ifupdown",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "procps",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// What makes the initramfs, and the DHCP client that the release's installer takes.
fn own_packages(flavour: Flavour) -> &'static [&'static str] {
    match (flavour.suite, flavour.is_dracut()) {
        (Suite::Bookworm, false) => &["cryptsetup-initramfs", "initramfs-tools", "isc-dhcp-client"],
        (Suite::Bookworm, true) => &["dracut", "isc-dhcp-client"],
        (Suite::Trixie, false) => &["cryptsetup-initramfs", "initramfs-tools", "dhcpcd-base"],
        (Suite::Trixie, true) => &["dracut", "systemd-cryptsetup", "dhcpcd-base"],
    }
}

/// Parts of packages that no boot reads.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// The files beside mmdebstrap's own work, by name.
const RECIPE: &[(&str, &str)] = &[
    ("essential.sh", include_str!("../guest/essential.sh")),
    ("customize.sh", include_str!("../guest/customize.sh")),
    ("grub.cfg", include_str!("../guest/grub.cfg")),
    ("init", include_str!("../guest/init")),
    ("channel", include_str!("../guest/channel")),
    ("generator", include_str!("../guest/generator")),
    ("rig-bare.target", include_str!("../guest/rig-bare.target")),
    (
        "rig-bare.service",
        include_str!("../guest/rig-bare.service"),
    ),
    (
        "rig-channel.service",
        include_str!("../guest/rig-channel.service"),
    ),
];

fn recipe_key(flavour: Flavour, layout: Layout, packages: &[&str]) -> Key {
    let mut key = Key::default()
        .with("suite", flavour.suite.codename())
        .with("packages", packages.join(" "))
        .with("left out", LEFT_OUT.join(" "))
        .with(
            "identity",
            [PASSPHRASE, MAPPING, LUKS_UUID, ROOT_UUID, BOOT_UUID].join(" "),
        )
        .with("disk", disk::FORMAT);
    for (name, content) in RECIPE {
        key = key.with(name, content);
    }
    let Some((name, script)) = layout.script() else {
        return key;
    };
    let key = key.with(name, script);
    let key = match layout {
        Layout::Lvm => key.with("lvm", lvm::FORMAT),
        Layout::Root | Layout::Plain | Layout::Clear => key,
    };
    key.with("words", layout.kernel_words())
}

fn build(
    folder: &Path,
    flavour: Flavour,
    layout: Layout,
    packages: &[&str],
) -> Result<(), GuestError> {
    let image = flavour.image();
    eprintln!(
        "making the guest {} (once; a few minutes)",
        layout.kind(image.name())
    );
    let scratch = folder.join("scratch");
    let recipe = scratch.join("recipe");
    fs::create_dir_all(&recipe).map_err(at(&recipe))?;
    for (name, content) in RECIPE.iter().copied().chain(layout.script()) {
        let path = recipe.join(name);
        fs::write(&path, content).map_err(at(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(at(&path))?;
    }
    let tree = scratch.join("tree");
    bootstrap(&recipe, &tree, image, layout, packages)?;
    let parts = Parts {
        tree: &tree,
        layout,
        boot_uuid: BOOT_UUID,
        luks_uuid: LUKS_UUID,
        root_uuid: ROOT_UUID,
        passphrase: PASSPHRASE,
    };
    disk::make(&parts, &scratch, &folder.join(DISK))?;
    fs::remove_dir_all(&scratch).map_err(at(&scratch))
}

fn bootstrap(
    recipe: &Path,
    tree: &Path,
    flavour: Flavour,
    layout: Layout,
    packages: &[&str],
) -> Result<(), GuestError> {
    // Its mounts (/proc, /dev in the tree) live in a namespace of their own: they are gone with it, however it ends.
    let mut mmdebstrap = Command::new("unshare");
    mmdebstrap.args(["--mount", "mmdebstrap"]);
    mmdebstrap.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    mmdebstrap.arg(format!("--include={}", packages.join(",")));
    for pattern in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for option in host_apt_options() {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    let mut hooks = vec![("essential", "essential.sh"), ("customize", "customize.sh")];
    if let Some((script, _)) = layout.script() {
        hooks.insert(1, ("essential", script));
        hooks.push(("customize", script));
    }
    for (hook, script) in hooks {
        mmdebstrap.arg(format!(
            "--{hook}-hook={} \"$1\"",
            recipe.join(script).display()
        ));
    }
    let suite = flavour.suite.codename();
    mmdebstrap.arg(suite).arg(tree).args(sources(suite));
    mmdebstrap.env("RECIPE", recipe).env("MAPPING", MAPPING);
    mmdebstrap.env("KERNEL_WORDS", layout.kernel_words());
    if flavour.is_dracut() {
        // Its kernel hook would look at the devices of the host; customize.sh builds the first image.
        mmdebstrap.env("FRAMEWORK", "dracut").env("INITRD", "No");
    } else {
        mmdebstrap.env("FRAMEWORK", "initramfs-tools");
    }
    mmdebstrap
        .env("ROOT_UUID", LUKS_UUID)
        .env("BOOT_UUID", BOOT_UUID);
    tool::run(&mut mmdebstrap)?;
    Ok(())
}

/// One line per suite, from the mirrors that the host itself uses, else Debian's own.
fn sources(suite: &str) -> Vec<String> {
    let listed = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(CODENAME) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let suites = [
        (suite.to_owned(), "http://deb.debian.org/debian"),
        (format!("{suite}-updates"), "http://deb.debian.org/debian"),
        (
            format!("{suite}-security"),
            "http://deb.debian.org/debian-security",
        ),
    ];
    let mirror = |suite: &str| {
        let wanted = format!("{suite} main ");
        listed
            .lines()
            .find_map(|line| line.strip_prefix(&wanted))
            .map(str::to_owned)
    };
    let line = |(suite, default): (String, &str)| {
        let uri = mirror(&suite).unwrap_or_else(|| default.to_owned());
        format!("deb {uri} {suite} main")
    };
    suites.into_iter().map(line).collect()
}

/// A host that works from a frozen mirror has switched these checks off; the guest comes from the same place.
fn host_apt_options() -> Vec<String> {
    let names = [
        "Acquire::Check-Valid-Until",
        "Acquire::Check-Date",
        "Acquire::http::Proxy",
    ];
    let host = |name: &&str| {
        let output = Command::new("apt-config")
            .args(["shell", "V", name])
            .output()
            .ok()?;
        let value = String::from_utf8(output.stdout).ok()?;
        let value = value
            .trim()
            .strip_prefix("V='")?
            .strip_suffix('\'')?
            .to_owned();
        Some(format!("{name} \"{value}\""))
    };
    names.iter().filter_map(host).collect()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.to_owned();
    |source| GuestError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_has_a_mirror() {
        for suite in [Suite::Bookworm, Suite::Trixie] {
            let lines = sources(suite.codename());
            assert_eq!(lines.len(), 3, "{lines:?}");
            assert!(
                lines.iter().all(|line| line.starts_with("deb http")),
                "{lines:?}"
            );
        }
    }
}
