//! Decides when an interface gets which configuration. Pure: called anew after every change with what is there, it says
//! what to do next and what to tell the person who waits. Which one it gets, [`assignment`](super::assignment) says.
//!
//! In this order: an interface that already has an address is used as it is; `ip=` decides alone if there is one;
//! the record decides for the cards it knows; where none of them is there, or nothing came of them for a while, every card is
//! asked for by DHCP. A card is touched only after udev has finished with it, and configured only once it has a carrier.

use std::net::Ipv4Addr;

use super::How;
use super::assignment::{Method, assigned};
use super::ip_parameter::{IpParameter, RuleMethod};
use super::netlink::Link;
use super::record::Record;

/// What the plan is made from, besides the interfaces.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// What the running machine had.
    pub record: Option<Record>,
    /// What the kernel command line says.
    pub parameter: IpParameter,
    /// Kinds of software interfaces that count as network cards too; usually none.
    pub extra_kinds: Vec<String>,
}

/// How far an interface has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not touched.
    New,
    /// Ours, set up, without a configuration.
    Raised,
    /// Ours, configured or about to be.
    Configured,
    /// Somebody else's, used as it is.
    AsItIs,
    /// It could not be set up or configured; left alone until it goes away.
    Failed,
}

/// An interface as the plan sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// As the kernel describes it.
    pub link: &'a Link,
    /// How far it has come.
    pub stage: Stage,
    /// udev has finished with it.
    pub ready: bool,
    /// A global IPv4 address that it has.
    pub address: Option<Ipv4Addr>,
    /// Another program is configuring it right now.
    pub contended: bool,
    /// Nothing came of it for a while: no carrier, or no answer to DHCP.
    pub idle: bool,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set it up, so that it can get a carrier.
    Raise(u32),
    /// Take its address as the network.
    UseAsItIs(u32, Ipv4Addr),
    /// Give it a configuration.
    Configure(u32, Method, How),
}

/// What to do now, and what is missing, as one line for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the interfaces' indices.
    pub steps: Vec<Step>,
    /// Nothing while there is nothing to wait for.
    pub waiting: Option<String>,
}

/// Makes the plan. `candidates` are all interfaces, by index.
pub fn plan(wishes: &Wishes, candidates: &[Candidate<'_>]) -> Plan {
    // What software made is used where somebody gave it an address, and never touched.
    let cards: Vec<&Candidate<'_>> = candidates
        .iter()
        .filter(|card| card.link.ethernet && !card.link.enslaved)
        .collect();
    let mut plan = Plan::default();
    let mut missing = Missing::default();
    // One address for "any card" is given to one card only.
    let mut any_is_taken = cards.iter().any(|card| {
        card.stage == Stage::Configured
            && assigned(wishes, &cards, card.link).is_some_and(|what| what.only_one)
    });

    for card in &cards {
        let index = card.link.index;
        match (card.stage, card.address) {
            (Stage::AsItIs | Stage::Configured | Stage::Failed, _) => continue,
            (Stage::New | Stage::Raised, Some(address)) if card.link.up => {
                plan.steps.push(Step::UseAsItIs(index, address));
                continue;
            }
            _ => {}
        }
        let Some(what) = assigned(wishes, &cards, card.link) else {
            continue;
        };
        if what.only_one && any_is_taken {
            continue;
        }
        if !card.ready {
            missing.udev.get_or_insert(&card.link.name);
        } else if card.contended {
            missing.other.get_or_insert(&card.link.name);
        } else if card.stage == Stage::New {
            plan.steps.push(Step::Raise(index));
            missing.carrier.get_or_insert(&card.link.name);
        } else if !card.link.up || !card.link.carrier {
            missing.carrier.get_or_insert(&card.link.name);
        } else {
            any_is_taken |= what.only_one;
            plan.steps
                .push(Step::Configure(index, what.method, what.how));
        }
    }

    let in_use = |card: &&Candidate<'_>| matches!(card.stage, Stage::AsItIs | Stage::Configured);
    let configuring = plan
        .steps
        .iter()
        .any(|step| !matches!(step, Step::Raise(_)));
    if !configuring && !cards.iter().any(in_use) {
        plan.waiting = Some(missing.line(wishes, &cards));
    }
    plan
}

/// The first card that waits for each thing.
#[derive(Default)]
struct Missing<'a> {
    udev: Option<&'a str>,
    other: Option<&'a str>,
    carrier: Option<&'a str>,
}

