//! Which card gets which configuration, whatever its state: see [`plan`](super::plan).

use std::net::Ipv4Addr;

use super::How;
use super::ip_parameter::RuleMethod;
use super::netlink::Link;
use super::plan::{Candidate, Stage, Wishes};
use super::record::{Record, RecordedInterface, RecordedIpv4};
use super::values::Ipv4Config;

/// How an interface is configured. IPv6 and others are further variants, later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Ask a DHCP server.
    Dhcp {
        /// The address to ask for.
        wish: Option<Ipv4Addr>,
        /// In bytes, if the server names none.
        mtu: Option<u32>,
        /// How soon its default route yields to that of other cards.
        rank: Rank,
    },
    /// Set exactly this.
    Static(Ipv4Config),
}

/// Which card's default route counts where several have one, the first before the others. Those that were configured
/// come before all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It is the machine's way out, or the command line names it.
    First,
    /// A card with a network of its own.
    Secondary,
    /// Nobody knows it.
    Unknown,
}

/// What a card is to get.
pub struct Assigned {
    /// Its configuration.
    pub method: Method,
    /// Where that is from.
    pub how: How,
    /// One card at most gets it.
    pub only_one: bool,
}

/// What the card `link` is to get among all `cards`; nothing for what is no card, or is to be left alone.
pub fn assigned(wishes: &Wishes, cards: &[&Candidate<'_>], link: &Link) -> Option<Assigned> {
    if !link.is_card(&wishes.extra_kinds) {
        return None;
    }
    let rules = &wishes.parameter.rules;
    if !rules.is_empty() {
        let is_named = |device: &String| *device == link.name || link.alt_names.contains(device);
        let named = rules
            .iter()
            .find(|rule| rule.device.as_ref().is_some_and(is_named));
        let rule = named.or_else(|| rules.iter().find(|rule| rule.device.is_none()))?;
        let how = How::CommandLine;
        return match &rule.method {
            RuleMethod::Off => None,
            RuleMethod::Dhcp { mtu } => {
                let recorded = recorded(wishes, link);
                let mtu = mtu.or(recorded.and_then(|recorded| recorded.mtu));
                Some(Assigned {
                    method: Method::Dhcp {
                        wish: None,
                        mtu,
                        rank: Rank::First,
                    },
                    how,
                    only_one: false,
                })
            }
            RuleMethod::Static(config) => {
                let resolvers = wishes.parameter.resolvers.clone();
                let method = Method::Static(Ipv4Config {
                    resolvers,
                    ..config.clone()
                });
                Some(Assigned {
                    method,
                    how,
                    only_one: rule.device.is_none(),
                })
            }
        };
    }
    if let Some(recorded) = recorded(wishes, link) {
        let resolvers = wishes
            .record
            .as_ref()
            .map(Record::ipv4_resolvers)
            .unwrap_or_default();
        let (method, how) = match (&recorded.ipv4, recorded.static_config(&resolvers)) {
            (_, Some(config)) => (Method::Static(config), How::Recorded),
            (RecordedIpv4::Dhcp { lease, secondary }, None) => (
                Method::Dhcp {
                    wish: *lease,
                    mtu: recorded.mtu,
                    rank: if *secondary {
                        Rank::Secondary
                    } else {
                        Rank::First
                    },
                },
                How::Dhcp,
            ),
            (RecordedIpv4::Static { .. }, None) => return None,
        };
        return Some(Assigned {
            method,
            how,
            only_one: false,
        });
    }
    // A card that nobody knows: only where neither a known one that may work nor one that works is there.
    let better = |card: &&Candidate<'_>| {
        card.stage == Stage::AsItIs
            || (card.link.up && card.address.is_some() && card.stage == Stage::New)
            || (recorded(wishes, card.link).is_some() && !card.idle && card.stage != Stage::Failed)
    };
    let is_partial = wishes.record.as_ref().is_some_and(|record| record.partial);
    let nobody_better = is_partial || !cards.iter().any(better);
    let method = Method::Dhcp {
        wish: None,
        mtu: None,
        rank: Rank::Unknown,
    };
    nobody_better.then_some(Assigned {
        method,
        how: How::Dhcp,
        only_one: false,
    })
}

fn recorded<'a>(wishes: &'a Wishes, link: &Link) -> Option<&'a RecordedInterface> {
    wishes
        .record
        .as_ref()?
        .interfaces
        .iter()
        .find(|interface| interface.is(link))
}
