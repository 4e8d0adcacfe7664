//! Every condition alone, every pair of them, and every state of a session.

use latchkey_protocol::wire::Text;

use super::*;
use crate::records::Origin;

pub(super) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
pub(super) const HERE: &str = "192.0.2.7";

/// All that a decision rests on.
#[derive(Clone)]
pub(super) struct Case {
    pub purpose: Purpose,
    pub standing: Standing,
    pub request: RequestId,
    pub key: Bytes<32>,
    pub peer: IpAddr,
    pub wanted: WantedVolume,
    pub volume: Option<Volume>,
    pub session: Option<Session>,
    pub ticket: Option<Bytes<32>>,
    pub facts: BootFacts,
    pub policy_set: UnixMillis,
    pub home: Option<Range>,
    pub machine: Option<Machine>,
    pub trace: Option<Trace>,
    pub life: Life,
    pub store: StoreState,
    pub uptime: Uptime,
    pub now: UnixMillis,
}

pub(super) fn client(name: &str) -> ClientName {
    name.parse().unwrap()
}

/// A request that is released, with an approved session beside it.
pub(super) fn good() -> Case {
    let id: VolumeId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    let request: RequestId = "00000000000000000000000000000001".parse().unwrap();
    let wanted = WantedVolume {
        volume: id,
        generation: Generation(3),
    };
    let peer: IpAddr = HERE.parse().unwrap();
    Case {
        purpose: Purpose::Release,
        standing: Standing::Good,
        request,
        key: Bytes([5; 32]),
        peer,
        wanted,
        volume: Some(Volume {
            id,
            client: client("web-1"),
            label: "root".to_owned(),
            generation: Generation(3),
            policy: Policy::default_for(peer, Otherwise::Deny),
            origin: Origin::Set(NOW),
            home: None,
            created: NOW,
            state: VolumeState::Live,
            opened_by: OpenedBy::BootKey,
            next: None,
        }),
        session: Some(session(request, SessionState::Approved, &[wanted])),
        ticket: None,
        facts: facts(),
        policy_set: NOW,
        home: None,
        machine: None,
        trace: None,
        life: Life::Gone,
        store: StoreState::Newest,
        uptime: Uptime(0),
        now: NOW,
    }
}

pub(super) fn session(
    request: RequestId,
    state: SessionState,
    volumes: &[WantedVolume],
) -> Session {
    Session {
        request,
        client: client("web-1"),
        ephemeral_key: Bytes([5; 32]),
        volumes: volumes.to_vec(),
        number: crate::records::ShortId::typed("AAAAA"),
        code: crate::records::Code::random().unwrap(),
        state,
        attempts: 0,
        created: NOW,
        expires: NOW.plus(std::time::Duration::from_secs(3600)),
        peer: HERE.parse().unwrap(),
        approvals: vec![approved("alice")],
    }
}

pub(super) fn approved(who: &str) -> crate::records::Approved {
    crate::records::Approved {
        who: who.to_owned(),
        at: NOW,
    }
}

pub(super) fn facts() -> BootFacts {
    BootFacts {
        kernel: Text::cut("6.1.0-40-amd64"),
        command_line: Bytes([1; 32]),
        image_built: 1,
        image: Some(Bytes([2; 32])),
        header: Some(Bytes([3; 32])),
    }
}

pub(super) fn decided(case: &Case) -> String {
    let name = client("web-1");
    let request = PolicyRequest {
        purpose: case.purpose,
        client: &name,
        standing: case.standing,
        request: case.request,
        ephemeral_key: &case.key,
        peer: case.peer,
        wanted: case.wanted,
        ticket: case.ticket.as_ref(),
        facts: &case.facts,
    };
    let none = Policy::plain(Rule::Deny);
    let state = StoredState {
        volume: case.volume.as_ref(),
        policy: case.volume.as_ref().map_or(&none, |volume| &volume.policy),
        policy_set: case.policy_set,
        home: case.home,
        session: case.session.as_ref(),
        machine: case.machine.as_ref(),
        trace: case.trace.as_ref(),
        life: case.life,
        store: case.store,
        uptime: case.uptime,
    };
    match decide(&request, state, case.now) {
        Decision::Release(authorised) => {
            // Bound to what was asked, whatever it rests on.
            assert_eq!(authorised.volume(), case.wanted.volume);
            assert_eq!(authorised.generation(), case.wanted.generation);
            assert_eq!(authorised.request(), case.request);
            assert_eq!(authorised.ephemeral_key(), &case.key);
            assert_eq!(authorised.client(), &name);
            assert_eq!(authorised.purpose(), case.purpose);
            format!("{:?}", authorised.by())
        }
        Decision::Deny(Reason::Generation { .. }) => "Generation".to_owned(),
        Decision::Deny(Reason::Condition(condition)) => format!("{condition:?}"),
        Decision::Deny(reason) => format!("{reason:?}"),
        other => format!("{other:?}"),
    }
}

