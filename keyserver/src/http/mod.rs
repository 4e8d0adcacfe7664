//! The HTTP interface of the agents.
//!
//! Whoever holds no registered key for what it asks gets one and the same answer, whatever exists: 403 and
//! [`REFUSED`]. Only the log says why, and only at debug, because any stranger can cause it. Known clients hear
//! what was wrong with their request; what is wrong with the server stays in its log.

mod body;
mod failure;
mod joining;
mod route;
mod running;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use latchkey_protocol::encoding::Bytes as FixedBytes;
use latchkey_protocol::ids::ClientName;
use latchkey_protocol::wire::{
    BootReport, Done, ReleaseAnswer, ReleaseRequest, RotationEnd, RotationRequest, Verdict,
    VolumeRequest, VolumeVerdict,
};
use serde::Serialize;
use tokio::time::Instant;

use self::body::BodyProblem;
use self::failure::Failure;
use self::route::Route;
pub use self::stream::AnswerBody;
use crate::ca::Authority;
use crate::policy::UNKNOWN_VOLUME;
use crate::service::{Identity, Service};

/// What strangers are told.
pub const REFUSED: &str = "refused";

/// What strangers hear leaves at a multiple of this after their request was complete, so that the time tells them no more
/// than the words: not whether a key, a client or a volume exists. Longer than a commit takes.
const STRANGERS_PACE: Duration = Duration::from_millis(50);

/// The body of a request, as far as it came.
type Body = Result<Bytes, BodyProblem>;

/// Answers requests.
pub struct Api {
    service: Arc<Service>,
    authority: Arc<Authority>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// SHA-256 of the SubjectPublicKeyInfo of its certificate; it has proved that it holds the key.
    pub key_hash: Option<[u8; 32]>,
}

impl Api {
    /// An interface to `service` whose CA is `authority`.
    pub fn new(service: Arc<Service>, authority: Arc<Authority>) -> Self {
        Self { service, authority }
    }

    /// The answer to one request; `complete` is called when all of it is there.
    pub async fn answer(
        self: Arc<Self>,
        peer: Peer,
        request: Request<Incoming>,
        complete: impl FnOnce(),
    ) -> Response<AnswerBody> {
        let (head, body) = request.into_parts();
        // All of it comes first: a stranger hears the answer before the connection closes, how long that takes is measured
        // from here, and at most one thread has to be waited for.
        let body = body::read(body).await;
        let began = Instant::now();
        complete();
        let route = Route::of(&head.method, &head.uri);
        let whole = |json| failure::response(hyper::StatusCode::OK, json, None);
        let result = match route {
            Some(Route::Join) => self.join(peer, body).await.map(whole),
            Some(Route::Rejoin) => self.rejoin(peer, body).await.map(whole),
            Some(Route::Life) => self.life(peer, body).await,
            route => self.known(peer, route, body).await.map(whole),
        };
        match result {
            Ok(response) => response,
            Err(failure) => {
                let what = format!("{} {}", head.method, head.uri.path().escape_default());
                failure.log(peer.address, &what);
                if failure.is_for_strangers() {
                    pace(began).await;
                }
                failure.into_response()
            }
        }
    }

    /// Everything that needs a registered key in the right role.
    async fn known(
        self: Arc<Self>,
        peer: Peer,
        route: Option<Route>,
        body: Body,
    ) -> Result<Vec<u8>, Failure> {
        if let Some(Route::Release | Route::Open | Route::Proof) = route {
            // A task of its own: what has begun is finished, also when the peer goes away.
            let task = tokio::spawn(async move { self.released(peer, route, body).await });
            return task
                .await
                .unwrap_or_else(|error| Err(Failure::server(&error)));
        }
        blocking(move || {
            let (route, identity) = self.admit(peer, route)?;
            let client = || identity.client().clone();
            let body = body.map_err(|problem| Failure::client_body(client(), problem))?;
            self.perform(peer, route, &identity, &body)
                .map_err(|failure| failure.of_client(client()))
        })
        .await
    }

    /// Releases and proofs, which all machines ask for at once after a power cut: they run where the connection does,
    /// and await the commit.
    async fn released(
        &self,
        peer: Peer,
        route: Option<Route>,
        body: Body,
    ) -> Result<Vec<u8>, Failure> {
        let began = Instant::now();
        let (route, identity) = self.admit(peer, route)?;
        let invalid = |problem| Failure::client_body(identity.client().clone(), problem);
        let body = body.map_err(invalid)?;
        let request: ReleaseRequest = body::parse(&body).map_err(invalid)?;
        let ip = peer.address.ip();
        let answer = match route {
            Route::Proof => self.service.proof_awaited(&identity, ip, &request).await,
            Route::Open => self.service.open_awaited(&identity, ip, &request).await,
            _ => self.service.release_awaited(&identity, ip, &request).await,
        };
        let answer =
            answer.map_err(|error| Failure::from(error).of_client(identity.client().clone()))?;
        if let Route::Release | Route::Open = route {
            log_verdicts(identity.client(), peer, &answer);
        }
        if answer.verdicts.iter().any(is_for_strangers) {
            pace(began).await;
        }
        json(&answer)
    }

