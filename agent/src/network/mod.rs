//! Brings the network up in the initramfs and takes it away again, over netlink alone: no shell, no other program.
//!
//! [`load`] reads what is wished (the record of the running machine, `ip=`), [`Network::start`] does it beside
//! everything else and tells by [`NetworkEvent`]s how it goes, [`Network::take_down`] removes what was added.
//! After a crash, [`undo_from`] does that from the list in [`undo_path`]. [`record()`] makes the record.
//!
//! Nothing here waits with a limit: a card that never comes only means that there is never an `Up`.
//!
//! This slice: IPv4, static or by DHCP, on network cards. VLANs, bonds and bridges are used where somebody else made
//! them and gave them an address, and not made; their place, and that of IPv6, is a further [`assignment::Method`] and a
//! further field of [`record::RecordedInterface`].
//!
//! Everybody on the link is taken to be hostile: what a DHCP server sends is taken only as numbers that make
//! sense ([`lease`]), and reaches neither a shell nor a file name.
//!
//! From the bottom: [`values`], [`files`], [`netlink`], [`udev`]; [`resolv`], [`undo`], [`record`],
//! [`recording`], [`ip_parameter`]; [`assignment`] and [`plan`] decide; [`dhcp_message`], [`lease`], [`dhcp`], [`dhcp_socket`] are the DHCP client;
//! [`configure`], [`contender`], [`dhcp_task`] and [`manager`] act.

pub mod assignment;
pub mod configure;
pub mod contender;
pub mod dhcp;
pub mod dhcp_message;
pub mod dhcp_socket;
pub mod dhcp_task;
pub mod files;
mod interface;
pub mod ip_parameter;
pub mod lease;
pub mod manager;
pub mod netlink;
pub mod plan;
pub mod record;
pub mod recording;
pub mod resolv;
mod teller;
pub mod udev;
pub mod undo;
pub mod values;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::chain;

pub use recording::record;
pub use undo::{UndoError, undo_from};

/// How long the running part may take to end; then it is ended.
const STOP: Duration = Duration::from_secs(3);

/// What the network should be, and where its files are.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Below it lie `etc/resolv.conf`, `run/udev` and `run/latchkey`.
    pub root: PathBuf,
    /// What to do.
    pub wishes: plan::Wishes,
    /// Whether dracut brings the network up: then nothing is configured beside it.
    pub dracut: contender::Dracut,
    /// What could not be read or understood, one line each; told at the start.
    pub notes: Vec<String>,
}

/// What became of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// An interface can be used. Told again when its configuration changes.
    Up {
        /// Its name.
        link: String,
        /// Where its configuration is from.
        how: How,
        /// Its first address.
        address: Ipv4Addr,
    },
    /// The last interface that was up cannot be used any more.
    Down {
        /// Its name.
        link: String,
    },
    /// One line about what is wrong or waited for while none is up, to be shown beside the prompt: "network: …". Told
    /// when it changes.
    Trouble(String),
    /// The same of one interface, or of something else that the others can do without: at least one is up.
    Beside(String),
}

/// Where the configuration of an interface is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Somebody else had configured it.
    AlreadyThere,
    /// The record of the running machine.
    Recorded,
    /// `ip=` on the kernel command line.
    CommandLine,
    /// A DHCP server.
    Dhcp,
}

/// The network while it is being brought up and kept up.
///
/// Dropped, it stops acting but leaves everything as it is.
#[derive(Debug)]
pub struct Network {
    undo: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// The list of changes below `root`, for [`undo_from`].
pub fn undo_path(root: &Path) -> PathBuf {
    root.join("run/latchkey/network-undo.json")
}

/// Reads what is wished: the record below `root`, and the words of the `kernel`'s command line and of the `image`'s, which
/// dracut has. Never fails: what is unreadable is noted, and DHCP remains.
pub fn load(root: &Path, image: &str, kernel: &str) -> NetworkConfig {
    let parameter = ip_parameter::parse_both(image, kernel);
    let mut notes: Vec<String> = parameter
        .notes
        .iter()
        .map(|note| format!("network: {note}"))
        .collect();
    let record = record::load(root).unwrap_or_else(|error| {
        notes.push(format!("network: {}; using DHCP", chain(&error)));
        None
    });
    let wishes = plan::Wishes {
        record,
        parameter,
        extra_kinds: Vec::new(),
    };
    NetworkConfig {
        root: root.into(),
        wishes,
        dracut: contender::Dracut::of(root, &format!("{image} {kernel}")),
        notes,
    }
}

impl Network {
    /// Begins to bring the network up, as a task on the current tokio runtime (I/O and time enabled).
    pub fn start(config: NetworkConfig) -> (Self, mpsc::UnboundedReceiver<NetworkEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let undo = undo_path(&config.root);
        let task = tokio::spawn(manager::run(config, events, stopped));
        (
            Self {
                undo,
                stop: Some(stop),
                task,
            },
            receiver,
        )
    }

    /// Stops and removes everything that was added, also by an earlier agent of this boot.
    ///
    /// # Errors
    /// What could not be removed; the rest is, and a later [`undo_from`] can try again.
    pub async fn take_down(mut self) -> Result<(), UndoError> {
        if let Some(stop) = self.stop.take() {
            // It may have ended already; then there is nobody to tell.
            let _ = stop.send(());
        }
        if timeout(STOP, &mut self.task).await.is_err() {
            self.task.abort();
            // Ended in any case: by itself just now, or by the abort.
            let _ = (&mut self.task).await;
        }
        undo_from(&self.undo).await
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}
