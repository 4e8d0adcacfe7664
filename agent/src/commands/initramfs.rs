//! Rebuilding the initramfs after something changed that lies in it, by the tool that this system builds it with.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use crate::files::{self, Files, FilesError, Role};
use crate::volume::crypttab::Options;

/// Whether a command rebuilds the images at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// It does.
    Yes,
    /// `--no-initramfs`: somebody else does.
    No,
}

/// What builds the images of all kernels, so that an older one chosen in the boot menu works too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Builder {
    /// update-initramfs(8).
    InitramfsTools,
    /// dracut(8) under the names that Debian's kernel hook gives the images; these kernels.
    DracutOnDebian(Vec<String>),
    /// dracut(8) under its own names.
    Dracut,
}

/// Whose initramfs this system boots with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framework {
    /// Debian's.
    #[default]
    InitramfsTools,
    /// dracut.
    Dracut,
}

impl Framework {
    /// Of this system: that of [`Builder::of_system`].
    pub fn of_system(files: &Files) -> Self {
        match Builder::of_system(files) {
            Builder::InitramfsTools => Self::InitramfsTools,
            Builder::DracutOnDebian(_) | Builder::Dracut => Self::Dracut,
        }
    }

    /// The other one, as after a switch of the system.
    pub fn other(self) -> Self {
        match self {
            Self::InitramfsTools => Self::Dracut,
            Self::Dracut => Self::InitramfsTools,
        }
    }

    /// The option of crypttab(5) that takes a line into the image.
    pub fn word(self) -> &'static str {
        match self {
            Self::InitramfsTools => "initramfs",
            Self::Dracut => "x-initrd.attach",
        }
    }

    /// Whether `options` have that word.
    pub fn takes(self, options: &Options) -> bool {
        match self {
            Self::InitramfsTools => options.initramfs,
            Self::Dracut => options.initrd_attach || options.force,
        }
    }
}

/// The images were not rebuilt. The volume itself is as the command says.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The program is not there or cannot run.
    #[error(
        "failed to run '{program}'\n\
         rebuild the initramfs of every kernel, else the next boot does not know of the change"
    )]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// dracut(8) builds the image of one kernel, and there is none.
    #[error(
        "found no kernel to build an initramfs for: no folder of '/lib/modules' has its '/boot/vmlinuz-VERSION'\n\
         mount '/boot' if it is not, or build the image that this machine boots from by dracut(8), else the next boot \
         does not know of the change"
    )]
    NoKernel,
    /// update-initramfs(8) says that all is well where it has nothing to do.
    #[error(
        "'{0}' built no initramfs in '/boot'\n\
         mount '/boot' if it is not, and read-write; see 'update_initramfs=' in /etc/initramfs-tools/update-initramfs.conf; \
         then run it again, else the next boot does not know of the change"
    )]
    NothingBuilt(String),
    /// It failed; its output is above. It replaces an image by a whole one only.
    #[error(
        "'{command}' failed ({status}); its messages stand above\n\
         correct what it complains about and run it again, else the next boot does not know of the change"
    )]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It failed, and had begun to overwrite an image, maybe.
    #[error(
        "'{command}' failed ({status}); its messages stand above\n\
         it removes an image that it cannot write whole: see that '/boot' still has one for every kernel before this machine \
         restarts\n\
         correct what it complains about and run it again, else the next boot does not know of the change"
    )]
    FailedInPlace {
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// What was built could not take the place of the image from before.
    #[error(
        "'{0}' is as it was, without the change\n\
         see that '/boot' can be written to and has room, and rebuild it, else the next boot does not know of the change"
    )]
    NotReplaced(PathBuf, #[source] FilesError),
}

const DRACUT: &str = "dracut";
/// What an image is called while it is built, by its beginning and its end: no boot loader takes it for one.
const UNFINISHED: [&str; 2] = [".", ".latchkey-new"];
/// The programs that take a new image to where the boot loader reads it: Debian's kernel policy.
const POST_UPDATE: &str = "/etc/initramfs/post-update.d";

impl Builder {
    /// Of this system. Where both tools are there it is update-initramfs: Debian's package `dracut` takes that away,
    /// `dracut-core` alone builds images for trying out.
    pub fn of_system(files: &Files) -> Self {
        let has = |path: &str| files.path(path).exists();
        if has_initramfs_tools(files) || !has("/usr/bin/dracut") {
            Self::InitramfsTools
        } else if has("/etc/kernel/postinst.d/dracut") {
            Self::DracutOnDebian(kernels(files))
        } else {
            Self::Dracut
        }
    }

