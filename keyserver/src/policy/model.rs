//! What a policy says: a short text in TOML, read strictly and checked before it is set.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::range::{Range, RangeError};
use super::span::Span;
use super::window::Window;

/// Most address ranges in one policy.
pub const RANGES_LIMIT: usize = 32;
/// Most time windows in one policy.
pub const WINDOWS_LIMIT: usize = 16;
/// Most boots in an hour or a day that a policy can count.
pub const RATE_LIMIT: u32 = 100;
/// Most people that a policy names, and most of them that it wants for one boot.
pub const PEOPLE_LIMIT: usize = 16;
/// Most bytes of a policy's text.
pub const TEXT_LIMIT: usize = 16 * 1024;
/// Shortest and longest silence that a policy can measure: heartbeats come every five minutes.
const SILENCES: (Duration, Duration) = (
    Duration::from_secs(15 * 60),
    Duration::from_secs(365 * 86_400),
);
/// Shortest and longest time for which an approval counts.
const APPROVALS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// On which conditions a volume's share is released. All of them must hold for a release without a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// What holds for requests for which every condition holds.
    pub rule: Rule,
    /// Source addresses; none means any address.
    #[serde(default)]
    pub from: Vec<Source>,
    /// What holds for requests from anywhere else.
    #[serde(default)]
    pub elsewhere: Otherwise,
    /// Times in UTC; none means any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// Boots in an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_hour: Option<u32>,
    /// Boots in a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_day: Option<u32>,
    /// The reboot was announced.
    #[serde(default, skip_serializing_if = "no")]
    pub armed: bool,
    /// The volume's header shows the ticket of its last boot.
    #[serde(default, skip_serializing_if = "no")]
    pub ticket: bool,
    /// The running machine, if it lives, says that it does: then this boot is a copy's.
    #[serde(default, skip_serializing_if = "no")]
    pub life: bool,
    /// The machine was heard of within this time, in which the key server ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_after: Option<Span>,
    /// These are as at the last boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// One boot in all, until the policy is set again.
    #[serde(default, skip_serializing_if = "no")]
    pub once: bool,
    /// What holds when a condition does not (for addresses: `elsewhere`).
    #[serde(default = "ask", skip_serializing_if = "is_ask")]
    pub otherwise: Otherwise,
    /// Who is asked, where a person is.
    #[serde(default, skip_serializing_if = "Approval::is_default")]
    pub approval: Approval,
}

/// What a policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Release without a person.
    Allow,
    /// Ask a person.
    Ask,
    /// Never release.
    Deny,
}

/// What a policy says of requests for which a condition does not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// Ask a person.
    Ask,
    /// Never release.
    #[default]
    Deny,
}

/// Where requests may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `home`: the address that the machine had when the volume was bound (IPv6: its /64).
    Home,
    /// A range of addresses.
    Range(Range),
}

/// What may have changed since the last boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The kernel's release; one that comes with an announced image is none.
    Kernel,
    /// The kernel's command line.
    CommandLine,
    /// The source address.
    Address,
    /// The initramfs; one that the running machine announced is none.
    Image,
    /// The headers of the volumes.
    Header,
}

/// Who must approve, and for how long an approval counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Approval {
    /// How many people.
    #[serde(default = "one")]
    pub count: usize,
    /// Which ones, by the name of their user at the admin socket; none means anybody who may use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// How long an approval counts.
    #[serde(default = "ten_minutes")]
    pub good_for: Span,
}

/// A policy's text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("the text is no policy: {0}")]
    Syntax(String),
    /// A value that cannot be meant.
    #[error("{0}")]
    Value(String),
}

impl Policy {
    /// The policy that only has this rule.
    pub fn plain(rule: Rule) -> Self {
        Self {
            rule,
            from: Vec::new(),
            elsewhere: Otherwise::Deny,
            windows: Vec::new(),
            per_hour: None,
            per_day: None,
            armed: false,
            ticket: false,
            life: false,
            silent_after: None,
            changes: Vec::new(),
            once: false,
            otherwise: Otherwise::Ask,
            approval: Approval::default(),
        }
    }

    /// What a volume gets when it is registered from `peer`: released to that machine's address.
    pub fn default_for(peer: IpAddr, elsewhere: Otherwise) -> Self {
        Self {
            from: vec![Source::Range(Range::around(peer))],
            elsewhere,
            ..Self::plain(Rule::Allow)
        }
    }