    /// Who asks, if it may ask for this at all.
    fn admit(&self, peer: Peer, route: Option<Route>) -> Result<(Route, Identity), Failure> {
        let stranger = |why: &str| Failure::Stranger(why.to_owned());
        let hash = peer
            .key_hash
            .ok_or_else(|| stranger("no client certificate"))?;
        let identity = self
            .service
            .identify(&FixedBytes(hash))
            .map_err(Failure::from)?
            .ok_or_else(|| stranger("unknown client key"))?;
        let name = identity.client();
        let role = identity.role();
        match route {
            None => Err(stranger(&format!(
                "client '{name}', {role:?} key: no such endpoint"
            ))),
            Some(route) if !route.is_for(&identity) => Err(stranger(&format!(
                "client '{name}': the {role:?} key is not for this endpoint, or was revoked"
            ))),
            Some(route) => Ok((route, identity)),
        }
    }

    fn perform(
        &self,
        peer: Peer,
        route: Route,
        identity: &Identity,
        body: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let (service, ip) = (&self.service, peer.address.ip());
        let invalid = |problem| Failure::client_body(identity.client().clone(), problem);
        match route {
            Route::Register => {
                let request: VolumeRequest = body::parse(body).map_err(invalid)?;
                let answer = service.register(identity, ip, &request)?;
                log::info!(
                    "client '{}' registered volume '{}' from {ip}",
                    identity.client(),
                    request.volume
                );
                json(&answer)
            }
            Route::Report => {
                let report: BootReport = body::parse(body).map_err(invalid)?;
                service.report(identity, ip, &report)?;
                json(&Done::default())
            }
            Route::Retire(volume) => {
                body::expect_none(body).map_err(invalid)?;
                service.retire(identity, ip, volume)?;
                log::info!(
                    "client '{}' gave up volume '{volume}' from {ip}",
                    identity.client()
                );
                json(&Done::default())
            }
            Route::Status => {
                body::expect_none(body).map_err(invalid)?;
                json(&service.status(identity)?)
            }
            Route::Rotate => {
                let request: RotationRequest = body::parse(body).map_err(invalid)?;
                json(&service.rotate(identity, ip, &request)?)
            }
            Route::EndRotation => {
                let end: RotationEnd = body::parse(body).map_err(invalid)?;
                service.end_rotation(identity, ip, &end)?;
                json(&Done::default())
            }
            Route::NextTickets
            | Route::ConfirmTickets
            | Route::Heartbeat
            | Route::AnswerLife
            | Route::Renew => self.running(peer, route, identity, body),
            // Each is answered before it comes here.
            Route::Join
            | Route::Rejoin
            | Route::Life
            | Route::Release
            | Route::Open
            | Route::Proof => Err(Failure::Stranger(
                "not for known keys, or awaited".to_owned(),
            )),
        }
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

fn log_verdicts(client: &ClientName, peer: Peer, answer: &ReleaseAnswer) {
    for verdict in &answer.verdicts {
        let what = match &verdict.verdict {
            Verdict::Released { .. } => "released".to_owned(),
            Verdict::Pending { id, .. } => format!("waits for a person: request {}", id.as_str()),
            Verdict::Wait { reason, .. } => format!("waits: {}", reason.as_str()),
            Verdict::Denied { reason, .. } => format!("denied: {}", reason.as_str()),
            Verdict::Destroyed => "destroyed".to_owned(),
        };
        log::info!(
            "client '{client}' asked for volume '{}' from {}: {what}",
            verdict.volume,
            peer.address.ip()
        );
    }
}

/// Whether the verdict is what everybody hears of a volume that is not theirs.
fn is_for_strangers(verdict: &VolumeVerdict) -> bool {
    matches!(&verdict.verdict, Verdict::Denied { reason, .. } if reason.as_str() == UNKNOWN_VOLUME)
}

/// Waits for the next multiple of [`STRANGERS_PACE`] since `began`.
async fn pace(began: Instant) {
    let steps = began.elapsed().as_micros() / STRANGERS_PACE.as_micros() + 1;
    let steps = u32::try_from(steps).unwrap_or(u32::MAX);
    tokio::time::sleep_until(began + STRANGERS_PACE * steps).await;
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body).map_err(|error| Failure::server(&error))
}

/// Runs what waits for the disk on a thread where waiting is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::server(&error)))
}