    fn commands(&self) -> Vec<(&'static str, Vec<String>)> {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        match self {
            Self::InitramfsTools => vec![("update-initramfs", words(&["-u", "-k", "all"]))],
            Self::Dracut => vec![(DRACUT, words(&["--force", "--regenerate-all"]))],
            Self::DracutOnDebian(kernels) => {
                let command = |kernel: &String| (DRACUT, dracut_words(&image_of(kernel), kernel));
                kernels.iter().map(command).collect()
            }
        }
    }
}

/// The commands, as an administrator types them; of a kernel that is not known, with its place held by `VERSION`.
impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commands = match self {
            Self::DracutOnDebian(kernels) if kernels.is_empty() => {
                Self::DracutOnDebian(vec!["VERSION".to_owned()]).commands()
            }
            _ => self.commands(),
        };
        let commands: Vec<String> = commands
            .iter()
            .map(|(program, words)| typed(program, words))
            .collect();
        f.write_str(&commands.join(" && "))
    }
}

/// Whether this system has update-initramfs(8).
pub fn has_initramfs_tools(files: &Files) -> bool {
    files.path("/usr/sbin/update-initramfs").exists()
}

/// What Debian calls the image of a kernel.
fn image_of(kernel: &str) -> String {
    format!("/boot/initrd.img-{kernel}")
}

fn dracut_words(image: &str, kernel: &str) -> Vec<String> {
    ["--force", "--quiet", image, kernel]
        .map(ToOwned::to_owned)
        .into()
}

fn typed(program: &str, words: &[String]) -> String {
    format!("{program} {}", words.join(" "))
}

/// The kernels that are installed, with modules.
fn kernels(files: &Files) -> Vec<String> {
    let mut versions: Vec<String> = fs::read_dir(files.path("/lib/modules"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|version| files.path(&format!("/boot/vmlinuz-{version}")).exists())
        .collect();
    versions.sort();
    versions
}

/// Rebuilds the images; what the tool prints goes to stderr.
///
/// # Errors
/// Every variant of [`RebuildError`].
pub fn rebuild(files: &Files, wish: Rebuild) -> Result<(), RebuildError> {
    let builder = Builder::of_system(files);
    if wish == Rebuild::No {
        log::info!("the initramfs is not rebuilt, as asked: run '{builder}' before the next boot");
        return Ok(());
    }
    let commands = builder.commands();
    if commands.is_empty() {
        return Err(RebuildError::NoKernel);
    }
    log::info!("rebuilding the initramfs of every kernel");
    // File systems tell time no finer than this.
    let begin = SystemTime::now() - Duration::from_secs(2);
    match &builder {
        Builder::DracutOnDebian(kernels) => rebuild_beside(files, kernels)?,
        Builder::InitramfsTools | Builder::Dracut => {
            for (program, words) in commands {
                let status = run(files, Command::new(program).args(&words), program)?;
                if status.success() {
                    continue;
                }
                let command = typed(program, &words);
                return Err(match builder {
                    Builder::Dracut => RebuildError::FailedInPlace { command, status },
                    _ => RebuildError::Failed { command, status },
                });
            }
        }
    }
    let is_due = builder == Builder::InitramfsTools && has_kernel(files);
    if is_due && !is_any_newer(files, begin) {
        return Err(RebuildError::NothingBuilt(builder.to_string()));
    }
    Ok(())
}

/// Builds each image under another name, by dracut(8), and gives it its own when it is whole: dracut writes into the file that
/// is there, and removes it where `/boot` is full.
fn rebuild_beside(files: &Files, kernels: &[String]) -> Result<(), RebuildError> {
    for left in unfinished_images(files) {
        let name = left.display();
        match fs::remove_file(&left) {
            Ok(()) => log::info!("removed '{name}', which an interrupted run left"),
            Err(error) => log::warn!("failed to remove '{name}': {error}"),
        }
    }
    // What fails for one kernel, an old one say, keeps no other from its image.
    let mut first_failure = Ok(());
    for kernel in kernels {
        // dracut was kept from telling the boot loader: the image had not got its name.
        let built = build_beside(files, kernel).and_then(|()| tell_boot_loader(files, kernel));
        first_failure = first_failure.and(built);
    }
    first_failure
}

fn build_beside(files: &Files, kernel: &str) -> Result<(), RebuildError> {
    let image = files.path(&image_of(kernel));
    // As dracut does: it may be a link to where the boot loader reads it.
    let image = fs::canonicalize(&image).unwrap_or(image);
    let new = unfinished(&image);
    let mut dracut = Command::new(DRACUT);
    dracut
        .args(dracut_words(&new.to_string_lossy(), kernel))
        .env("NO_POST_UPDATE_HOOKS", "1");
    let built = run(files, &mut dracut, DRACUT).and_then(|status| {
        if !status.success() {
            let command = typed(DRACUT, &dracut_words(&image_of(kernel), kernel));
            return Err(RebuildError::Failed { command, status });
        }
        files::sync(&new)
            .and_then(|()| files::rename(&new, &image))
            .map_err(|source| RebuildError::NotReplaced(image, source))
    });
    if built.is_err() {
        let _ = fs::remove_file(&new); // dracut may have
    }
    built
}

/// Has the boot loader's programs take over the new image of `kernel`, as dracut does after it wrote one.
fn tell_boot_loader(files: &Files, kernel: &str) -> Result<(), RebuildError> {
    const PROGRAM: &str = "run-parts";
    let programs = files.path(POST_UPDATE);
    if !programs.is_dir() {
        return Ok(());
    }
    let image = files.path(&image_of(kernel));
    let words = [
        format!("--arg={kernel}"),
        format!("--arg={}", image.display()),
        programs.display().to_string(),
    ];
    let status = run(files, Command::new(PROGRAM).args(&words), PROGRAM)?;
    if status.success() {
        return Ok(());
    }
    let command = typed(PROGRAM, &words);
    Err(RebuildError::Failed { command, status })
}

fn unfinished(image: &Path) -> PathBuf {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let [begin, end] = UNFINISHED;
    image.with_file_name(format!("{begin}{name}{end}"))
}

/// What interrupted runs left in /boot.
fn unfinished_images(files: &Files) -> Vec<PathBuf> {
    let [begin, end] = UNFINISHED;
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(begin) && name.ends_with(end)
    };
    let entries = fs::read_dir(files.path("/boot")).into_iter().flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(is_one).collect()
}

