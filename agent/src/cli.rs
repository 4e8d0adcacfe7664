//! The command line: which part of the library does what was typed.

mod arguments;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use latchkey_secret::process;
use log::LevelFilter;

use crate::commands::arm_reboot::{self, Armed, Occasion};
use crate::commands::format::NewVolume;
use crate::commands::join::TokenSource;
use crate::commands::recovery_key::{self, Destination};
use crate::commands::status::Health;
use crate::commands::{
    bind, image_files, image_modules, image_optional, join, list, record_network, rejoin, rotate,
    status, unbind,
};
use crate::failure::chain;
use crate::files::Files;
use crate::flow::Outcome;
use crate::logging;
use crate::opening;
use crate::running;
use crate::unlock::wait::{Wait, Waited};
use crate::unlock::{
    self, cleanup, finish, generator, hibernation, service_manager, wait, withdraw,
};
use arguments::{Command, CommandLine, RebuildFlag};

/// Something that `main` shows for the last time.
type Failure = Box<dyn Error>;

/// Exit code of `unlock` and `open` where something is left to the native prompt.
const LEFT_TO_NATIVE: u8 = 4;
/// Exit code of `status` where something is wrong, of `arm-reboot` where some key servers were not told, and of `wait` where
/// it could not wait.
const TROUBLE: u8 = 3;

/// Runs the command of this process's arguments.
///
/// 0 done, 1 failed, 2 wrong usage; others as latchkey(8) says.
pub fn run() -> ExitCode {
    let arguments = CommandLine::parse();
    logging::start(if arguments.verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
    if latchkey_secret::CONTROL {
        log::warn!("{}", latchkey_secret::CONTROL_WARNING);
    }
    let failed = match arguments.command {
        Command::Wait { .. } => TROUBLE,
        _ => 1,
    };
    match dispatch(arguments.command, &Files::under(arguments.root)) {
        Ok(code) => code,
        Err(error) => {
            log::error!("{}", chain(error.as_ref()));
            ExitCode::from(failed)
        }
    }
}

fn dispatch(command: Command, files: &Files) -> Result<ExitCode, Failure> {
    match command {
        Command::Join {
            again: true,
            server,
            address,
            no_initramfs,
            ..
        } => {
            prepare()?;
            let arguments = rejoin::Arguments {
                server,
                addresses: address,
                rebuild: RebuildFlag { no_initramfs }.into(),
            };
            rejoin::run(files, &arguments)?;
        }
        Command::Join { token, .. } => {
            prepare()?;
            let source = match token.as_deref() {
                None => TokenSource::Prompt,
                Some("-") => TokenSource::Stdin,
                Some(token) => TokenSource::Argument(token.to_owned()),
            };
            join::run(files, source)?;
        }
        Command::Bind {
            device,
            name,
            options,
            key_file,
            volume_key_file,
            format,
            recovery_sheet,
            json,
            rebuild,
        } => {
            prepare()?;
            let recovery_sheet = recovery_sheet.as_deref().map(Destination::of).transpose()?;
            if json.json && recovery_sheet == Some(Destination::Stdout) {
                CommandLine::command()
                    .error(
                        ErrorKind::ArgumentConflict,
                        "the recovery sheet and --json cannot both go to stdout",
                    )
                    .exit();
            }
            let arguments = bind::Arguments {
                device,
                name,
                options,
                key_file,
                volume_key_file,
                format: format.then_some(NewVolume { recovery_sheet }),
                report: json.into(),
                rebuild: rebuild.into(),
            };
            bind::run(files, &arguments)?;
        }
        Command::RecoveryKey {
            device,
            name,
            sheet,
            key_file,
            volume_key_file,
        } => {
            prepare()?;
            let arguments = recovery_key::Arguments {
                device,
                name,
                key_file,
                volume_key_file,
                sheet: Destination::of(&sheet)?,
            };
            recovery_key::run(files, &arguments)?;
        }
        Command::Rotate {
            device,
            key_file,
            finish,
            rebuild,
        } => {
            prepare()?;
            let arguments = rotate::Arguments {
                device,
                key_file,
                finish,
                rebuild: rebuild.into(),
            };
            rotate::run(files, &arguments)?;
        }
        Command::Unbind { device, rebuild } => {
            prepare()?;
            let rebuild = rebuild.into();
            unbind::run(files, &unbind::Arguments { device, rebuild })?;
        }
        Command::List { json } => list::run(files, json.into())?,
        Command::ImageFiles => image_files::run(files)?,
        Command::ImageModules => image_modules::run(files)?,
        Command::ImageOptional => image_optional::run(files)?,
        Command::BoundVolumes => list::run_bound(files)?,
        Command::Status { json } => {
            prepare()?;
            if status::run(files, json.into())? == Health::Trouble {
                return Ok(ExitCode::from(TROUBLE));
            }
        }
        Command::RecordNetwork => record_network::run(files)?,
        Command::ArmReboot { ttl, if_rebooting } => {
            prepare()?;
            let occasion = if if_rebooting {
                Occasion::GoingDown
            } else {
                Occasion::Asked
            };
            let arguments = arm_reboot::Arguments { ttl, occasion };
            if arm_reboot::run(files, arguments)? == Armed::Partly {
                return Ok(ExitCode::from(TROUBLE));
            }
        }
        Command::Run => {
            prepare()?;
            running::run(files)?;
        }
        Command::Open { name } => {
            prepare()?;
            match opening::run(files, &name) {
                Ok(_) => {}
                Err(error) if error.is_final() => {
                    log::error!("{}", chain(&error));
                    return Ok(ExitCode::from(LEFT_TO_NATIVE));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Command::Close { name } => {
            prepare()?;
            opening::close(&name)?;
        }
        boot => return dispatch_boot(boot, files),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the boot scripts call.
fn dispatch_boot(command: Command, files: &Files) -> Result<ExitCode, Failure> {
    match command {
        Command::Unlock {
            names,
            device_limit,
        } => {
            let settings = unlock::Settings {
                names,
                device_limit,
            };
            if unlock::run(files, &settings)? != Outcome::Open {
                return Ok(ExitCode::from(LEFT_TO_NATIVE));
            }
        }
        Command::Wait {
            agent,
            volume,
            device_timeout,
        } => {
            let wait = Wait {
                agent,
                volume,
                device_limit: device_timeout.map(Duration::from_secs),
            };
            let waited = wait::run(files, &wait);
            service_manager::ready(); // whatever came of it, the native unlocker's turn has come
            if waited? == Waited::DevicesMissing {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Cleanup { before_resume } => {
            if !before_resume || hibernation::is_waiting(files) {
                cleanup::run(files);
            }
        }
        Command::Withdraw => withdraw::run(files)?,
        Command::Generate { folder } => generator::run(files, &folder)?,
        Command::GenerateData { folder } => opening::generator::run(files, &folder)?,
        Command::Finish { mount_point } => {
            let from_environment = || std::env::var_os("rootmnt").map(PathBuf::from);
            let mount_point = mount_point
                .or_else(from_environment)
                .filter(|path| path.is_absolute());
            finish::run(files, mount_point.as_deref().unwrap_or(Path::new("/root")))?;
        }
        _ => unreachable!("dispatch() does the rest"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Before secrets are handled or names looked up on the running system.
fn prepare() -> Result<(), Failure> {
    process::harden().map_err(Harden)?;
    process::pin_name_service();
    latchkey_secret::udev::link();
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("failed to harden the process")]
struct Harden(#[source] std::io::Error);
