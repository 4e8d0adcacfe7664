//! The one mapping from what went wrong to what the peer hears and what the log says.

use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use latchkey_protocol::ClientName;
use latchkey_protocol::wire::{ErrorAnswer, Text, Version};

use super::REFUSED;
use super::body::BodyProblem;
use super::stream::AnswerBody;
use crate::logging::chain;
use crate::sealed::RecordError;
use crate::service::ServiceError;
use crate::service::join::JoinError;
use crate::service::rejoin::RejoinError;

/// Seconds after which an agent may try again, at the earliest, when the server had a problem of its own.
const RETRY_SECONDS: u32 = 5;
/// Seconds over which those that were sent away together are spread, so that they do not come back together. Where the
/// time is long, a tenth of it.
const RETRY_SPREAD: u32 = 10;

/// A request that was not done.
#[derive(Debug)]
pub enum Failure {
    /// The peer is nobody, or nobody to this endpoint: it hears nothing, the log has the reason.
    Stranger(String),
    /// The peer may be told what is wrong.
    Told(Told),
    /// The server has a problem, for the log alone.
    Server {
        /// What the peer gets.
        status: StatusCode,
        /// For the log.
        reason: String,
    },
}

/// A failure that the peer hears of.
#[derive(Debug)]
pub struct Told {
    status: StatusCode,
    text: String,
    retry_after: Option<u32>,
    client: Option<ClientName>,
    log: String,
}

impl Told {
    fn new(status: StatusCode, text: &dyn std::fmt::Display) -> Self {
        let text = text.to_string();
        Self {
            status,
            log: text.replace('\n', "; "),
            text,
            retry_after: None,
            client: None,
        }
    }
}

impl Failure {
    /// What a stranger sent was wrong.
    pub fn stranger_body(problem: BodyProblem) -> Self {
        Self::Stranger(problem.for_log())
    }

    /// What a known client sent was wrong.
    pub fn client_body(client: ClientName, problem: BodyProblem) -> Self {
        let status = match problem {
            BodyProblem::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            BodyProblem::TooSlow => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::Told(Told {
            status,
            text: problem.to_string(),
            retry_after: None,
            client: Some(client),
            log: problem.for_log(),
        })
    }

    /// A problem of ours that will not pass by itself.
    pub fn server(error: &dyn std::error::Error) -> Self {
        Self::Server {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: chain(error),
        }
    }

    /// Whether the peer hears what every stranger hears.
    pub fn is_for_strangers(&self) -> bool {
        matches!(self, Self::Stranger(_))
    }

    /// The same, with the client named in the log.
    pub fn of_client(self, client: ClientName) -> Self {
        match self {
            Self::Told(told) => Self::Told(Told {
                client: Some(client),
                ..told
            }),
            Self::Stranger(reason) => Self::Stranger(format!("client '{client}': {reason}")),
            server @ Self::Server { .. } => server,
        }
    }

    fn told(status: StatusCode, text: &dyn std::fmt::Display) -> Self {
        Self::Told(Told::new(status, text))
    }

    fn too_many(text: &dyn std::fmt::Display, retry_after: u32) -> Self {
        Self::Told(Told {
            retry_after: Some(retry_after),
            ..Told::new(StatusCode::TOO_MANY_REQUESTS, text)
        })
    }

    /// Writes it down, once.
    pub fn log(&self, peer: SocketAddr, what: &str) {
        match self {
            Self::Stranger(reason) => log::debug!("{what} from {peer}: refused: {reason}"),
            Self::Told(told) => {
                let who = told.client.as_ref().map_or_else(
                    || "holder of a join token or of an envelope".to_owned(),
                    |client| format!("client '{client}'"),
                );
                log::warn!(
                    "{what} from {peer}, {who}: {}: {}",
                    told.status.as_u16(),
                    told.log
                );
            }
            Self::Server { status, reason } => {
                log::error!("{what} from {peer}: {}: {reason}", status.as_u16());
            }
        }
    }

    /// What the peer gets.
    pub fn into_response(self) -> Response<AnswerBody> {
        let (status, text, retry_after) = match self {
            Self::Stranger(_) => (StatusCode::FORBIDDEN, REFUSED.to_owned(), None),
            Self::Told(told) => (told.status, told.text, told.retry_after),
            Self::Server { status, .. } => (
                status,
                "the key server has a problem, see its log".to_owned(),
                Some(RETRY_SECONDS),
            ),
        };
        let body = serde_json::to_vec(&ErrorAnswer {
            version: Version::default(),
            error: Text::cut(&text),
        });
        response(status, body.unwrap_or_default(), retry_after)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let status = match error {
            RecordError::Store(_) | RecordError::Contention | RecordError::Secret(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::Server {
            status,
            reason: chain(&error),
        }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Refused(refusal) => Self::Stranger(refusal.to_string()),
            ServiceError::Invalid(text) => Self::told(StatusCode::BAD_REQUEST, &text),
            ServiceError::Destroyed => Self::told(StatusCode::GONE, &error),
            ServiceError::PutBack => Self::told(StatusCode::CONFLICT, &error),
            ServiceError::TooMany { retry_after } => Self::too_many(&error, retry_after),
            ServiceError::Record(error) => error.into(),
        }
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Unknown => Self::Stranger("unknown join token".to_owned()),
            JoinError::Expired(_) | JoinError::Withdrawn(_) | JoinError::Used(_) => {
                Self::told(StatusCode::FORBIDDEN, &error)
            }
            JoinError::SameKey => Self::told(StatusCode::BAD_REQUEST, &error),
            JoinError::KeyTaken => Self::told(StatusCode::CONFLICT, &error),
            JoinError::Record(error) => error.into(),
        }
    }
}

impl From<RejoinError> for Failure {
    fn from(error: RejoinError) -> Self {
        match error {
            RejoinError::Stranger(why) => Self::Stranger(why.to_owned()),
            RejoinError::SameKey => Self::told(StatusCode::BAD_REQUEST, &error),
            RejoinError::KeyTaken | RejoinError::Rival => Self::told(StatusCode::CONFLICT, &error),
            RejoinError::TooMany { retry_after } => Self::too_many(&error, retry_after),
            RejoinError::Record(error) => error.into(),
        }
    }
}

/// A JSON answer. `retry_after` is the least of seconds after which the peer may come back.
pub fn response(
    status: StatusCode,
    json: Vec<u8>,
    retry_after: Option<u32>,
) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Full::new(Bytes::from(json))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(least) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(spread(least)));
    }
    response
}

