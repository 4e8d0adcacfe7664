//! What a boot scenario plays on: a network, a folder and copies of the bound machine of its own.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::bound::{self, Bound};
use crate::console::Sighting;
use crate::flavour::{Flavour, Framework};
use crate::guest::{self, Guest, GuestError};
use crate::keyserver::{KeyServer, KeyServerError};
use crate::layout::Layout;
use crate::machine::{Disk, Machine, MachineError, Spec};
use crate::native::{self, NativeError};
use crate::network;
use crate::product::Product;

/// Why a scenario failed.
pub type Failure = Box<dyn Error + Send + Sync>;
/// How a scenario ended.
pub type Outcome = Result<(), Failure>;

/// One story.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name: the fact it proves.
    pub name: &'static str,
    /// The story.
    pub play: fn(&Stage) -> Outcome,
}

/// A scenario has nothing to say about this flavour, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotHere(pub &'static str);

/// A machine could not be bound, so that nothing can be said of how it boots.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the machine could not be bound: {0}")]
pub struct NotBound(String);

/// What all scenarios of a flavour have in common.
#[derive(Debug, Clone)]
pub struct Ground {
    product: Product,
    guest: Guest,
    bound: Arc<OnceLock<Result<Bound, NotBound>>>,
}

impl Ground {
    /// Makes the guest of a flavour and a layout, or takes it from the cache.
    ///
    /// # Errors
    /// As [`guest::guest`].
    pub fn prepare(
        flavour: Flavour,
        layout: Layout,
        product: &Product,
    ) -> Result<Self, GuestError> {
        Ok(Self::of(guest::guest(flavour, layout)?, product))
    }

    fn of(guest: Guest, product: &Product) -> Self {
        Self {
            product: product.clone(),
            guest,
            bound: Arc::default(),
        }
    }

    /// The bound machine; made or taken from the cache when it is first asked for.
    ///
    /// # Errors
    /// Why there is none.
    pub fn bound(&self) -> Result<&Bound, NotBound> {
        // In a thread, because the network namespace is the thread's.
        let make = || -> Result<Bound, Failure> {
            network::enter_own()?;
            Ok(bound::bound(&self.guest, &self.product)?)
        };
        let bound = self.bound.get_or_init(|| {
            thread::scope(|scope| scope.spawn(make).join())
                .unwrap_or_else(|_| Err("making it panicked".into()))
                .map_err(|failure| NotBound(chain(&*failure)))
        });
        bound.as_ref().map_err(Clone::clone)
    }
}

/// What a scenario plays on.
pub struct Stage {
    folder: tempfile::TempDir,
    logs: PathBuf,
    ground: Ground,
    seconds: Mutex<Option<u64>>,
}