pub(super) type Break = fn(&mut Case);

pub(super) fn volume(case: &mut Case, change: impl FnOnce(&mut Volume)) {
    if let Some(volume) = &mut case.volume {
        change(volume);
    }
}

/// In the order in which they are told.
const CONDITIONS: [(&str, Break); 11] = [
    ("Unknown", |case| case.volume = None),
    ("NotOwned", |case| {
        volume(case, |v| v.client = client("web-2"))
    }),
    ("Revoked", |case| case.standing = Standing::Revoked),
    ("Destroyed", |case| {
        volume(case, |v| v.state = VolumeState::Destroyed(NOW))
    }),
    ("Destroyed", |case| {
        volume(case, |v| v.state = VolumeState::Retired(NOW))
    }),
    ("Generation", |case| case.wanted.generation = Generation(2)),
    ("OtherSession", |case| case.key = Bytes([6; 32])),
    ("PutBack", |case| case.store = StoreState::PutBack),
    // The same field as above: of the two, revoked is told.
    ("Locked", |case| {
        if case.standing == Standing::Good {
            case.standing = Standing::Locked;
        }
    }),
    ("Rule", |case| {
        volume(case, |v| {
            v.policy.rule = Rule::Deny;
            v.policy.from.clear();
        });
    }),
    ("Address", |case| case.peer = "192.0.2.8".parse().unwrap()),
];

#[test]
fn each_condition_denies_alone() {
    assert_eq!(decided(&good()), "Policy");
    for (expected, change) in CONDITIONS {
        let mut case = good();
        change(&mut case);
        assert_eq!(decided(&case), expected);
    }
}

#[test]
fn of_two_conditions_the_earlier_is_told() {
    for (at, (earlier, first)) in CONDITIONS.iter().enumerate() {
        for (later, second) in &CONDITIONS[at + 1..] {
            for order in [[first, second], [second, first]] {
                let mut case = good();
                order.iter().for_each(|change| change(&mut case));
                assert_eq!(decided(&case), *earlier, "{earlier} with {later}");
            }
        }
    }
}

#[test]
fn whatever_the_session_says_these_conditions_hold() {
    for (expected, change) in CONDITIONS {
        for state in [
            SessionState::Pending,
            SessionState::Approved,
            SessionState::Denied,
        ] {
            let mut case = good();
            case.session.as_mut().unwrap().state = state;
            change(&mut case);
            assert_eq!(decided(&case), expected, "{state:?}");
        }
    }
}

#[test]
fn rules_and_addresses_give_what_the_table_says() {
    use Otherwise as E;
    use Rule as R;
    for (rule, listed, elsewhere, here, there) in [
        (R::Allow, false, E::Deny, "Policy", "Policy"),
        (R::Ask, false, E::Deny, "Ask", "Ask"),
        (R::Deny, false, E::Deny, "Rule", "Rule"),
        (R::Allow, true, E::Deny, "Policy", "Address"),
        (R::Allow, true, E::Ask, "Policy", "Ask"),
        (R::Ask, true, E::Deny, "Ask", "Address"),
        (R::Ask, true, E::Ask, "Ask", "Ask"),
        (R::Deny, true, E::Ask, "Rule", "Rule"),
    ] {
        for (peer, expected) in [
            (HERE, here),
            ("::ffff:192.0.2.7", here),
            ("192.0.2.8", there),
            ("2001:db8::1", there),
        ] {
            let mut case = good();
            case.session = None;
            case.peer = peer.parse().unwrap();
            volume(&mut case, |v| {
                v.policy = Policy {
                    rule,
                    from: if listed {
                        vec![HERE.parse().unwrap()]
                    } else {
                        vec![]
                    },
                    elsewhere,
                    ..Policy::plain(rule)
                };
            });
            assert_eq!(
                decided(&case),
                expected,
                "{rule:?} {listed} {elsewhere:?} {peer}"
            );
        }
    }
}