/// Runs what a `command` of this system is, which is found where such programs lie even if PATH does not name that.
fn run(
    files: &Files,
    command: &mut Command,
    program: &'static str,
) -> Result<ExitStatus, RebuildError> {
    command
        .env("PATH", search_path(files))
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(|source| RebuildError::Run { program, source })
}

/// `su` without `-` leaves a PATH without `/usr/sbin`, which these programs need for their own ones too.
fn search_path(files: &Files) -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| files.path(folder));
    let given_folders = env::split_paths(&given).filter(|folder| *folder != Path::new(""));
    env::join_paths(given_folders.chain(usual)).unwrap_or(given.clone())
}

/// A container has no kernel of its own, and no image.
fn has_kernel(files: &Files) -> bool {
    fs::read_dir(files.path("/lib/modules")).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether any image in /boot was written since `begin`.
fn is_any_newer(files: &Files, begin: SystemTime) -> bool {
    images(files).any(|image| modified(&image).is_some_and(|built| built >= begin))
}

/// Images in /boot that are older than a boot key, the recorded network or one of these files `of_volumes`, which they therefore
/// do not hold.
pub fn stale_images(files: &Files, of_volumes: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut inputs = vec![files.network()];
    inputs.extend(of_volumes);
    if let Ok(servers) = files.servers() {
        inputs.extend(
            servers
                .into_iter()
                .flatten()
                .map(|server| server.key_path(Role::Boot)),
        );
    }
    older_images(files, &inputs)
}

/// Images in /boot that are older than one of `inputs`, which they therefore do not hold.
pub fn older_images(files: &Files, inputs: &[PathBuf]) -> Vec<PathBuf> {
    let newest: Option<SystemTime> = inputs.iter().filter_map(|path| modified(path)).max();
    let Some(newest) = newest else {
        return Vec::new();
    };
    let mut stale: Vec<PathBuf> = images(files)
        .filter(|image| modified(image).is_some_and(|built| built < newest))
        .collect();
    stale.sort();
    stale
}

/// Whether there is any image in /boot.
pub fn has_images(files: &Files) -> bool {
    images(files).next().is_some()
}

fn images(files: &Files) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(files.path("/boot")).into_iter().flatten();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_image(path))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|found| found.modified()).ok()
}

