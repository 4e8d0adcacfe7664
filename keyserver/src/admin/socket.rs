//! The server's end of the administrator's socket.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use latchkey_protocol::token::{Address, JoinToken};
use nix::unistd::Uid;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::approvers::Approvers;
use super::protocol::{
    AUDIT_PAGE, Answer, AuditState, JoinInvitation, JoinInvitations, REQUEST_DEADLINE,
    REQUEST_LIMIT, Request,
};
use crate::config::{Config, own_socket};
use crate::logging::chain;
use crate::service::administration::Invited;
use crate::service::approval::AfterDeny;
use crate::service::listing::PolicyListing;
use crate::service::{AdminError, Invitation, Service};
use crate::users;

/// Most commands at once.
const CONNECTIONS_LIMIT: usize = 16;
/// Pause after accept(2) failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Until the answer must be read.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Does what the administrator asks for.
pub struct Admin {
    service: Arc<Service>,
    names: RwLock<Vec<Address>>,
    approvers: Approvers,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// Everything: root, and the server's own user.
    Administer,
    /// Look at requests and the audit, approve and deny.
    Approve,
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Others could put another socket in its place.
    #[error(
        "the directory '{0}' of the admin socket is open to other users\nuse a directory of its own with mode 0711 or 0700 that belongs to latchkeyd's user; 'approvers' need 0711"
    )]
    Directory(PathBuf),
    /// Another server has it.
    #[error(
        "the admin socket '{0}' belongs to a running latchkeyd\nstop that one, or give this one another 'admin-socket'"
    )]
    InUse(PathBuf),
    /// A file that is none of ours.
    #[error(
        "'{0}' exists and is no socket, so it was left as it is\ngive 'admin-socket' another path"
    )]
    NoSocket(PathBuf),
    /// It failed.
    #[error("failed to make the admin socket '{0}'")]
    Make(PathBuf, #[source] std::io::Error),
}

impl Admin {
    /// `names` are the addresses that join tokens name, `approvers` the users beside root who may approve.
    pub fn new(service: Arc<Service>, names: Vec<Address>, approvers: Vec<String>) -> Self {
        Self {
            service,
            names: RwLock::new(names),
            approvers: Approvers::new(approvers),
        }
    }

    /// What the user `uid` may do, and its name.
    fn right(&self, uid: u32) -> Option<(Right, String)> {
        let name = users::name(uid);
        if uid == 0 || uid == Uid::effective().as_raw() {
            return Some((Right::Administer, name));
        }
        // A user without a name is none of them: `uid N` is no user's name.
        let listed = self.approvers.has(&name);
        listed.then_some((Right::Approve, name))
    }

