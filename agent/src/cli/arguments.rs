//! What can be typed: the commands and their options.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use latchkey_protocol::token::Address;

use crate::commands::arm_reboot;
use crate::commands::initramfs::Rebuild;
use crate::commands::list::Format;

const EXAMPLES: &str = "\
A machine that opens its root by itself at boot:
  latchkeyd invite web-1           on the key server; prints a join token
  latchkey join                    here; paste the token
  latchkey bind /dev/vda3          here; type a passphrase of the volume once

Every passphrase keeps working at the boot prompt. 'latchkey=off' on the kernel command line boots without latchkey.
latchkey(8) describes files, exit codes and limits.";

#[derive(Parser)]
#[command(
    name = "latchkey",
    version,
    about = "Opens encrypted volumes at boot with keys that your key server releases",
    after_help = EXAMPLES,
    max_term_width = 100
)]
pub struct CommandLine {
    /// Look for all files below this folder
    #[arg(
        long,
        global = true,
        hide = true,
        default_value = "/",
        value_name = "DIR"
    )]
    pub root: PathBuf,
    /// Say more about what is done; never secrets
    #[arg(short, long, global = true)]
    pub verbose: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Join a key server with the token that 'latchkeyd invite' printed there
    ///
    /// Makes two key pairs: the boot key, which lies in the initramfs and can only ask for a release, and the host
    /// key for everything else. If it is interrupted, run it again with the same token.
    Join {
        /// '-' reads the token from stdin; without it you are asked. A token here can be read by every user
        #[arg(value_name = "-")]
        token: Option<String>,
        /// No token: this machine lost its keys and asks to be taken back; a person there approves it by a code shown here
        #[arg(long, conflicts_with = "token")]
        again: bool,
        /// Which key server, by the beginning of its id, if the keys for several are lost
        #[arg(long, value_name = "ID", requires = "again")]
        server: Option<String>,
        /// Where it listens, if that is lost too; may be given several times
        #[arg(long, value_name = "HOST[:PORT]", requires = "again")]
        address: Vec<Address>,
        /// Do not rebuild the initramfs, which holds a lost boot key; do it yourself before the next boot
        #[arg(long, requires = "again")]
        no_initramfs: bool,
    },
    /// Bind a volume, so that the key servers you joined can open it at boot
    ///
    /// LUKS2 and LUKS1: asks for a passphrase of the volume, backs its header up to /var/lib/latchkey, adds one keyslot
    /// and one envelope, proves that they open the volume, and rebuilds the initramfs. Other keyslots are never changed.
    /// A volume whose line in /etc/crypttab says '_netdev,nofail' is opened by the running system, without the initramfs.
    /// Plain dm-crypt: its passphrase or volume key is sealed, and nothing on the device is changed. A detached header
    /// and plain dm-crypt are told by the volume's line in /etc/crypttab. If it is interrupted, run it again.
    Bind {
        /// The encrypted device, its mapping or its mount point, such as /dev/vda3 or /
        device: PathBuf,
        /// The name in /etc/crypttab, where the device has several, or none yet
        #[arg(long)]
        name: Option<String>,
        /// The options of the line to write into /etc/crypttab, where there is none [default: luks,initramfs, and nofail where root does not lie on the volume; luks,_netdev,nofail where root is not encrypted, or on ZFS or the like]
        #[arg(long)]
        options: Option<String>,
        /// Read the passphrase from this file ('-': stdin); the whole content counts, line ends too
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Read the volume key of plain dm-crypt from this file ('-': stdin), where no passphrase makes it
        #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
        volume_key_file: Option<PathBuf>,
        /// Make a new LUKS2 volume first, on a device that is empty; one that holds anything is refused
        #[arg(long, conflicts_with = "volume_key_file")]
        format: bool,
        /// Make a recovery key for the new volume in the place of a passphrase, and write its sheet there: PDF if FILE ends
        /// in .pdf, else text ('-': stdout)
        #[arg(
            long,
            value_name = "FILE",
            requires = "format",
            conflicts_with = "key_file"
        )]
        recovery_sheet: Option<PathBuf>,
        #[command(flatten)]
        json: JsonFlag,
        #[command(flatten)]
        rebuild: RebuildFlag,
    },
    /// Make a recovery sheet: with it a person opens the volume on any machine that has cryptsetup
    ///
    /// A LUKS volume gets a further keyslot for a new recovery key, 256 random bits. Of plain dm-crypt the sheet holds the
    /// passphrase or the volume key and how the mapping is made. The sheet as PDF has the key as a QR code too.
    RecoveryKey {
        /// The encrypted device, its mapping or its mount point
        device: PathBuf,
        /// The name in /etc/crypttab, where the device has several
        #[arg(long)]
        name: Option<String>,
        /// Write the sheet to this new file: PDF if it ends in .pdf, else text ('-': stdout)
        #[arg(long, value_name = "FILE", default_value = "-")]
        sheet: PathBuf,
        /// Read the passphrase from this file ('-': stdin); the whole content counts, line ends too
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Read the volume key of plain dm-crypt from this file ('-': stdin), where no passphrase makes it
        #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
        volume_key_file: Option<PathBuf>,
    },
    /// Give a bound volume a new machine secret, keyslot and new shares at its key servers
    ///
    /// Afterwards no key server gives what a copy of the old header needs. What opens the volume now comes from a key server; where none gives it, a
    /// passphrase is asked for. Everything new is proved before anything old goes; of plain dm-crypt only the shares are new.
    /// Where an initramfs holds a copy (an envelope file, a detached header) the old ones stay until no image in /boot is older.
    /// If it is interrupted, run it again.
    Rotate {
        /// The encrypted device, its mapping or its mount point
        device: PathBuf,
        /// Read a passphrase from this file ('-': stdin), and ask no key server for what opens the volume now
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Take the old keyslot and shares away although an image may still need them
        #[arg(long)]
        finish: bool,
        #[command(flatten)]
        rebuild: RebuildFlag,
    },
    /// Take a binding away: envelope, keyslot, and the key servers' shares
    Unbind {
        /// The encrypted device, its mapping or its mount point
        device: PathBuf,
        #[command(flatten)]
        rebuild: RebuildFlag,
    },
    /// List the volumes of /etc/crypttab and whether they are bound
    List {
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Print the UUIDs of the bound volumes; the image keeps them
    #[command(hide = true)]
    BoundVolumes,
    /// Print the files of the bound volumes that belong into the image
    #[command(hide = true)]
    ImageFiles,
    /// Print the kernel's modules that the bound volumes need in the image
    #[command(hide = true)]
    ImageModules,
    /// Print the names of the bound volumes that the boot goes on without
    #[command(hide = true)]
    ImageOptional,
    /// Show who this machine is to its key servers, whether they answer, and which policies hold
    ///
    /// Exit code 3 if something is shown with a '!': it may keep the next boot from opening a bound volume by itself.
    Status {
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Announce a reboot to the key servers, so that one boot within a time needs nobody
    ///
    /// A reboot or kexec by systemd announces itself as it begins; this is for a reboot that systemd does not see
    /// coming, such as one from the provider's panel. Exit code 3 if only some of the key servers were told.
    ArmReboot {
        /// How long the boot may take to come: 1m to 24h, as a number with s, m or h
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = ttl)]
        ttl: Duration,
        /// Only if systemd is taking the machine down for a reboot or kexec
        #[arg(long, hide = true)]
        if_rebooting: bool,
    },
    /// Open the bound volumes of /etc/crypttab; the boot scripts run this in the initramfs
    ///
    /// Exit code 4 if something is left to the boot framework's own prompt.
    Unlock {
        /// Only these mappings
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// How long devices may be missing before they are left to the boot framework, or 'infinity'
        #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
        device_limit: Duration,
    },
    /// Open a data volume in the running system, and wait for it without end; latchkey@.service runs this
    #[command(hide = true)]
    Open {
        /// Its name in crypttab
        name: String,
    },
    /// Close a data volume; latchkey@.service runs this
    #[command(hide = true)]
    Close {
        /// Its name in crypttab
        name: String,
    },
    /// Wait until the agent has ended or hands over (0), or until its devices have been missing for so long (1)
    #[command(hide = true)]
    Wait {
        /// Its process id; else the one that it left
        #[arg(long, value_name = "PID")]
        agent: Option<i32>,
        /// Only until this mapping is open, or left to the boot framework
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        /// How long devices may be missing; without it, as long as the agent lives
        #[arg(long, value_name = "SECONDS")]
        device_timeout: Option<u64>,
    },
    /// End an agent that is left, take its network back, wipe the credentials
    #[command(hide = true)]
    Cleanup {
        /// Only if a hibernated system is about to come back
        #[arg(long)]
        before_resume: bool,
    },
    /// Close what was opened automatically, before anybody gets a shell
    #[command(hide = true)]
    Withdraw,
    /// Put gates before systemd's own unlockers of the bound volumes: links in this folder, as systemd.generator(7) says
    #[command(hide = true)]
    Generate {
        /// The folder for them
        folder: PathBuf,
    },
    /// Leave to systemd the data volumes that the boot needs early: links in this folder, as systemd.generator(7) says
    #[command(hide = true)]
    GenerateData {
        /// The folder for them
        folder: PathBuf,
    },
    /// Clean up, and make sure that root lies on a volume that was opened
    #[command(hide = true)]
    Finish {
        /// Where root is mounted; else $rootmnt, else /root
        mount_point: Option<PathBuf>,
    },
    /// Record the running network for the next boot
    #[command(hide = true)]
    RecordNetwork,
    /// Keep in touch with the key servers; latchkey.service runs this
    #[command(hide = true)]
    Run,
}

