//! The stream by which a running machine shows a key server that it lives, and hears its challenges.

use std::time::Duration;

use latchkey_protocol::token::Address;
use latchkey_protocol::wire::{LIFE, LifeLine};
use reqwest::{Response, StatusCode};

use super::client::{Client, check_content_type, refusal};
use super::{ClientError, Fault};
use crate::failure::printable;

const NDJSON: &str = "application/x-ndjson";
/// Most bytes of one line.
const LINE_LIMIT: usize = 512;
/// After so long the stream is begun anew, whatever comes over it.
const STREAM_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The stream while it stands.
#[derive(Debug)]
pub struct Life {
    address: Address,
    response: Response,
    lines: Lines,
}

impl Client {
    /// Opens the stream at `address` (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn life(&self, address: &Address) -> Result<Life, ClientError> {
        let opened = async {
            self.names.look_up(address).await?;
            let request = self
                .http
                .get(format!("https://{address}{LIFE}"))
                .timeout(STREAM_LIMIT);
            let response = request.send().await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(response).await);
            }
            check_content_type(&response, NDJSON)?;
            Ok(response)
        };
        // Only the wait for its beginning is short.
        let opened = match tokio::time::timeout(super::REQUEST_LIMIT, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault::Timeout),
        };
        match opened {
            Ok(response) => Ok(Life {
                address: address.clone(),
                response,
                lines: Lines::default(),
            }),
            Err(fault) => Err(ClientError {
                address: address.clone(),
                fault,
            }),
        }
    }
}

impl Life {
    /// The next line. It may be given up while it waits; nothing is lost then.
    ///
    /// # Errors
    /// [`ClientError`]: the stream is over.
    pub async fn next(&mut self) -> Result<LifeLine, ClientError> {
        self.line().await.map_err(|fault| ClientError {
            address: self.address.clone(),
            fault,
        })
    }

    async fn line(&mut self) -> Result<LifeLine, Fault> {
        loop {
            if let Some(line) = self.lines.pop()? {
                return Ok(line);
            }
            match self.response.chunk().await? {
                Some(chunk) => self.lines.push(&chunk),
                None => return Err(Fault::Interrupted("the stream was ended".to_owned())),
            }
        }
    }
}

/// Bytes as they come, and the lines in them.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The first whole line.
    fn pop(&mut self) -> Result<Option<LifeLine>, Fault> {
        let end = self.0.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(self.0.len()) > LINE_LIMIT {
            return Err(Fault::TooLarge);
        }
        let Some(end) = end else {
            return Ok(None);
        };
        let line: Vec<u8> = self.0.drain(..=end).collect();
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| Fault::Parse(printable(&error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::encoding::Bytes;

    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let challenge = LifeLine::Challenge(Bytes([7; 32]));
        let mut bytes = b"{\"beat\":0}\n".to_vec();
        bytes.extend(serde_json::to_vec(&challenge).unwrap());
        bytes.extend(b"\n{\"beat\":1}\n");
        for size in 1..bytes.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.pop().unwrap() {
                    seen.push(line);
                }
            }
            assert_eq!(
                seen,
                [LifeLine::Beat(0), challenge, LifeLine::Beat(1)],
                "{size}"
            );
        }
    }

    #[test]
    fn what_is_no_line_of_the_stream_ends_it() {
        for bad in [
            "\n",
            "{}\n",
            "{\"beat\":-1}\n",
            "{\"beat\":1,\"beat\":2}\n",
            "{\"challenge\":\"AAAA\"}\n",
            "{\"other\":1}\n",
            "beat\n",
        ] {
            let mut lines = Lines::default();
            lines.push(bad.as_bytes());
            assert!(matches!(lines.pop(), Err(Fault::Parse(_))), "{bad:?}");
        }
        for endless in [
            vec![b' '; LINE_LIMIT + 1],
            [vec![b' '; 600], vec![b'\n']].concat(),
        ] {
            let mut lines = Lines::default();
            lines.push(&endless);
            assert!(matches!(lines.pop(), Err(Fault::TooLarge)));
        }
    }
}