/// How the names of copies end that tools leave beside the images, and never rebuild.
const COPIES: [&str; 4] = ["bak", "new", "old", "old-dkms"];

/// Whether a machine boots from it: not a copy, nor the image of a rescue system or for a crash.
fn is_image(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_one = name.starts_with("initrd.img-") || name.starts_with("initramfs-");
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let is_spare = COPIES.contains(&&*ending) || ending.starts_with("dpkg-");
    let is_of_other = name.contains("-rescue-") || name.ends_with("kdump.img");
    is_one && !is_spare && !is_of_other
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: &str = "usr/sbin/update-initramfs";
    const DRACUT: &str = "usr/bin/dracut";
    const HOOK: &str = "etc/kernel/postinst.d/dracut";

    fn root(present: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in present {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    fn system(present: &[&str]) -> Builder {
        Builder::of_system(&Files::under(root(present).path()))
    }

    #[test]
    fn the_tool_is_the_one_of_this_system() {
        assert_eq!(system(&[UPDATE]), Builder::InitramfsTools);
        assert_eq!(
            system(&[]),
            Builder::InitramfsTools,
            "its name is in the error"
        );
        assert_eq!(system(&[UPDATE, DRACUT]), Builder::InitramfsTools);
        assert_eq!(system(&[DRACUT]), Builder::Dracut);
        let kernels = [
            "lib/modules/6.1.0/x",
            "lib/modules/6.2.0/x",
            "boot/vmlinuz-6.1.0",
        ];
        let debian = system(&[&[DRACUT, HOOK], &kernels[..]].concat());
        assert_eq!(debian, Builder::DracutOnDebian(vec!["6.1.0".to_owned()]));
        assert_eq!(
            debian.to_string(),
            "dracut --force --quiet /boot/initrd.img-6.1.0 6.1.0"
        );
    }

    #[test]
    fn what_is_never_rebuilt_is_no_image() {
        for (name, expected) in [
            ("initrd.img-6.1.0-13-amd64", true),
            ("initramfs-6.1.0-1.fc40.x86_64.img", true),
            ("initrd.img-6.1.0.bak", false),
            ("initrd.img-6.1.0.new", false),
            ("initrd.img-6.1.0.old", false),
            ("initrd.img-6.1.0.old-dkms", false),
            ("initrd.img-6.1.0.dpkg-bak", false),
            ("initrd.img-6.1.0.dpkg-tmp", false),
            ("initramfs-0-rescue-0a1b.img", false),
            ("initramfs-6.1.0kdump.img", false),
            (".initrd.img-6.1.0.latchkey-new", false),
            ("vmlinuz-6.1.0", false),
        ] {
            assert_eq!(is_image(&Path::new("/boot").join(name)), expected, "{name}");
        }
    }

    #[test]
    fn an_image_that_was_not_written_is_noticed() {
        let root = root(&["boot/initrd.img-6.1.0", "lib/modules/6.1.0/x"]);
        let files = Files::under(root.path());
        let now = SystemTime::now();
        assert!(has_kernel(&files));
        assert!(is_any_newer(&files, now - Duration::from_secs(60)));
        assert!(!is_any_newer(&files, now + Duration::from_secs(60)));
        assert!(!has_kernel(&Files::under(root.path().join("boot"))));
    }

    #[test]
    fn without_a_kernel_to_build_for_it_fails_and_says_what_to_do() {
        // Modules without their kernel, and a kernel without its modules: /boot that is not mounted looks like this.
        let root = root(&[DRACUT, HOOK, "lib/modules/6.1.0/x", "boot/vmlinuz-6.2.0"]);
        let files = Files::under(root.path());
        let error = rebuild(&files, Rebuild::Yes).unwrap_err();
        assert!(matches!(error, RebuildError::NoKernel), "{error}");
        assert!(error.to_string().contains("mount '/boot'"), "{error}");
        rebuild(&files, Rebuild::No).unwrap();
        assert_eq!(
            Builder::of_system(&files).to_string(),
            "dracut --force --quiet /boot/initrd.img-VERSION VERSION"
        );
    }
}