#[derive(Args)]
pub struct RebuildFlag {
    /// Do not rebuild the initramfs; do it yourself before the next boot
    #[arg(long)]
    pub no_initramfs: bool,
}

#[derive(Args)]
pub struct JsonFlag {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    match text {
        "infinity" => Ok(FOREVER),
        number => number.parse().map(Duration::from_secs),
    }
}

/// A number with `s`, `m` or `h`, within what key servers take.
fn ttl(text: &str) -> Result<Duration, String> {
    let error = || "expected 1m to 24h, such as 15m".to_owned();
    let unit = text.chars().next_back().ok_or_else(error)?;
    let number = &text[..text.len() - unit.len_utf8()];
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(error()),
    };
    if number.is_empty() || !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(error());
    }
    let seconds = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor));
    let ttl = Duration::from_secs(seconds.ok_or_else(error)?);
    let [shortest, longest] = arm_reboot::TTL;
    if (shortest..=longest).contains(&ttl) {
        Ok(ttl)
    } else {
        Err(error())
    }
}

/// A year: longer than any boot waits, and short enough to be added to a point in time.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl From<RebuildFlag> for Rebuild {
    fn from(flag: RebuildFlag) -> Self {
        if flag.no_initramfs {
            Self::No
        } else {
            Self::Yes
        }
    }
}

