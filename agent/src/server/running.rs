//! What only a running machine asks, with its host key: tickets, heartbeats, challenges, renewal.

use latchkey_protocol::token::Address;
use latchkey_protocol::wire::{
    ConfirmAnswer, ConfirmRequest, Done, HEARTBEAT, HeartbeatAnswer, HeartbeatRequest, LIFE_ANSWER,
    LifeAnswer, RENEW, RenewAnswer, RenewRequest, TICKETS_CONFIRM, TICKETS_NEXT, TicketsAnswer,
    TicketsRequest,
};
use reqwest::Method;

use super::ClientError;
use super::client::{Client, other_volumes};

impl Client {
    /// Asks for the next tickets (host key); they come in the order of the volumes asked for.
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn next_tickets(
        &self,
        address: &Address,
        request: &TicketsRequest,
    ) -> Result<TicketsAnswer, ClientError> {
        let answer: TicketsAnswer = self
            .call(address, Method::POST, TICKETS_NEXT, Some(request))
            .await?;
        let asked = request.volumes.iter().map(|shown| shown.volume);
        if asked.eq(answer.tickets.iter().map(|ticket| ticket.volume)) {
            Ok(answer)
        } else {
            Err(other_volumes(address))
        }
    }

    /// Says which tickets the headers hold, and announces a reboot if `request` says so (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn confirm_tickets(
        &self,
        address: &Address,
        request: &ConfirmRequest,
    ) -> Result<ConfirmAnswer, ClientError> {
        self.call(address, Method::POST, TICKETS_CONFIRM, Some(request))
            .await
    }

    /// Says that this machine runs (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn heartbeat(
        &self,
        address: &Address,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatAnswer, ClientError> {
        self.call(address, Method::POST, HEARTBEAT, Some(request))
            .await
    }

    /// Answers a challenge of the stream, over a connection of its own (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn answer_challenge(
        &self,
        address: &Address,
        answer: &LifeAnswer,
    ) -> Result<Done, ClientError> {
        self.call(address, Method::POST, LIFE_ANSWER, Some(answer))
            .await
    }

    /// Asks for a new certificate of the same key (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn renew(
        &self,
        address: &Address,
        request: &RenewRequest,
    ) -> Result<RenewAnswer, ClientError> {
        self.call(address, Method::POST, RENEW, Some(request)).await
    }
}