    /// Reads and checks a policy's text.
    ///
    /// # Errors
    /// `Syntax`, `Value`.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > TEXT_LIMIT {
            return Err(PolicyError::Value(format!("more than {TEXT_LIMIT} bytes")));
        }
        let policy: Self =
            toml::from_str(text).map_err(|error| PolicyError::Syntax(error.to_string()))?;
        policy.check().map_err(PolicyError::Value)?;
        Ok(policy)
    }

    /// The text that says the same.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a policy has only strings, numbers, lists and one table")
    }

    /// Whether a release needs more than the rule and the address.
    pub fn has_conditions(&self) -> bool {
        let Self {
            windows,
            per_hour,
            per_day,
            armed,
            ticket,
            life,
            silent_after,
            changes,
            once,
            ..
        } = self;
        *armed
            || *ticket
            || *life
            || *once
            || !windows.is_empty()
            || !changes.is_empty()
            || per_hour.is_some()
            || per_day.is_some()
            || silent_after.is_some()
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// The problem as text.
    pub fn check(&self) -> Result<(), String> {
        distinct("from", &self.from, RANGES_LIMIT, "address ranges")?;
        distinct("windows", &self.windows, WINDOWS_LIMIT, "time windows")?;
        distinct("changes", &self.changes, 5, "changes")?;
        distinct("approval.by", &self.approval.by, PEOPLE_LIMIT, "people")?;
        if self.rule == Rule::Deny && !self.from.is_empty() {
            return Err("'deny' holds for all addresses; leave the ranges out".to_owned());
        }
        if self.rule == Rule::Deny && self.has_conditions() {
            return Err("'deny' holds always; leave the conditions out".to_owned());
        }
        if self.elsewhere == Otherwise::Ask && self.from.is_empty() {
            return Err("'elsewhere' needs address ranges to be elsewhere from".to_owned());
        }
        for (key, limit) in [("per-hour", self.per_hour), ("per-day", self.per_day)] {
            if limit.is_some_and(|limit| !(1..=RATE_LIMIT).contains(&limit)) {
                return Err(format!("'{key}' is a number from 1 to {RATE_LIMIT}"));
            }
        }
        if let (Some(hour), Some(day)) = (self.per_hour, self.per_day)
            && hour > day
        {
            return Err("'per-hour' is more than 'per-day'".to_owned());
        }
        if let Some(span) = self.silent_after
            && !(SILENCES.0..=SILENCES.1).contains(&span.0)
        {
            return Err(
                "'silent-after' is a time from 15m to 365d: machines are heard of every 5m"
                    .to_owned(),
            );
        }
        self.approval.check()
    }
}

impl Approval {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=PEOPLE_LIMIT).contains(&self.count) {
            return Err(format!(
                "'approval.count' is a number from 1 to {PEOPLE_LIMIT}"
            ));
        }
        if !self.by.is_empty() && self.by.len() < self.count {
            return Err(format!(
                "'approval.by' names {} people, and {} must approve",
                self.by.len(),
                self.count
            ));
        }
        let odd = |name: &&String| {
            name.is_empty()
                || name.len() > 64
                || name.chars().any(|c| c.is_control() || c.is_whitespace())
        };
        if let Some(name) = self.by.iter().find(odd) {
            return Err(format!(
                "'approval.by': '{}' is no user's name",
                name.escape_default()
            ));
        }
        if !(APPROVALS.0..=APPROVALS.1).contains(&self.good_for.0) {
            return Err("'approval.good-for' is a time from 1m to 1h".to_owned());
        }
        Ok(())
    }
}

impl Default for Approval {
    fn default() -> Self {
        Self {
            count: one(),
            by: Vec::new(),
            good_for: ten_minutes(),
        }
    }
}

impl Source {
    /// Whether `address` lies in it, for a volume whose `home` this is.
    pub fn contains(&self, address: IpAddr, home: Option<Range>) -> bool {
        match self {
            Self::Home => home.is_some_and(|home| home.contains(address)),
            Self::Range(range) => range.contains(address),
        }
    }
}