/// `least` seconds and up to [`RETRY_SPREAD`] or a tenth of it more, anew each time.
fn spread(least: u32) -> u32 {
    let mut bytes = [0; 4];
    // Without randomness all come back at the earliest time: that is worse for the server, and wrong for nobody.
    if getrandom::fill(&mut bytes).is_err() {
        return least;
    }
    let most = RETRY_SPREAD.max(least / 10);
    least.saturating_add(u32::from_le_bytes(bytes) % (most + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Refusal;
    use crate::store::StoreError;

    #[test]
    fn every_failure_has_its_status_and_only_strangers_hear_nothing() {
        let client = || -> ClientName { "web-1".parse().unwrap() };
        let cases: [(Failure, u16, Option<u32>); 15] = [
            (ServiceError::Refused(Refusal::Role).into(), 403, None),
            (ServiceError::Refused(Refusal::NotOwned).into(), 403, None),
            (ServiceError::Invalid("x").into(), 400, None),
            (ServiceError::Destroyed.into(), 410, None),
            (ServiceError::PutBack.into(), 409, None),
            (
                ServiceError::TooMany { retry_after: 77 }.into(),
                429,
                Some(77),
            ),
            (
                RecordError::Store(StoreError::Full("/secret".into())).into(),
                503,
                Some(5),
            ),
            (
                RecordError::Damaged("/secret".to_owned()).into(),
                500,
                Some(5),
            ),
            (JoinError::Unknown.into(), 403, None),
            (RejoinError::Stranger("revoked").into(), 403, None),
            (RejoinError::Rival.into(), 409, None),
            (RejoinError::TooMany { retry_after: 9 }.into(), 429, Some(9)),
            (JoinError::Expired(client()).into(), 403, None),
            (JoinError::SameKey.into(), 400, None),
            (JoinError::KeyTaken.into(), 409, None),
        ];
        for (failure, status, retry_after) in cases {
            let what = format!("{failure:?}");
            let stranger = matches!(failure, Failure::Stranger(_));
            let response = failure.of_client(client()).into_response();
            assert_eq!(response.status().as_u16(), status, "{what}");
            let header = response.headers().get(RETRY_AFTER);
            let header: Option<u32> = header.map(|value| value.to_str().unwrap().parse().unwrap());
            assert_eq!(header.is_some(), retry_after.is_some(), "{what}");
            for (header, least) in header.into_iter().zip(retry_after) {
                assert!((least..=least + RETRY_SPREAD).contains(&header), "{what}");
            }
            let AnswerBody::Whole(body) = response.into_body() else {
                panic!("{what}: a stream");
            };
            let body = format!("{body:?}");
            assert!(!body.contains("/secret"), "{what}: {body}");
            assert_eq!(body.contains(REFUSED), stranger, "{what}: {body}");
        }
    }

    #[test]
    fn those_who_are_sent_away_together_do_not_come_back_together() {
        for (least, most) in [(0, 10), (5, 15), (60, 70), (3600, 3960)] {
            let times: std::collections::BTreeSet<u32> = (0..200).map(|_| spread(least)).collect();
            // Eleven values or more, 200 times: fewer than six of them come by chance once in 10^40.
            assert!(times.len() > 5, "{least}: {times:?}");
            assert!(
                times.iter().all(|time| (least..=most).contains(time)),
                "{least}: {times:?}"
            );
        }
        assert_eq!(spread(u32::MAX), u32::MAX);
    }
}