    /// Names other addresses in join tokens from now on.
    pub fn set_names(&self, names: Vec<Address>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn tokens(&self, invited: Invited) -> JoinInvitations {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let token = |invitation: Invitation| JoinInvitation {
            expires: invitation.expires.text(),
            token: JoinToken {
                server: *self.service.server(),
                secret: invitation.secret,
                client: invitation.client,
                addresses: names.clone(),
            }
            .to_line(),
        };
        JoinInvitations {
            invitations: invited.invitations.into_iter().map(token).collect(),
            group: invited.group,
        }
    }

    /// A policy, with what stands against anybody approving what it asks for.
    fn doubted(
        &self,
        listing: Result<PolicyListing, AdminError>,
    ) -> Result<PolicyListing, AdminError> {
        let mut listing = listing?;
        let approval = listing.policy.as_ref().map(|policy| &policy.approval);
        listing.doubt = approval.and_then(|approval| self.approvers.shortage(approval));
        Ok(listing)
    }

    /// Does what `request` asks for, on behalf of `who`; the answer, and a file that follows it.
    fn perform(&self, request: Request, who: &str) -> (Answer, Option<File>) {
        let service = &self.service;
        let mut file = None;
        let answer = match request {
            Request::Invite {
                clients,
                group,
                seconds,
            } => {
                let lifetime = Duration::from_secs(seconds);
                let invited = service.invite_all(&clients, group.as_ref(), lifetime, who);
                answer(invited.map(|invited| self.tokens(invited)))
            }
            Request::Clients => answer(service.clients()),
            Request::Volumes => answer(service.volumes()),
            Request::Requests => answer(service.requests()),
            Request::Approve { id, code } => answer(service.approve(&id, &code, who)),
            Request::Deny { id, lock } => answer(service.deny(&id, after(lock), who)),
            Request::Rejoins => answer(service.rejoins()),
            Request::ApproveRejoin { id, code } => {
                let approved = service.approve_rejoin(&id, &code, who);
                if let Ok(one) = &approved {
                    log::info!(
                        "'{who}' approved that the machine at {} is taken back as client '{}'",
                        one.peer,
                        one.client
                    );
                }
                answer(approved)
            }
            Request::DenyRejoin { id, lock } => answer(service.deny_rejoin(&id, after(lock), who)),
            Request::Lock { client } => answer(service.lock(&client, who)),
            Request::Readmit { client } => answer(service.readmit(&client, who)),
            Request::Arm { client, seconds } => {
                let until = service.arm(&client, Duration::from_secs(seconds), who);
                answer(until.map(|until| until.text()))
            }
            Request::Groups => answer(service.groups()),
            Request::SetGroup { client, group } => {
                answer(service.set_group(&client, group.as_ref(), who))
            }
            Request::Policy { target } => answer(self.doubted(service.policy_of(&target))),
            Request::SetPolicyOf { target, policy } => {
                let listing = service.set_policy_of(&target, policy.as_ref(), who);
                answer(self.doubted(listing))
            }
            Request::Explain(supposed) => answer(service.explain(&supposed)),
            Request::PutBack => answer(service.put_back()),
            Request::AcceptRollback { reason } => answer(service.accept_rollback(&reason, who)),
            Request::AuditEnd => answer(service.audit_end().map_err(AdminError::from)),
            Request::History { request } => answer(service.history(&request)),
            Request::Revoke { client } => answer(service.revoke(&client, who)),
            Request::Destroy { volume } => answer(service.destroy(&volume, who)),
            Request::Audit { after, limit } => answer(service.audit(after, limit.min(AUDIT_PAGE))),
            Request::VerifyAudit => answer(service.verify_audit().map(AuditState::from)),
            Request::Backup => answer(service.backup(who).map(|backup| {
                file = Some(backup.file);
                backup.size
            })),
        };
        (answer, file)
    }
}

/// Makes the socket in a directory that others may at most pass through (made if it is missing): 0600, or, if there are
/// approvers, open to all users, of whom the kernel tells who they are.
///
/// # Errors
/// Any of [`SocketError`].
pub fn bind(path: &Path, approvers: &[String]) -> Result<UnixListener, SocketError> {
    let make = |error| SocketError::Make(path.to_owned(), error);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(directory);
    // Whatever the umask is.
    match made.and_then(|()| std::fs::set_permissions(directory, PermissionsExt::from_mode(0o711)))
    {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(make(error));
        }
        _ => {}
    }
    let facts = std::fs::metadata(directory).map_err(make)?;
    // Others may pass through it to the socket, but neither see nor change what is in it.
    if facts.mode() & 0o066 != 0 || facts.uid() != Uid::effective().as_raw() {
        return Err(SocketError::Directory(directory.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NoSocket(path.to_owned()));
        }
        Ok(_) => remove_dead(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(make)?;
    std::fs::set_permissions(
        path,
        PermissionsExt::from_mode(match approvers {
            [] => 0o600,
            _ => 0o666,
        }),
    )
    .map_err(make)?;
    Ok(listener)
}

/// Why the approvers that `config` names cannot use the socket, as far as the directories on the way to it tell; on a second
/// line what to do.
pub fn shut_to_approvers(config: &Config) -> Option<String> {
    if config.approvers.is_empty() {
        return None;
    }
    let lets_nobody_pass =
        |path: &&Path| std::fs::metadata(path).is_ok_and(|facts| facts.mode() & 0o001 == 0);
    let shut = config
        .admin_socket
        .ancestors()
        .skip(1)
        .find(lets_nobody_pass)?;
    let hint = if shut == config.data_dir {
        format!(
            "the store's directory must stay shut: set admin-socket = '{}', whose directory is made at the next start",
            own_socket(&config.data_dir).display()
        )
    } else {
        format!("let them pass through it: chmod o+x '{}'", shut.display())
    };
    Some(format!(
        "'approvers' cannot reach the admin socket '{}': '{}' lets no other user pass\n{hint}",
        config.admin_socket.display(),
        shut.display()
    ))
}

/// Removes a socket that nobody answers, which is what a killed server left behind.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        // Files that are no sockets refuse connections as well: the caller has looked.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| SocketError::Make(path.to_owned(), error))
        }
        Err(_) => Ok(()),
    }
}