impl Stage {
    /// A new stage whose logs go to `logs`.
    ///
    /// # Errors
    /// There is no place for its files.
    pub fn new(ground: &Ground, logs: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: tempfile::Builder::new().prefix("latchkey-").tempdir()?,
            logs: logs.to_owned(),
            ground: ground.clone(),
            seconds: Mutex::new(None),
        })
    }

    /// A stage with machines of another layout, instead of this one.
    ///
    /// # Errors
    /// As [`guest::guest`].
    pub fn with_layout(&self, layout: Layout) -> Result<Self, Failure> {
        self.with_guest(|| guest::guest(self.flavour(), layout))
    }

    /// A stage with machines that have more packages of Debian, instead of this one; the name `more` tells them from others.
    ///
    /// # Errors
    /// As [`guest::guest_with`].
    pub fn with_packages(&self, more: &'static str, packages: &[&str]) -> Result<Self, Failure> {
        self.with_guest(|| guest::guest_with(self.flavour(), more, packages))
    }

    fn with_guest(
        &self,
        make: impl FnOnce() -> Result<Guest, GuestError> + Send,
    ) -> Result<Self, Failure> {
        // In a thread on the host's network, where the packages of a guest come from.
        let prepare = || -> Result<Guest, Failure> {
            network::enter_host()?;
            Ok(make()?)
        };
        let guest = thread::scope(|scope| scope.spawn(prepare).join())
            .unwrap_or_else(|_| Err("making the guest panicked".into()))?;
        let ground = Ground::of(guest, &self.ground.product);
        Ok(Self::new(&ground, &self.logs)?)
    }

    /// What kind of machine this is.
    pub fn flavour(&self) -> Flavour {
        self.ground.guest.flavour
    }

    /// How its disk is laid out.
    pub fn layout(&self) -> Layout {
        self.ground.guest.layout
    }

    /// What the console shows while the agent asks for the passphrase.
    pub fn prompt(&self) -> &'static str {
        self.flavour().prompt()
    }

    /// What the console shows where a machine without latchkey asks for the passphrase.
    pub fn native_prompt(&self) -> &'static str {
        self.flavour().native_prompt()
    }

    /// Waits until the machine of [`Stage::plain_disk`] is up, and answers its native prompt first, where its root is encrypted.
    ///
    /// # Errors
    /// `Machine` if it does not come up.
    pub fn first_boot(&self, machine: &mut Machine) -> Result<Sighting, MachineError> {
        if self.layout() != Layout::Clear {
            machine.answer(self.ground.guest.first_prompt(), guest::PASSPHRASE)?;
        }
        machine.up()
    }

    /// The first machine of an installation: up, with the product of its payload installed, and joined to `server`, so that its
    /// volumes can be bound in it.
    ///
    /// # Errors
    /// `Machine` if it does not come up, [`bound::install_and_join`]'s.
    pub fn joined(&self, spec: &Spec, server: &KeyServer) -> Result<Machine, Failure> {
        let mut machine = Machine::start(&spec.clone().systemd())?;
        self.first_boot(&mut machine)?;
        bound::install_and_join(&mut machine, server, self.flavour())?;
        Ok(machine)
    }

    /// Ends a scenario that acts in the initramfs by the means of initramfs-tools, on another framework.
    ///
    /// # Errors
    /// [`NotHere`] with the reason.
    pub fn needs_initramfs_tools(&self, reason: &'static str) -> Outcome {
        self.needs(&[Framework::InitramfsTools], reason)
    }

    /// Ends a scenario about something that initramfs-tools does not do.
    ///
    /// # Errors
    /// [`NotHere`] with the reason.
    pub fn needs_dracut(&self, reason: &'static str) -> Outcome {
        self.needs(&[Framework::DracutSystemd, Framework::DracutScript], reason)
    }

    /// Ends a scenario about something that these frameworks alone do.
    ///
    /// # Errors
    /// [`NotHere`] with the reason.
    pub fn needs(&self, frameworks: &[Framework], reason: &'static str) -> Outcome {
        match frameworks.contains(&self.flavour().framework) {
            true => Ok(()),
            false => Err(NotHere(reason).into()),
        }
    }

    /// Notes the moment that users care about, in seconds since the guest's kernel started.
    pub fn note(&self, sighting: Sighting) {
        let seconds = sighting.guest.as_ref().map(Duration::as_secs);
        *self.seconds.lock().unwrap_or_else(PoisonError::into_inner) = seconds;
    }

    /// What was noted.
    pub fn seconds(&self) -> Option<u64> {
        *self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the key server that the bound machine joined, not yet running.
    ///
    /// # Errors
    /// [`NotBound`], or as [`KeyServer::copy_of`].
    pub fn key_server(&self) -> Result<KeyServer, Failure> {
        let server = KeyServer::copy_of(
            &self.ground.product.latchkeyd(),
            &self.bound()?.server,
            &self.folder.path().join("server"),
        )?;
        Ok(server)
    }

    /// Another key server, which no machine knows and which bears the same names.
    ///
    /// # Errors
    /// As [`KeyServer::init`].
    pub fn foreign_key_server(&self) -> Result<KeyServer, KeyServerError> {
        let names =
            [bound::PORT, bound::SECOND_PORT].map(|port| format!("{}:{port}", network::HOST));
        KeyServer::init(
            &self.ground.product.latchkeyd(),
            &self.folder.path().join("foreign"),
            &names,
        )
    }

    /// A copy of the bound machine's disk.
    ///
    /// # Errors
    /// [`NotBound`], or as [`Disk::over`].
    pub fn bound_disk(&self) -> Result<Disk, Failure> {
        let disk = &self.bound()?.disk;
        Ok(Disk::over(disk, &self.folder.path().join("bound.qcow2"))?)
    }

    /// A disk with a Debian that never had latchkey.
    ///
    /// # Errors
    /// As [`Disk::over`].
    pub fn plain_disk(&self) -> Result<Disk, MachineError> {
        Disk::over(
            &self.ground.guest.disk,
            &self.folder.path().join("plain.qcow2"),
        )
    }

    /// A machine that boots through its own boot loader; `boot` names its logs.
    pub fn machine(&self, disk: &Disk, boot: &str) -> Spec {
        Spec::new(disk, &self.logs.join(format!("{boot}.log"))).layout(self.layout())
    }

    /// A machine with the kernel and initramfs that `bind` left in `/boot`, started without boot loader.
    pub fn bound_machine(&self, disk: &Disk, boot: &str) -> Spec {
        let spec = self.machine(disk, boot);
        match self.bound() {
            Ok(bound) => spec.direct(&bound.boot),
            // Nobody gets a disk to boot then, but from `plain_disk`.
            Err(_) => spec,
        }
    }

    /// A machine with an initramfs that was built in it without latchkey, started without boot loader.
    ///
    /// # Errors
    /// As [`native::boot_files`].
    pub fn native_machine(&self, disk: &Disk, boot: &str) -> Result<Spec, NativeError> {
        let files = native::boot_files(&self.ground.guest)?;
        Ok(self.machine(disk, boot).direct(&files))
    }

    /// A new key server that bears the names which machines know, and an archive of what `make install` puts in place:
    /// for a machine that is joined and bound in the scenario itself.
    ///
    /// # Errors
    /// As [`KeyServer::init`]; tar fails.
    pub fn own_installation(&self) -> Result<(KeyServer, PathBuf), Failure> {
        let product = &self.ground.product;
        let folder = self.folder.path();
        let server = KeyServer::init(&product.latchkeyd(), &folder.join("own"), &bound::names())?;
        let archive = folder.join("installed.tar");
        product.archive(&archive)?;
        Ok((server, archive))
    }

    /// A folder for this scenario's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cached bound machine itself.
    ///
    /// # Errors
    /// There is none.
    pub fn bound(&self) -> Result<&Bound, NotBound> {
        self.ground.bound()
    }

    /// Where the console logs go.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

/// Fails a scenario with a reason unless `holds`.
///
/// # Errors
/// The reason.
pub fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(reason().into()) }
}

/// A failure and its causes in one text.
pub fn chain(failure: &(dyn Error + 'static)) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