impl Missing<'_> {
    fn line(&self, wishes: &Wishes, cards: &[&Candidate<'_>]) -> String {
        let rules = &wishes.parameter.rules;
        if !rules.is_empty() && rules.iter().all(|rule| rule.method == RuleMethod::Off) {
            return "network: switched off by 'ip=' on the kernel command line".into();
        }
        if let Some(name) = self.carrier {
            format!("network: waiting for a link on '{name}'")
        } else if let Some(name) = self.udev {
            format!("network: waiting for udev to finish with '{name}'")
        } else if let Some(name) = self.other {
            format!("network: another program is configuring '{name}'")
        } else if let Some(device) = rules.iter().find_map(|rule| rule.device.as_ref()) {
            format!("network: waiting for the network card '{device}'")
        } else if let Some(failed) = cards.iter().find(|card| card.stage == Stage::Failed) {
            format!("network: '{}' could not be configured", failed.link.name)
        } else {
            "network: waiting for a network card".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ip_parameter;
    use super::super::record;
    use super::super::values::Mac;
    use super::*;

    const RECORD: &str = r#"{"version": 1, "interfaces": [
        {"name": "ens3", "mac": "02:00:00:00:00:02", "permanent-mac": "02:00:00:00:00:99", "ipv4": {"method": "static",
         "addresses": [{"address": "192.0.2.7", "prefix": 24}], "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}]}},
        {"name": "ens4", "mac": "02:00:00:00:00:03", "ipv4": {"method": "dhcp", "lease": "198.51.100.4"}}]}"#;

    const PARTIAL: &str = r#"{"version": 1, "partial": true, "interfaces": [
        {"name": "ens3", "mac": "02:00:00:00:00:02", "ipv4": {"method": "static",
         "addresses": [{"address": "192.0.2.7", "prefix": 24}], "routes": []}}]}"#;

    fn wishes(record: &str, cmdline: &str) -> Wishes {
        let record = (!record.is_empty()).then(|| record::parse(record.as_bytes()).unwrap());
        Wishes {
            record,
            parameter: ip_parameter::parse(cmdline),
            extra_kinds: Vec::new(),
        }
    }

    /// "3 new,carrier,…": a card by its index (also the end of its MAC), its stage and further facts.
    fn card(text: &str) -> (Link, Stage, Option<Ipv4Addr>, [bool; 3]) {
        let (index, facts) = text.split_once(' ').unwrap();
        let index: u32 = index.parse().unwrap();
        let has = |fact: &str| facts.split(',').any(|found| found == fact);
        let link = Link {
            index,
            name: format!("eth{index}"),
            alt_names: vec![format!("alt{index}")],
            mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
            permanent_mac: has("permanent").then_some(Mac([2, 0, 0, 0, 0, 0x99])),
            mtu: 1500,
            kind: has("bridge").then(|| "bridge".into()),
            ethernet: !has("loopback"),
            up: !has("new") || has("up"),
            carrier: has("carrier"),
            enslaved: has("enslaved"),
        };
        let stage = match facts.split(',').next().unwrap() {
            "new" => Stage::New,
            "raised" => Stage::Raised,
            "configured" => Stage::Configured,
            "as-is" => Stage::AsItIs,
            "failed" => Stage::Failed,
            other => panic!("no such stage: {other}"),
        };
        let address = has("address").then(|| Ipv4Addr::new(203, 0, 113, index as u8));
        let facts = [!has("unready"), has("contended"), has("idle")];
        (link, stage, address, facts)
    }

    fn say(wishes: &Wishes, cards: &[&str]) -> String {
        let cards: Vec<_> = cards.iter().map(|text| card(text)).collect();
        let candidates =
            cards.iter().map(
                |(link, stage, address, [ready, contended, idle])| Candidate {
                    link,
                    stage: *stage,
                    ready: *ready,
                    address: *address,
                    contended: *contended,
                    idle: *idle,
                },
            );
        let plan = plan(wishes, &candidates.collect::<Vec<_>>());
        let mut words: Vec<String> = Vec::new();
        for step in &plan.steps {
            words.push(match step {
                Step::Raise(index) => format!("raise {index}"),
                Step::UseAsItIs(index, _) => format!("use {index}"),
                Step::Configure(index, Method::Static(config), how) => {
                    format!("{index} {how:?} {}", config.addresses[0].address)
                }
                Step::Configure(
                    index,
                    Method::Dhcp {
                        wish: Some(wish), ..
                    },
                    how,
                ) => format!("{index} {how:?} ?{wish}"),
                Step::Configure(index, Method::Dhcp { wish: None, .. }, how) => {
                    format!("{index} {how:?} ask")
                }
            });
        }
        words.extend(plan.waiting.map(|line| line.replace("network: ", "… ")));
        words.join("; ")
    }

    #[test]
    fn decisions() {
        let any = "ip=192.0.2.9::192.0.2.1:24";
        for (case, record, cmdline, cards, expected) in [
            (
                "no card",
                RECORD,
                "",
                &[][..],
                "… waiting for a network card",
            ),
            (
                "only what is no card",
                RECORD,
                "",
                &["1 new,loopback", "5 new,bridge", "6 new,enslaved"],
                "… waiting for a network card",
            ),
            (
                "known, new",
                RECORD,
                "",
                &["2 new"],
                "raise 2; … waiting for a link on 'eth2'",
            ),
            (
                "known, no carrier",
                RECORD,
                "",
                &["2 raised"],
                "… waiting for a link on 'eth2'",
            ),
            (
                "known, carrier",
                RECORD,
                "",
                &["2 raised,carrier"],
                "2 Recorded 192.0.2.7",
            ),
            (
                "by its permanent address",
                RECORD,
                "",
                &["7 raised,carrier,permanent"],
                "7 Recorded 192.0.2.7",
            ),
            (
                "known to use DHCP",
                RECORD,
                "",
                &["3 raised,carrier"],
                "3 Dhcp ?198.51.100.4",
            ),
            (
                "one dead, one fine",
                RECORD,
                "",
                &["2 raised", "3 raised,carrier"],
                "3 Dhcp ?198.51.100.4",
            ),
            (
                "unknown beside known that is idle",
                RECORD,
                "",
                &[
                    "2 raised,idle",
                    "3 configured,carrier,idle",
                    "4 raised,carrier",
                ],
                "4 Dhcp ask",
            ),
            (
                "unknown beside known, and the way out is not recorded",
                PARTIAL,
                "",
                &["2 raised,carrier", "4 new,carrier"],
                "2 Recorded 192.0.2.7; raise 4",
            ),
            (
                "unknown beside known that failed",
                RECORD,
                "",
                &["2 failed", "4 raised,carrier"],
                "4 Dhcp ask",
            ),
            (
                "what software made, with an address",
                RECORD,
                "",
                &["2 new,enslaved", "5 new,bridge,up,carrier,address"],
                "use 5",
            ),
            (
                "udev has not finished",
                RECORD,
                "",
                &["2 new,unready"],
                "… waiting for udev to finish with 'eth2'",
            ),
            (
                "unknown beside known",
                RECORD,
                "",
                &["2 raised,carrier", "4 new,carrier"],
                "2 Recorded 192.0.2.7",
            ),
            (
                "only unknown",
                RECORD,
                "",
                &["4 new", "5 raised,carrier"],
                "raise 4; 5 Dhcp ask",
            ),
            (
                "no record",
                "",
                "",
                &["2 raised,carrier", "3 raised,carrier"],
                "2 Dhcp ask; 3 Dhcp ask",
            ),
            (
                "somebody configured it",
                RECORD,
                "",
                &["2 new,up,carrier,address"],
                "use 2",
            ),
            (
                "somebody came later",
                RECORD,
                "",
                &["2 raised,carrier,address"],
                "use 2",
            ),
            (
                "an address while down is not in use",
                "",
                "",
                &["2 new,address"],
                "raise 2; … waiting for a link on 'eth2'",
            ),
            (
                "somebody is at it",
                "",
                "",
                &["2 new,contended"],
                "… another program is configuring 'eth2'",
            ),
            (
                "no DHCP beside one in use",
                "",
                "",
                &["2 as-is,carrier,address", "4 new"],
                "",
            ),
            (
                "no DHCP beside one about to be used",
                "",
                "",
                &["2 new,up,carrier,address", "4 new"],
                "use 2",
            ),
            (
                "configured stays",
                RECORD,
                "",
                &["2 configured,carrier,address"],
                "",
            ),
            (
                "failed stays",
                RECORD,
                "",
                &["2 failed,carrier"],
                "… 'eth2' could not be configured",
            ),
            (
                "ip= wins",
                RECORD,
                "ip=dhcp",
                &["2 raised,carrier"],
                "2 CommandLine ask",
            ),
            (
                "ip= names one",
                RECORD,
                "ip=:::::eth4:dhcp",
                &["2 new", "4 raised,carrier"],
                "4 CommandLine ask",
            ),
            (
                "ip= names one by another name",
                RECORD,
                "ip=alt4:dhcp",
                &["2 new", "4 raised,carrier"],
                "4 CommandLine ask",
            ),
            (
                "ip= names one that is missing",
                RECORD,
                "ip=eth9:dhcp",
                &["2 new"],
                "… waiting for the network card 'eth9'",
            ),
            (
                "ip=off",
                RECORD,
                "ip=off",
                &["2 new"],
                "… switched off by 'ip=' on the kernel command line",
            ),
            (
                "ip=off for one",
                "",
                "ip=eth2:off ip=dhcp",
                &["2 new", "3 raised,carrier"],
                "3 CommandLine ask",
            ),
            (
                "one address, first card",
                "",
                any,
                &["2 raised,carrier", "3 raised,carrier"],
                "2 CommandLine 192.0.2.9",
            ),
            (
                "one address, card with a carrier",
                "",
                any,
                &["2 raised", "3 raised,carrier"],
                "3 CommandLine 192.0.2.9",
            ),
            (
                "one address, taken",
                "",
                any,
                &["2 configured,carrier", "3 raised,carrier"],
                "",
            ),
            (
                "an ip= that is not understood",
                RECORD,
                "ip=auto6",
                &["2 raised,carrier"],
                "2 Recorded 192.0.2.7",
            ),
        ] {
            assert_eq!(say(&wishes(record, cmdline), cards), expected, "{case}");
        }
    }

    #[test]
    fn a_kind_counts_only_if_it_is_named() {
        let mut wishes = wishes("", "");
        assert_eq!(
            say(&wishes, &["2 raised,carrier,bridge"]),
            "… waiting for a network card"
        );
        wishes.extra_kinds.push("bridge".into());
        assert_eq!(say(&wishes, &["2 raised,carrier,bridge"]), "2 Dhcp ask");
    }
}
