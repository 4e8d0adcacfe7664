//! Which endpoint a request is for, and which key may use it.

use hyper::{Method, Uri};
use latchkey_protocol::VolumeId;
use latchkey_protocol::wire;

use crate::records::Role;
use crate::service::Identity;

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/join`.
    Join,
    /// `POST /v1/rejoin`.
    Rejoin,
    /// `POST /v1/release`.
    Release,
    /// `POST /v1/proof`.
    Proof,
    /// `POST /v1/open`.
    Open,
    /// `POST /v1/volumes`.
    Register,
    /// `DELETE /v1/volumes/ID`.
    Retire(VolumeId),
    /// `POST /v1/report`.
    Report,
    /// `GET /v1/status`.
    Status,
    /// `POST /v1/tickets/next`.
    NextTickets,
    /// `POST /v1/tickets/confirm`.
    ConfirmTickets,
    /// `POST /v1/heartbeat`.
    Heartbeat,
    /// `GET /v1/life`.
    Life,
    /// `POST /v1/life/answer`.
    AnswerLife,
    /// `POST /v1/renew`.
    Renew,
    /// `POST /v1/rotate`.
    Rotate,
    /// `POST /v1/rotate/end`.
    EndRotation,
}

impl Route {
    /// The endpoint of a request line, in its one spelling: no query, no trailing slash, no escapes.
    pub fn of(method: &Method, uri: &Uri) -> Option<Self> {
        if uri.query().is_some() {
            return None;
        }
        match (method, uri.path()) {
            (&Method::POST, wire::JOIN) => Some(Self::Join),
            (&Method::POST, wire::REJOIN) => Some(Self::Rejoin),
            (&Method::POST, wire::RELEASE) => Some(Self::Release),
            (&Method::POST, wire::PROOF) => Some(Self::Proof),
            (&Method::POST, wire::OPEN) => Some(Self::Open),
            (&Method::POST, wire::VOLUMES) => Some(Self::Register),
            (&Method::POST, wire::REPORT) => Some(Self::Report),
            (&Method::GET, wire::STATUS) => Some(Self::Status),
            (&Method::POST, wire::TICKETS_NEXT) => Some(Self::NextTickets),
            (&Method::POST, wire::TICKETS_CONFIRM) => Some(Self::ConfirmTickets),
            (&Method::POST, wire::HEARTBEAT) => Some(Self::Heartbeat),
            (&Method::GET, wire::LIFE) => Some(Self::Life),
            (&Method::POST, wire::LIFE_ANSWER) => Some(Self::AnswerLife),
            (&Method::POST, wire::RENEW) => Some(Self::Renew),
            (&Method::POST, wire::ROTATE) => Some(Self::Rotate),
            (&Method::POST, wire::ROTATE_END) => Some(Self::EndRotation),
            (&Method::DELETE, path) => path
                .strip_prefix(wire::VOLUMES)?
                .strip_prefix('/')?
                .parse()
                .ok()
                .map(Self::Retire),
            _ => None,
        }
    }

    /// Whether this key may use it. The boot key asks for releases and nothing else, even when it was revoked (to
    /// hear that); the host key does all else, until it is revoked. A data volume's machine hears that too.
    pub fn is_for(self, identity: &Identity) -> bool {
        match (self, identity.role()) {
            (Self::Join | Self::Rejoin, _) => false,
            (Self::Release, role) => role == Role::Boot,
            (Self::Open, role) => role == Role::Host,
            (_, role) => role == Role::Host && !identity.is_revoked(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_one_spelling() {
        let id = "01234567-89ab-4cde-8f01-23456789abcd";
        let volume = format!("/v1/volumes/{id}");
        for (method, uri, expected) in [
            (Method::POST, "/v1/join", Some(Route::Join)),
            (Method::POST, "/v1/rejoin", Some(Route::Rejoin)),
            (Method::GET, "/v1/rejoin", None),
            (Method::POST, "/v1/release", Some(Route::Release)),
            (Method::POST, "/v1/open", Some(Route::Open)),
            (Method::GET, "/v1/open", None),
            (Method::GET, "/v1/status", Some(Route::Status)),
            (Method::POST, "/v1/tickets/next", Some(Route::NextTickets)),
            (
                Method::POST,
                "/v1/tickets/confirm",
                Some(Route::ConfirmTickets),
            ),
            (Method::POST, "/v1/heartbeat", Some(Route::Heartbeat)),
            (Method::GET, "/v1/life", Some(Route::Life)),
            (Method::POST, "/v1/life/answer", Some(Route::AnswerLife)),
            (Method::POST, "/v1/renew", Some(Route::Renew)),
            (Method::POST, "/v1/rotate", Some(Route::Rotate)),
            (Method::POST, "/v1/rotate/end", Some(Route::EndRotation)),
            (Method::GET, "/v1/rotate", None),
            (Method::POST, "/v1/life", None),
            (Method::POST, "/v1/tickets", None),
            (
                Method::DELETE,
                &volume,
                Some(Route::Retire(id.parse().unwrap())),
            ),
            (Method::GET, "/v1/join", None),
            (Method::POST, "/v1/join/", None),
            (Method::POST, "/v1/join?x", None),
            (Method::POST, "/v1/../v1/join", None),
            (Method::POST, "/v1/%6aoin", None),
            (Method::DELETE, "/v1/volumes", None),
            (Method::DELETE, "/v1/volumes/", None),
            (Method::DELETE, "/v1/volumes/x", None),
            (Method::DELETE, "/v1/volumesx", None),
            (Method::POST, "/", None),
            (Method::POST, "http://a/v1/join", Some(Route::Join)),
        ] {
            let uri = uri.parse().unwrap();
            assert_eq!(Route::of(&method, &uri), expected, "{method} {uri}");
        }
    }
}
