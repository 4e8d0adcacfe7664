//! The endpoints of a running machine: tickets, heartbeat, proof of life, renewal.

use std::sync::Arc;

use hyper::Response;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::wire::{
    ConfirmRequest, Done, HeartbeatRequest, LifeAnswer, RenewAnswer, RenewRequest, Text,
    TicketsRequest, Version,
};

use super::failure::Failure;
use super::route::Route;
use super::stream::{AnswerBody, LifeBody};
use super::{Api, Body, Peer, blocking, body, json};
use crate::ca::{ClientKey, RequestedKey};
use crate::service::{Identity, ServiceError};

impl Api {
    /// A stream over which a running machine is asked whether it lives.
    pub(super) async fn life(
        self: Arc<Self>,
        peer: Peer,
        body: Body,
    ) -> Result<Response<AnswerBody>, Failure> {
        let api = Arc::clone(&self);
        let stream = blocking(move || {
            let (_, identity) = api.admit(peer, Some(Route::Life))?;
            let client = || identity.client().clone();
            body.and_then(|body| body::expect_none(&body))
                .map_err(|problem| Failure::client_body(client(), problem))?;
            api.service
                .open_life(&identity, peer.address.ip())
                .map_err(|error| Failure::from(error).of_client(client()))
        })
        .await?;
        log::debug!("client '{}' keeps a stream open", stream.client());
        let lines = LifeBody::new(Arc::clone(&self.service), stream);
        let mut response = Response::new(AnswerBody::Life(lines));
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        );
        Ok(response)
    }

    /// What else a running machine asks for.
    pub(super) fn running(
        &self,
        peer: Peer,
        route: Route,
        identity: &Identity,
        body: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let (service, ip) = (&self.service, peer.address.ip());
        let invalid = |problem| Failure::client_body(identity.client().clone(), problem);
        match route {
            Route::NextTickets => {
                let request: TicketsRequest = body::parse(body).map_err(invalid)?;
                json(&service.next_tickets(identity, ip, &request)?)
            }
            Route::ConfirmTickets => {
                let request: ConfirmRequest = body::parse(body).map_err(invalid)?;
                json(&service.confirm_tickets(identity, ip, &request)?)
            }
            Route::Heartbeat => {
                let request: HeartbeatRequest = body::parse(body).map_err(invalid)?;
                json(&service.heartbeat(identity, ip, &request)?)
            }
            Route::AnswerLife => {
                let answer: LifeAnswer = body::parse(body).map_err(invalid)?;
                service.answer_life(identity, ip, &answer)?;
                json(&Done::default())
            }
            Route::Renew => {
                let request: RenewRequest = body::parse(body).map_err(invalid)?;
                self.renew(peer, identity, &request)
            }
            _ => Err(Failure::Stranger("not for this way in".to_owned())),
        }
    }

    fn renew(
        &self,
        peer: Peer,
        identity: &Identity,
        request: &RenewRequest,
    ) -> Result<Vec<u8>, Failure> {
        let key = RequestedKey::from_csr(request.host_csr.as_str()).map_err(|error| {
            log::debug!("client '{}': {error}", identity.client());
            Failure::from(ServiceError::Invalid(
                "the certificate request is not valid",
            ))
        })?;
        self.service
            .renew(identity, peer.address.ip(), &Bytes(key.hash()))?;
        let issued = self
            .authority
            .client_certificate(identity.client(), ClientKey::Host, &key)
            .map_err(|error| Failure::server(&error))?;
        log::info!(
            "client '{}' renewed its host certificate",
            identity.client()
        );
        json(&RenewAnswer {
            version: Version::default(),
            host_certificate: Text::cut(&issued.pem),
        })
    }
}