#[test]
fn a_session_is_asked_for_waited_for_and_used_once_approved() {
    let asking = |change: Break| {
        let mut case = good();
        volume(&mut case, |v| v.policy.rule = Rule::Ask);
        change(&mut case);
        decided(&case)
    };
    fn with(case: &mut Case, change: impl FnOnce(&mut Session)) {
        change(case.session.as_mut().unwrap());
    }
    let table: [(&str, Break); 12] = [
        ("Ask", |case| case.session = None),
        ("Pending", |case| {
            with(case, |s| s.state = SessionState::Pending)
        }),
        ("Approval", |_| ()),
        ("Denied", |case| {
            with(case, |s| s.state = SessionState::Denied)
        }),
        ("Exhausted", |case| {
            with(case, |s| s.state = SessionState::Exhausted)
        }),
        ("Ask", |case| with(case, |s| s.expires = NOW)),
        ("Ask", |case| {
            with(case, |s| {
                s.created = NOW.plus(std::time::Duration::from_secs(301))
            });
        }),
        ("NotApproved", |case| with(case, |s| s.volumes.clear())),
        ("NotApproved", |case| {
            with(case, |s| s.volumes[0].generation = Generation(2))
        }),
        ("Ask", |case| {
            with(case, |s| {
                s.volumes.clear();
                s.state = SessionState::Pending;
            });
        }),
        // Another boot's session or another client's never counts, even if it is passed in.
        ("Ask", |case| {
            with(case, |s| s.request = RequestId::random().unwrap())
        }),
        ("Ask", |case| with(case, |s| s.client = client("web-2"))),
    ];
    for (n, (expected, change)) in table.into_iter().enumerate() {
        assert_eq!(asking(change), expected, "row {n}");
    }
}

#[test]
fn the_running_system_gets_its_own_volume_whatever_the_rule_but_not_from_a_store_that_was_put_back()
{
    for purpose in [Purpose::Proof, Purpose::Registration] {
        for (expected, change) in CONDITIONS {
            let mut case = good();
            case.purpose = purpose;
            change(&mut case);
            let expected = match expected {
                "Rule" | "Address" | "OtherSession" | "Locked" => "Owner",
                other => other,
            };
            assert_eq!(decided(&case), expected, "{purpose:?}");
        }
    }
}

#[test]
fn each_key_opens_only_what_was_bound_for_it() {
    use OpenedBy::{BootKey, ExposedBootKey, ExposedHostKey, HostKey};
    for (opened_by, released, opened) in [
        (BootKey, "Policy", "OtherKey"),
        (ExposedBootKey, "Policy", "OtherKey"),
        (HostKey, "OtherKey", "Policy"),
        (ExposedHostKey, "OtherKey", "Policy"),
    ] {
        let mut case = good();
        volume(&mut case, |v| v.opened_by = opened_by);
        for (purpose, expected) in [(Purpose::Release, released), (Purpose::Opening, opened)] {
            case.purpose = purpose;
            assert_eq!(decided(&case), expected, "{purpose:?} {opened_by:?}");
        }
    }
}

#[test]
fn opening_in_the_running_system_follows_the_policy() {
    for (expected, change) in CONDITIONS {
        let mut case = good();
        case.purpose = Purpose::Opening;
        volume(&mut case, |v| v.opened_by = OpenedBy::HostKey);
        change(&mut case);
        assert_eq!(decided(&case), expected);
    }
}

