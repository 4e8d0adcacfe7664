//! `latchkey join`: turns a join token into two identities at a key server.
//!
//! Both private keys are on disk before the key server hears of them, in `servers/<id>.joining`; the finished
//! folder gets its name last. So a run that was interrupted anywhere is repaired by running it again: it finds its
//! keys and sends the same request, which the key server answers again until the token ends.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use latchkey_protocol::token::{self, Address, JoinToken, TokenError};
use latchkey_protocol::wire::{JoinAnswer, JoinRequest, Text, Version};
use latchkey_protocol::{ClientName, ServerId};
use latchkey_secret::{SecretBytes, SecretError};
use rcgen::{KeyPair, PKCS_ED25519};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroize;

use super::prompt::{self, PromptError};
use super::service;
use crate::files::{self, Files, FilesError, Role, ServerSettings};
use crate::server::request::{RequestError, signing_request as signing_request_of};
use crate::server::{
    CertificateTime, ClientError, Fault, Identity, IdentityError, Join, SetupError, block_on, pem,
};

/// Where the join token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The command line, where other users can read it.
    Argument(String),
    /// Standard input.
    Stdin,
    /// A person at the terminal.
    Prompt,
}

/// A finished join.
#[derive(Debug)]
pub struct Joined {
    /// The key server.
    pub server: ServerId,
    /// Our name there.
    pub client: ClientName,
    /// Where its files lie.
    pub dir: PathBuf,
}

/// The machine did not join; nothing that was there before has changed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No token was given.
    #[error("failed to read the join token")]
    Read(#[source] SecretError),
    /// As above.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// What was given is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The machine is a client of that key server.
    #[error(
        "this machine has joined that key server already, as '{client}'\n\
         if its keys are lost or damaged: latchkey join --again\n\
         to join anew, 'latchkey unbind' the volumes that are bound to it, remove '{}' and run this again",
        .dir.display()
    )]
    AlreadyJoined {
        /// Our name there.
        client: ClientName,
        /// Where its files lie.
        dir: PathBuf,
    },
    /// Another latchkey command is changing things.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A key pair could not be made.
    #[error("failed to make a key pair")]
    Keys(#[source] rcgen::Error),
    /// As above: a request for its certificate.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No memory for a key.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The TLS client could not be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The kernel gave no event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
    /// Every address belongs to another key server.
    #[error(
        "the join token is for another key server than the one that answers; the token was not sent\n{}\n\
         compare the token's origin with these addresses; if they are right, somebody may be in between",
        lines(.0)
    )]
    OtherServer(Vec<ClientError>),
    /// No address answers.
    #[error(
        "no address in the join token answers\n{}\n\
         check that 'latchkeyd serve' runs there and that TCP to it is let through, then run this again with the same token",
        lines(.0)
    )]
    Unreachable(Vec<ClientError>),
    /// The key server does not take the token, and says why.
    #[error(transparent)]
    Refused(ClientError),
    /// The key server has no invitation with that secret.
    #[error(
        "key server '{0}' does not know this join token: it is too old, or a newer one took its place\n\
         ask the administrator for a new one: latchkeyd invite NAME"
    )]
    UnknownToken(Address),
    /// The key server's certificates are not for our keys.
    #[error("the key server's answer does not fit the keys that it was sent")]
    Answer(#[source] IdentityError),
}

/// Reads the token and joins.
///
/// # Errors
/// A variant of [`JoinError`].
pub fn run(files: &Files, source: TokenSource) -> Result<Joined, JoinError> {
    let token = read_token(source)?;
    let joined = join(files, &token)?;
    log::info!(
        "joined key server {} as '{}'",
        joined.server.short(),
        joined.client
    );
    service::restart(files);
    log::info!("next: latchkey bind DEVICE");
    Ok(joined)
}

