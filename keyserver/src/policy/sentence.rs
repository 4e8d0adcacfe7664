//! A policy in one sentence, and in another one what it does not stop.

use super::{Otherwise, Policy, Rule, Source};

/// Most bytes of a sentence.
pub const SENTENCE_LIMIT: usize = 400;

impl Policy {
    /// The policy in one sentence, of at most [`SENTENCE_LIMIT`] bytes.
    pub fn sentence(&self) -> String {
        let mut text = self.rule_and_address();
        let conditions = self.conditions();
        if !conditions.is_empty() {
            text.push_str("; if ");
            text.push_str(&conditions.join(", "));
            text.push_str(match (self.rule, self.otherwise) {
                (_, Otherwise::Deny) => ", otherwise never",
                (Rule::Ask, Otherwise::Ask) => ", otherwise the person is told what does not hold",
                (_, Otherwise::Ask) => ", otherwise after a person's approval",
            });
        }
        if self.approval.count > 1 || !self.approval.by.is_empty() {
            let count = self.approval.count;
            text.push_str(&match self.approval.by.as_slice() {
                [] => format!("; approval by {count} people"),
                people => format!("; approval by {count} of {}", people.join(", ")),
            });
        }
        while text.len() > SENTENCE_LIMIT {
            // A policy of many names; the text itself says all of it.
            let mut end = SENTENCE_LIMIT - 3;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str("...");
        }
        text
    }

    /// What the policy does not stop, in one sentence.
    pub fn limits(&self) -> &'static str {
        match self.rule {
            Rule::Deny => "nobody boots without a passphrase",
            Rule::Ask if self.approval.count > 1 => {
                "does not stop people who together approve a boot that is not the machine's"
            }
            Rule::Ask => "does not stop a person who approves a boot that is not the machine's",
            Rule::Allow if self.armed => {
                "does not stop a fresh copy of the disk that boots before the machine does while a reboot is announced"
            }
            Rule::Allow if self.ticket && self.life && !self.from.is_empty() => {
                "does not stop a fresh copy of the disk that boots at these addresses while the machine is off or cut off"
            }
            Rule::Allow if self.ticket && self.life => {
                "does not stop a fresh copy of the disk that boots anywhere while the machine is off or cut off"
            }
            Rule::Allow if self.ticket => {
                "does not stop a fresh copy of the disk that boots before the machine's next boot"
            }
            Rule::Allow if self.life => {
                "does not stop a copy of the disk, old or new, that boots while the machine is off or cut off"
            }
            Rule::Allow if !self.from.is_empty() => {
                "does not stop a copy of the disk, old or new, that boots at these addresses"
            }
            Rule::Allow => "does not stop a copy of the disk, old or new, that boots anywhere",
        }
    }

    fn rule_and_address(&self) -> String {
        let from =
            match self.from.as_slice() {
                [] => return match self.rule {
                    Rule::Allow => {
                        "released without a person to whoever holds the boot key, from any address"
                    }
                    Rule::Ask => "released after a person's approval, from any address",
                    Rule::Deny => "never released",
                }
                .to_owned(),
                ranges => shown(ranges),
            };
        let here = match self.rule {
            Rule::Allow => format!("released without a person to {from}"),
            Rule::Ask => format!("released after a person's approval to {from}"),
            Rule::Deny => return "never released".to_owned(),
        };
        match self.elsewhere {
            Otherwise::Ask => format!("{here}; to other addresses after a person's approval"),
            Otherwise::Deny => format!("{here}; to other addresses never"),
        }
    }

    fn conditions(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut add = |on: bool, text: &str| words.extend(on.then(|| text.to_owned()));
        add(self.armed, "the reboot was announced");
        add(self.ticket, "the disk shows its last ticket");
        add(self.life, "the running machine does not answer");
        add(self.once, "it is the one boot");
        if let Some(span) = self.silent_after {
            words.push(format!("heard of within {span}"));
        }
        if let Some(limit) = self.per_hour {
            words.push(format!("at most {limit} an hour"));
        }
        if let Some(limit) = self.per_day {
            words.push(format!("at most {limit} a day"));
        }
        match self.windows.as_slice() {
            [] => {}
            [window] => words.push(format!("within '{window}' UTC")),
            windows => words.push(format!("within {} time windows", windows.len())),
        }
        if !self.changes.is_empty() {
            let names: Vec<_> = self.changes.iter().map(|change| change.text()).collect();
            words.push(format!("no change of {}", names.join(", ")));
        }
        words
    }
}

fn shown(ranges: &[Source]) -> String {
    let mut shown: Vec<String> = ranges.iter().take(4).map(ToString::to_string).collect();
    if ranges.len() > shown.len() {
        shown.push(format!("{} more ranges", ranges.len() - shown.len()));
    }
    shown.join(", ")
}