impl From<JsonFlag> for Format {
    fn from(flag: JsonFlag) -> Self {
        if flag.json { Self::Json } else { Self::Text }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_short_help_names_what_people_type_only() {
        let help = CommandLine::command().render_help().to_string();
        for shown in [
            "join",
            "bind",
            "unbind",
            "list",
            "status",
            "arm-reboot",
            "recovery-key",
            "unlock",
        ] {
            assert!(help.contains(&format!("\n  {shown} ")), "{shown} in {help}");
        }
        for hidden in [
            "bound-volumes",
            "image-modules",
            "image-optional",
            "wait",
            "cleanup",
            "finish",
            "generate",
            "record-network",
            "run",
            "--root",
        ] {
            assert!(!help.contains(&format!("  {hidden}")), "{hidden} in {help}");
        }
    }

    #[test]
    fn a_reboot_is_announced_for_a_minute_to_a_day() {
        for (text, seconds) in [("60s", 60), ("1m", 60), ("15m", 900), ("24h", 86_400)] {
            assert_eq!(ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "m",
            "15",
            "59s",
            "0m",
            "25h",
            "1d",
            "-5m",
            "+5m",
            "1.5h",
            "1 h",
            "1é",
            "99999999999999999999h",
        ] {
            assert!(ttl(bad).is_err(), "{bad:?}");
        }
    }
}