/// Answers commands until it is dropped.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                // At once: whoever may do nothing takes no place.
                let peer = match stream
                    .peer_cred()
                    .map(|peer| (peer.uid(), admin.right(peer.uid())))
                {
                    Ok((_, Some(peer))) => peer,
                    Ok((uid, None)) => {
                        log::warn!("admin socket: refused uid {uid}");
                        continue;
                    }
                    Err(error) => {
                        log::warn!("admin socket: {error}");
                        continue;
                    }
                };
                let admin = Arc::clone(&admin);
                tokio::spawn(async move {
                    if let Err(problem) = connection(stream, peer, admin).await {
                        log::warn!("admin socket: {problem}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("failed to accept an admin connection, pausing: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    mut stream: UnixStream,
    (right, who): (Right, String),
    admin: Arc<Admin>,
) -> Result<(), String> {
    let mut line = Vec::new();
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading).take(REQUEST_LIMIT as u64 + 1);
    timeout(REQUEST_DEADLINE, reading.read_until(b'\n', &mut line))
        .await
        .map_err(|_| "no request in time".to_owned())?
        .map_err(|error| error.to_string())?;
    if line.is_empty() {
        // Whoever only looks whether the server runs.
        return Ok(());
    }
    let alone = |answer| (answer, None);
    let (answer, file) = if line.len() > REQUEST_LIMIT || !line.ends_with(b"\n") {
        alone(Answer::Failed(
            "the request is larger than the server takes, or cut short".to_owned(),
        ))
    } else {
        match serde_json::from_slice::<Request>(&line) {
            Err(error) => alone(Answer::Failed(format!(
                "the server does not understand the request: {error}\nuse the 'latchkeyd' of the same version"
            ))),
            Ok(request) if !may(right, &request) => alone(Answer::Refused(format!(
                "'{who}' may look at requests and the audit, approve and deny, and nothing else\nrun this command as root"
            ))),
            Ok(request) => tokio::task::spawn_blocking(move || admin.perform(request, &who))
                .await
                .map_err(|error| error.to_string())?,
        }
    };
    let mut line = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
    line.push(b'\n');
    timeout(ANSWER_DEADLINE, writing.write_all(&line))
        .await
        .map_err(|_| "the answer was not read in time".to_owned())?
        .map_err(|error| error.to_string())?;
    match file {
        None => Ok(()),
        Some(file) => tokio::task::spawn_blocking(move || send(file, stream))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("a copy of the store was not read: {error}")),
    }
}

/// Sends all of `file`, as long as each part of it is read in time.
fn send(mut file: File, stream: UnixStream) -> std::io::Result<()> {
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    std::io::copy(&mut file, &mut stream).map(drop)
}

fn after(lock: bool) -> AfterDeny {
    if lock {
        AfterDeny::Lock
    } else {
        AfterDeny::Nothing
    }
}

fn may(right: Right, request: &Request) -> bool {
    right == Right::Administer
        || matches!(
            request,
            Request::Requests
                | Request::Approve { .. }
                | Request::Deny { .. }
                | Request::Rejoins
                | Request::ApproveRejoin { .. }
                | Request::DenyRejoin { .. }
                | Request::Volumes
                | Request::Audit { .. }
                | Request::AuditEnd
                | Request::History { .. }
        )
}

fn answer(result: Result<impl Serialize, AdminError>) -> Answer {
    let error = match result {
        Ok(value) => {
            return match serde_json::to_value(value) {
                Ok(value) => Answer::Done(value),
                Err(error) => Answer::Failed(error.to_string()),
            };
        }
        Err(error) => error,
    };
    match error {
        AdminError::Record(_) | AdminError::Chain(_) => {
            log::error!("admin socket: {}", chain(&error));
            Answer::Failed(causes(&error))
        }
        refused => Answer::Refused(refused.to_string()),
    }
}

/// An error with its causes, hints on lines of their own.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}\n{words}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_an_open_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let error = bind(&directory.path().join("s"), &[]).unwrap_err();
        assert!(matches!(error, SocketError::Directory(_)), "{error}");
    }

    #[tokio::test]
    async fn the_socket_is_open_to_others_only_if_there_are_approvers() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711)).unwrap();
        for (approvers, mode) in [(&[][..], 0o600), (&["alice".to_owned()], 0o666)] {
            let path = directory.path().join(format!("{mode:o}"));
            drop(bind(&path, approvers).unwrap());
            let found = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
    }

    #[test]
    fn approvers_decide_on_boots_and_change_nothing_else() {
        let client = || -> latchkey_protocol::ClientName { "web-1".parse().unwrap() };
        let (id, code, reason) = (String::new, String::new, String::new);
        for (request, approver) in [
            (Request::Requests, true),
            (
                Request::Approve {
                    id: id(),
                    code: code(),
                },
                true,
            ),
            (
                Request::Deny {
                    id: id(),
                    lock: true,
                },
                true,
            ),
            (
                Request::Arm {
                    client: client(),
                    seconds: 60,
                },
                false,
            ),
            (Request::Revoke { client: client() }, false),
            (Request::Backup, false),
            (Request::Readmit { client: client() }, false),
            (Request::AcceptRollback { reason: reason() }, false),
        ] {
            assert!(may(Right::Administer, &request), "{request:?}");
            assert_eq!(may(Right::Approve, &request), approver, "{request:?}");
        }
    }

    #[test]
    fn what_is_no_socket_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let file = directory.path().join("store.sqlite3");
        std::fs::write(&file, "records").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            let error = bind(path, &[]).unwrap_err();
            assert!(matches!(error, SocketError::NoSocket(_)), "{error}");
            assert_eq!(std::fs::read(path).unwrap(), b"records");
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let path = directory.path().join("s");
        drop(bind(&path, &[]).unwrap());
        let live = bind(&path, &[]).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = bind(&path, &[]).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        drop(live);
    }
}