/// Joins the key server that `token` names.
///
/// # Errors
/// A variant of [`JoinError`].
pub fn join(files: &Files, token: &JoinToken) -> Result<Joined, JoinError> {
    let _lock = files.lock()?;
    let dir = files.server_dir(&token.server);
    if dir.exists() {
        let client = files::ServerFiles::read(dir.clone())?.settings.client;
        return Err(JoinError::AlreadyJoined { client, dir });
    }
    let time = CertificateTime::of_clock();
    let unfinished = files.joining_dir(&token.server);
    files::make_dir(&unfinished)?;
    let request = JoinRequest {
        version: Version::default(),
        secret: token.secret,
        boot_csr: signing_request(&unfinished, Role::Boot)?,
        host_csr: signing_request(&unfinished, Role::Host)?,
    };
    let (answer, ca) = ask(token, &request, time)?;
    let settings = ServerSettings {
        id: token.server,
        client: token.client.clone(),
        addresses: token.addresses.clone(),
        joined: time.0,
    };
    store(&unfinished, &answer, &ca, &settings)?;
    files::rename(&unfinished, &dir)?;
    Ok(Joined {
        server: token.server,
        client: token.client.clone(),
        dir,
    })
}

fn read_token(source: TokenSource) -> Result<JoinToken, JoinError> {
    let secret = match source {
        TokenSource::Argument(line) => {
            log::warn!(
                "the join token on the command line can be read by every user; \
                 'latchkey join -' reads it from stdin"
            );
            let mut line = line;
            let secret = SecretBytes::read_from(&mut line.as_bytes(), token::LIMIT);
            line.zeroize();
            secret.map_err(JoinError::Read)?
        }
        TokenSource::Stdin if !io::stdin().is_terminal() => {
            SecretBytes::read_from(&mut io::stdin().lock(), token::LIMIT)
                .map_err(JoinError::Read)?
        }
        TokenSource::Stdin | TokenSource::Prompt => prompt::ask_hidden("Join token: ")?,
    };
    let text = std::str::from_utf8(secret.expose_secret()).map_err(|_| TokenError::Damaged)?;
    Ok(text.parse()?)
}

/// A PKCS#10 request for the key of `role` in `dir`, which is made unless an earlier run left it there whole.
pub(super) fn signing_request(dir: &Path, role: Role) -> Result<Text, JoinError> {
    let path = dir.join(role.key_name());
    if path.exists() {
        match signing_request_of(&files::read_key(&path)?) {
            // Half a key was never sent to anybody.
            Err(RequestError::Key) => files::remove(&path)?,
            request => return Ok(request?),
        }
    }
    Ok(signing_request_of(&make_key(&path)?)?)
}

fn make_key(path: &Path) -> Result<SecretBytes, JoinError> {
    let mut key = KeyPair::generate_for(&PKCS_ED25519).map_err(JoinError::Keys)?;
    let pem = pem::encode_private_key(key.serialized_der());
    key.zeroize();
    let pem = pem?;
    files::write_new(path, pem.expose_secret())?;
    Ok(pem)
}

fn ask(
    token: &JoinToken,
    request: &JoinRequest,
    time: CertificateTime,
) -> Result<(JoinAnswer, CertificateDer<'static>), JoinError> {
    let join = Join::new(token.server, time)?;
    let tries = async {
        let mut tries = Vec::new();
        for address in &token.addresses {
            match join.join(address, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.fault.is_network_fault() => tries.push(error),
                Err(error) if error.fault.is_for_strangers() => {
                    return Err(JoinError::UnknownToken(error.address));
                }
                Err(error) => return Err(JoinError::Refused(error)),
            }
        }
        let elsewhere = |error: &ClientError| matches!(error.fault, Fault::OtherServer);
        Err(if tries.iter().all(elsewhere) {
            JoinError::OtherServer(tries)
        } else {
            JoinError::Unreachable(tries)
        })
    };
    block_on(tries).map_err(JoinError::Start)?
}

/// Writes everything but the keys. The settings come last: without them the folder is no key server's.
pub(super) fn store(
    dir: &Path,
    answer: &JoinAnswer,
    ca: &CertificateDer<'_>,
    settings: &ServerSettings,
) -> Result<(), JoinError> {
    for (role, certificate) in [
        (Role::Boot, &answer.boot_certificate),
        (Role::Host, &answer.host_certificate),
    ] {
        let key = files::read_key(&dir.join(role.key_name()))?;
        let certificate = certificate.as_str().as_bytes();
        Identity::from_pem(&key, certificate).map_err(JoinError::Answer)?;
        files::replace(&dir.join(role.certificate_name()), certificate)?;
    }
    files::replace(&dir.join("ca.pem"), pem::encode_certificate(ca).as_bytes())?;
    let text = toml::to_string(settings).expect("the settings are plain text and numbers");
    files::replace(&dir.join("server.toml"), text.as_bytes())?;
    Ok(())
}

fn lines(errors: &[ClientError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