#[test]
fn only_a_host_key_on_an_encrypted_root_stands_for_the_boot() {
    use OpenedBy::{ExposedHostKey, HostKey};
    type Set = fn(&mut Policy);
    let of_boots: [Set; 3] = [
        |policy| policy.life = true,
        |policy| policy.armed = true,
        |policy| policy.silent_after = Some(Span(std::time::Duration::from_secs(60))),
    ];
    for (number, set) in of_boots.into_iter().enumerate() {
        for (opened_by, otherwise, expected) in [
            (HostKey, Otherwise::Deny, "Policy"),
            (ExposedHostKey, Otherwise::Ask, "Ask"),
            (
                ExposedHostKey,
                Otherwise::Deny,
                ["Exposed", "Armed", "Silence"][number],
            ),
        ] {
            let mut case = good();
            case.purpose = Purpose::Opening;
            case.session = None;
            volume(&mut case, |v| {
                v.opened_by = opened_by;
                v.policy.otherwise = otherwise;
                set(&mut v.policy);
            });
            assert_eq!(decided(&case), expected, "{number} {opened_by:?}");
        }
    }
}

#[test]
fn only_a_boot_key_beside_an_encrypted_root_leaves_proofs_to_the_host_key_once_it_is_bound() {
    for (opened_by, after) in [
        (OpenedBy::BootKey, "Owner"),
        (OpenedBy::ExposedBootKey, "Bound"),
        (OpenedBy::HostKey, "Bound"),
        (OpenedBy::ExposedHostKey, "Bound"),
    ] {
        for purpose in [Purpose::Proof, Purpose::Registration] {
            for (later, expected) in [
                (BINDING - Duration::from_secs(1), "Owner"),
                (BINDING, after),
            ] {
                let mut case = good();
                case.purpose = purpose;
                case.now = NOW.plus(later);
                volume(&mut case, |v| v.opened_by = opened_by);
                assert_eq!(decided(&case), expected, "{purpose:?} {opened_by:?}");
            }
        }
    }
}

#[test]
fn a_foreign_volume_looks_like_none() {
    assert_eq!(Reason::Unknown.public(), Reason::NotOwned.public());
    assert_ne!(Reason::Unknown.to_string(), Reason::NotOwned.to_string());
}

#[test]
fn policies_read_as_sentences() {
    let policy = |json: &str| serde_json::from_str::<Policy>(json).unwrap();
    for (json, sentence) in [
        (
            r#"{"rule":"allow"}"#,
            "released without a person to whoever holds the boot key, from any address",
        ),
        (
            r#"{"rule":"ask"}"#,
            "released after a person's approval, from any address",
        ),
        (r#"{"rule":"deny"}"#, "never released"),
        (
            r#"{"rule":"allow","from":["192.0.2.7"]}"#,
            "released without a person to 192.0.2.7/32; to other addresses never",
        ),
        (
            r#"{"rule":"ask","from":["192.0.2.0/24","2001:db8::/64"],"elsewhere":"ask"}"#,
            "released after a person's approval to 192.0.2.0/24, 2001:db8::/64; to other addresses after a person's approval",
        ),
    ] {
        assert_eq!(policy(json).sentence(), sentence);
        assert_eq!(policy(json).check(), Ok(()));
    }
    let mut long = policy(r#"{"rule":"allow"}"#);
    long.from = (0..32)
        .map(|n| {
            format!("2001:db8:ffff:ffff:ffff:ffff:ffff:{n:x}")
                .parse()
                .unwrap()
        })
        .collect();
    assert!(long.sentence().len() <= 400, "{}", long.sentence());
    assert!(long.sentence().contains("28 more ranges"));
}

#[test]
fn policies_that_cannot_be_meant_are_refused() {
    let policy = |json: &str| serde_json::from_str::<Policy>(json);
    for bad in [
        r#"{}"#,
        r#"{"rule":"maybe"}"#,
        r#"{"rule":"allow","form":["192.0.2.7"]}"#,
        r#"{"rule":"allow","from":["192.0.2.7/8"]}"#,
        r#"{"rule":"allow","rule":"deny"}"#,
    ] {
        assert!(policy(bad).is_err(), "{bad}");
    }
    for bad in [
        r#"{"rule":"deny","from":["192.0.2.7"]}"#,
        r#"{"rule":"allow","elsewhere":"ask"}"#,
        r#"{"rule":"allow","from":["192.0.2.7","192.0.2.7/32"]}"#,
    ] {
        assert!(policy(bad).unwrap().check().is_err(), "{bad}");
    }
    let mut many = policy(r#"{"rule":"allow"}"#).unwrap();
    many.from = (0..33)
        .map(|n| format!("192.0.2.{n}").parse().unwrap())
        .collect();
    assert!(many.check().is_err());
}
