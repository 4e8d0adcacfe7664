//! What `make install` puts in place: laid out once in a folder, carried into guests, and run on the host.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Key;
use crate::tool::{self, ToolError};

/// Names a folder with an installed tree in the environment; without it `make install` makes one.
pub const TREE_VARIABLE: &str = "LATCHKEY_TEST_TREE";

/// The tree could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum ProductError {
    /// `make install` or tar failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file of it cannot be read.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Builds the agent as `make dist` does, but without any wiping, into `folder`: the control of the memory search.
///
/// # Errors
/// `Tool` if cargo fails.
pub fn control_build(folder: &Path) -> Result<PathBuf, ProductError> {
    let built = folder.join("control");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(checkout())
        .args(["build", "--locked", "--quiet"]);
    cargo.args([
        "--profile",
        "agent",
        "--package",
        "latchkey",
        "--bin",
        "latchkey",
    ]);
    cargo.args(["--features", "without-wiping", "--config"]);
    // The product's own place keeps the product.
    cargo.arg(format!("build.build-dir='{}'", target().display()));
    cargo.arg("--target-dir").arg(&built);
    tool::run(&mut cargo)?;
    Ok(built.join("x86_64-unknown-linux-gnu/agent/latchkey"))
}

/// What `make dist` says of a binary.
///
/// # Errors
/// `Tool` if it refuses it.
pub fn measure(binary: &Path) -> Result<(), ProductError> {
    let mut measure = Command::new(checkout().join("native/measure"));
    tool::run(
        measure
            .arg(binary)
            .arg(checkout().join("initramfs-tools-hook")),
    )?;
    Ok(())
}

fn checkout() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Where cargo builds, as the Makefile has it.
fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => target.into(),
        None => checkout().join("target"),
    }
}

/// An installed tree.
#[derive(Debug, Clone)]
pub struct Product {
    tree: PathBuf,
}

impl Product {
    /// The tree that the environment names, else a fresh one in `folder` by `make install`.
    ///
    /// # Errors
    /// `Tool` if make fails.
    pub fn install(folder: &Path) -> Result<Self, ProductError> {
        if let Some(tree) = std::env::var_os(TREE_VARIABLE).filter(|tree| !tree.is_empty()) {
            return Ok(Self { tree: tree.into() });
        }
        let tree = folder.join("installed");
        let mut make = Command::new("make");
        make.arg("--directory")
            .arg(checkout())
            .arg("install")
            .arg(format!("DESTDIR={}", tree.display()));
        // Flags of a make that runs these tests are not for this one.
        make.env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .env_remove("MFLAGS");
        tool::run(&mut make)?;
        Ok(Self { tree })
    }

    /// The key server's program.
    pub fn latchkeyd(&self) -> PathBuf {
        self.tree.join("usr/sbin/latchkeyd")
    }

    /// Adds every file's path, mode and content to a cache key; texts for people, which change nothing, are left out.
    ///
    /// # Errors
    /// `File` if one cannot be read.
    pub fn add_to(&self, mut key: Key) -> Result<Key, ProductError> {
        let mut pending = vec![self.tree.clone()];
        while let Some(path) = pending.pop() {
            let at = |source| ProductError::File {
                path: path.clone(),
                source,
            };
            let kind = fs::symlink_metadata(&path).map_err(at)?;
            if kind.is_dir() {
                if [Some("doc"), Some("man")].contains(&path.file_name().and_then(OsStr::to_str)) {
                    continue;
                }
                let mut entries: Vec<_> = fs::read_dir(&path)
                    .map_err(at)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<_, _>>()
                    .map_err(at)?;
                entries.sort();
                pending.extend(entries);
                continue;
            }
            let content = if kind.is_symlink() {
                fs::read_link(&path)
                    .map_err(at)?
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).map_err(at)?
            };
            let name = path.strip_prefix(&self.tree).unwrap_or(&path);
            key = key.with(
                &format!("{} {:o}", name.display(), kind.permissions().mode()),
                content,
            );
        }
        Ok(key)
    }

    /// The tree as a tar archive, to be plugged in as a disk.
    ///
    /// # Errors
    /// `Tool` if tar fails.
    pub fn archive(&self, path: &Path) -> Result<(), ProductError> {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--owner=0", "--group=0", "--file"])
            .arg(path)
            .arg("--directory")
            .arg(&self.tree)
            .arg(".");
        tool::run(&mut tar)?;
        Ok(())
    }
}