impl Change {
    /// The change as people are told.
    pub fn text(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::CommandLine => "command line",
            Self::Address => "address",
            Self::Image => "image",
            Self::Header => "header",
        }
    }
}

fn distinct<T: Ord + fmt::Debug>(
    key: &str,
    items: &[T],
    limit: usize,
    what: &str,
) -> Result<(), String> {
    if items.len() > limit {
        return Err(format!("more than {limit} {what}"));
    }
    let mut seen = std::collections::BTreeSet::new();
    match items.iter().all(|item| seen.insert(item)) {
        true => Ok(()),
        false => Err(format!("'{key}' lists something twice")),
    }
}

fn no(value: &bool) -> bool {
    !value
}

fn ask() -> Otherwise {
    Otherwise::Ask
}

fn is_ask(value: &Otherwise) -> bool {
    *value == Otherwise::Ask
}

fn one() -> usize {
    1
}

fn ten_minutes() -> Span {
    Span(Duration::from_secs(600))
}

impl FromStr for Source {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<Self, RangeError> {
        match text {
            "home" => Ok(Self::Home),
            range => range.parse().map(Self::Range),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Home => f.write_str("the address it was bound at"),
            Self::Range(range) => range.fmt(f),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Home => serializer.serialize_str("home"),
            Self::Range(range) => range.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_back_from_its_own_text() {
        let text = r#"
            rule = "allow"
            from = ["home", "192.0.2.0/24"]
            elsewhere = "ask"
            windows = ["mon-fri 08:00-18:00", "daily 22:00-02:00"]
            per-hour = 3
            per-day = 10
            armed = true
            ticket = true
            life = true
            silent-after = "30m"
            changes = ["kernel", "command-line", "address", "image", "header"]
            once = true
            otherwise = "deny"
            [approval]
            count = 2
            by = ["alice", "bob", "carol"]
            good-for = "5m"
        "#;
        let policy = Policy::parse(text).unwrap();
        assert!(policy.has_conditions());
        assert_eq!(Policy::parse(&policy.to_toml()), Ok(policy.clone()));
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        assert!(policy.sentence().len() <= super::super::SENTENCE_LIMIT);
    }

    #[test]
    fn a_first_policy_is_written_as_it_always_was() {
        let json = r#"{"rule":"allow","from":["192.0.2.7/32"],"elsewhere":"deny"}"#;
        let policy: Policy = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&policy).unwrap(), json);
        assert!(!policy.has_conditions());
    }

    #[test]
    fn texts_that_cannot_be_meant_are_refused() {
        for (text, words) in [
            ("", "rule"),
            ("rule = 1", "rule"),
            ("rule = \"allow\"\nticket = 1", "ticket"),
            ("rule = \"allow\"\ntickets = true", "tickets"),
            ("rule = \"deny\"\nticket = true", "leave the conditions out"),
            ("rule = \"allow\"\nper-hour = 0", "'per-hour'"),
            ("rule = \"allow\"\nper-day = 101", "'per-day'"),
            ("rule = \"allow\"\nper-hour = 5\nper-day = 4", "more than"),
            ("rule = \"allow\"\nsilent-after = \"1m\"", "15m to 365d"),
            ("rule = \"allow\"\nsilent-after = \"x\"", "number with"),
            ("rule = \"allow\"\nwindows = [\"mon 8-9\"]", "window"),
            (
                "rule = \"allow\"\nchanges = [\"kernel\", \"kernel\"]",
                "twice",
            ),
            ("rule = \"allow\"\nchanges = [\"cpu\"]", "cpu"),
            ("rule = \"allow\"\nfrom = [\"away\"]", "away"),
            ("rule = \"ask\"\n[approval]\ncount = 0", "approval.count"),
            (
                "rule = \"ask\"\n[approval]\ncount = 2\nby = [\"alice\"]",
                "names 1 people",
            ),
            (
                "rule = \"ask\"\n[approval]\nby = [\"a b\"]",
                "no user's name",
            ),
            (
                "rule = \"ask\"\n[approval]\ngood-for = \"2h\"",
                "approval.good-for",
            ),
            ("rule = \"ask\"\n[approval]\nwho = [\"alice\"]", "who"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let long = format!("rule = \"allow\" # {}", "x".repeat(TEXT_LIMIT));
        assert!(Policy::parse(&long).is_err());
    }
}
