//! Bodies of requests: limited in size and time, and strictly parsed.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use latchkey_protocol::wire::BODY_LIMIT;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// Until the body is complete.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyProblem {
    /// More than [`BODY_LIMIT`] bytes.
    #[error("the body is larger than {BODY_LIMIT} bytes")]
    TooLarge,
    /// It did not come in time.
    #[error("the body did not arrive within {} s", BODY_DEADLINE.as_secs())]
    TooSlow,
    /// The connection broke, or the framing is wrong.
    #[error("the body is incomplete")]
    Incomplete,
    /// Not the JSON that was expected. `text` can hold parts of the body, `place` does not.
    #[error("the body is not valid: {text}")]
    Invalid {
        /// For the one who sent it.
        text: String,
        /// For the log.
        place: String,
    },
    /// There is one where there must be none.
    #[error("this request has no body")]
    Unexpected,
}

impl BodyProblem {
    /// The problem without anything that the body said, which may hold a secret.
    pub fn for_log(&self) -> String {
        match self {
            Self::Invalid { place, .. } => format!("the body is not valid {place}"),
            other => other.to_string(),
        }
    }
}

/// The whole body.
///
/// # Errors
/// `TooLarge`, `TooSlow`, `Incomplete`.
pub async fn read(body: Incoming) -> Result<Bytes, BodyProblem> {
    if body.size_hint().lower() > BODY_LIMIT as u64 {
        return Err(BodyProblem::TooLarge);
    }
    match timeout(BODY_DEADLINE, Limited::new(body, BODY_LIMIT).collect()).await {
        Err(_) => Err(BodyProblem::TooSlow),
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyProblem::TooLarge),
        Ok(Err(_)) => Err(BodyProblem::Incomplete),
    }
}

/// The value that a body holds.
///
/// # Errors
/// `Invalid`.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyProblem> {
    serde_json::from_slice(body).map_err(|error| BodyProblem::Invalid {
        text: error.to_string(),
        place: format!(
            "at line {}, column {}: {:?}",
            error.line(),
            error.column(),
            error.classify()
        ),
    })
}

/// Refuses a body.
///
/// # Errors
/// `Unexpected`.
pub fn expect_none(body: &[u8]) -> Result<(), BodyProblem> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(BodyProblem::Unexpected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use latchkey_protocol::wire::Done;

    #[test]
    fn the_log_never_repeats_a_body() {
        let problem = parse::<Done>(br#"{"version":1,"hunter2":3}"#).unwrap_err();
        assert!(problem.to_string().contains("hunter2"), "{problem}");
        assert!(!problem.for_log().contains("hunter2"), "{problem:?}");
    }
}
