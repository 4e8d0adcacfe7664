//! `latchkeyd invite`: prints one join token.

use std::time::Duration;

use clap::Args;
use latchkey_protocol::ClientName;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::{JoinInvitation, Request};

/// Print a join token for a new machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd invite web-1
  latchkeyd invite web-1 --ttl 2d | ssh root@web-1 latchkey join -

The token goes to standard output and nothing else does. It is a secret until it is used or ends: it
holds the server's addresses, the fingerprint of its CA and a one-time secret. One machine can use
it, again and again until it ends; another machine with the same token is refused, with an alarm in
the audit. A new invitation for the same name ends the one before.")]
pub struct Invite {
    /// What the machine shall be called: 1 to 64 letters, digits, '.', '_', '-'
    client: ClientName,
    /// How long the token is good for: a number with s, m, h or d
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
    #[command(flatten)]
    target: Target,
}

impl Invite {
    pub fn run(self) -> Result<(), Failure> {
        let invitation: JoinInvitation = self.target.ask(&Request::Invite {
            client: self.client.clone(),
            seconds: self.ttl.as_secs(),
        })?;
        output::data(&invitation.token)?;
        output::hint(&format!(
            "on '{}' run 'latchkey join' and paste this line; it is a secret and ends at {} UTC",
            self.client, invitation.expires
        ));
        Ok(())
    }
}

/// `90s`, `15m`, `1h`, `2d`.
fn duration(text: &str) -> Result<Duration, String> {
    let error = || "expected a number with s, m, h or d, such as 15m or 2d".to_owned();
    let (number, unit) = text
        .char_indices()
        .next_back()
        .map(|(at, unit)| (&text[..at], unit))
        .ok_or_else(error)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(error()),
    };
    if !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(error());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "1",
            "h",
            "0h",
            "-1h",
            "+1h",
            "1.5h",
            "1w",
            "1 h",
            "99999999999999999d",
            "1é",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
