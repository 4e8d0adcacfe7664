//! The bound machine: a guest after `make install`, `latchkey join` and `latchkey bind` in it, with the key server it
//! joined. Made once for each flavour and build of latchkey and cached; scenarios start from copies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{self, CacheError, Key};
use crate::flavour::Flavour;
use crate::guest::{self, Guest};
use crate::keyserver::{KeyServer, KeyServerError};
use crate::machine::{BootFiles, Disk, Machine, MachineError, Spec};
use crate::network::HOST;
use crate::product::{Product, ProductError};

/// The name that the machine got with its invitation.
pub const CLIENT: &str = "web1";
/// The first of the key server's two ports; the token names both.
pub const PORT: u16 = 7443;
/// The second.
pub const SECOND_PORT: u16 = 7444;

/// What the guest reaches the key server by.
pub fn names() -> [String; 2] {
    [PORT, SECOND_PORT].map(|port| format!("{HOST}:{port}"))
}

/// The bound machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BoundError {
    /// The cache folder cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The installed tree.
    #[error(transparent)]
    Product(#[from] ProductError),
    /// The machine on which latchkey is installed.
    #[error("failed to join and bind in the guest")]
    Machine(#[from] MachineError),
    /// The key server it joins.
    #[error("failed to run the key server that the guest joins")]
    KeyServer(#[from] KeyServerError),
    /// A file of the snapshot.
    #[error("failed to use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The cached snapshot; nobody writes to it.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The machine's disk after `bind` and an orderly power-off.
    pub disk: PathBuf,
    /// Folder of the key server that it joined.
    pub server: PathBuf,
    /// Kernel and initramfs from its `/boot`.
    pub boot: BootFiles,
    /// What `bind` printed.
    pub transcript: String,
    /// The machine's boot key in PEM, to be looked for where it must not be.
    pub boot_key: String,
}

/// The bound machine from the cache; made first if it is not there. The calling thread should be in a network of
/// its own.
///
/// # Errors
/// Whatever step failed.
pub fn bound(guest: &Guest, product: &Product) -> Result<Bound, BoundError> {
    let key = Key::default()
        .with("guest", &guest.key)
        .with("settle", guest.flavour.settle())
        .with("recipe", include_str!("bound.rs"));
    let kind = format!("bound-{}", guest.name());
    let folder = cache::folder_for(&kind, product.add_to(key)?, |folder| {
        build(guest, product, folder)
    })?;
    let transcript = folder.join(TRANSCRIPT);
    let boot_key = folder.join(BOOT_KEY);
    Ok(Bound {
        disk: folder.join(DISK),
        server: folder.join(SERVER),
        boot: BootFiles::in_folder(&folder),
        transcript: fs::read_to_string(&transcript).map_err(at(&transcript))?,
        boot_key: fs::read_to_string(&boot_key).map_err(at(&boot_key))?,
    })
}

const DISK: &str = "disk.qcow2";
const SERVER: &str = "server";
const TRANSCRIPT: &str = "transcript";
const BOOT_KEY: &str = "boot.key";

fn build(guest: &Guest, product: &Product, folder: &Path) -> Result<(), BoundError> {
    eprintln!(
        "joining and binding the guest {} (once for each build of latchkey)",
        guest.name()
    );
    // A cache's folder may have too long a name for the path of a socket.
    let short = tempfile::tempdir().map_err(at(Path::new("a temporary folder")))?;
    let at_work = short.path().join(SERVER);
    let mut server = KeyServer::init(&product.latchkeyd(), &at_work, &names())?;
    server.start(PORT)?;

    let archive = folder.join("installed.tar");
    product.archive(&archive)?;
    let disk = Disk::over(&guest.disk, &folder.join(DISK))?;
    let spec = Spec::new(&disk, &folder.join("console.log"))
        .systemd()
        .payload(&archive);
    let mut machine = Machine::start(&spec)?;
    machine.answer(guest.first_prompt(), guest::PASSPHRASE)?;
    machine.up()?;
    let transcript = join_and_bind(&mut machine, &server, guest.flavour)?;
    let boot_key = machine.check("cat /etc/latchkey/servers/*/boot.key")?;
    machine.power_off()?;
    server.stop()?;
    server.copy(&folder.join(SERVER))?;

    let boot_key_file = folder.join(BOOT_KEY);
    fs::write(&boot_key_file, boot_key).map_err(at(&boot_key_file))?;

    let transcript_file = folder.join(TRANSCRIPT);
    fs::write(&transcript_file, transcript).map_err(at(&transcript_file))?;
    disk.boot_files(folder)?;
    fs::remove_file(&archive).map_err(at(&archive))
}

/// The whole installation, as the README tells it; returns what the guest printed.
///
/// # Errors
/// `Machine` if a command fails in the guest.
pub fn join_and_bind(
    machine: &mut Machine,
    server: &KeyServer,
    flavour: Flavour,
) -> Result<String, BoundError> {
    let joined = install_and_join(machine, server, flavour)?;
    let bound = machine.check(&format!(
        "printf %s '{}' > /run/rig/passphrase\n\
         latchkey bind {} --key-file /run/rig/passphrase; status=$?\n\
         rm /run/rig/passphrase; exit $status",
        guest::PASSPHRASE,
        guest::DEVICE
    ))?;
    Ok(format!("{joined}\n{bound}"))
}

/// The installation up to `latchkey join`; returns what that printed.
///
/// # Errors
/// `Machine` if a command fails in the guest.
pub fn install_and_join(
    machine: &mut Machine,
    server: &KeyServer,
    flavour: Flavour,
) -> Result<String, BoundError> {
    machine.check(&format!(
        "set -e\n\
         tar --extract --keep-directory-symlink --directory / --file /dev/vdb\n\
         # The command channel answers sooner than DHCP.\n\
         until ip -4 route show default | grep -q .; do sleep 0.2; done\n\
         systemctl daemon-reload\n\
         {}",
        flavour.settle()
    ))?;
    let token = server.admin(&["invite", CLIENT])?;
    Ok(machine.check(&format!("latchkey join - <<'TOKEN'\n{token}\nTOKEN"))?)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BoundError {
    let path = path.to_owned();
    |source| BoundError::File { path, source }
}
