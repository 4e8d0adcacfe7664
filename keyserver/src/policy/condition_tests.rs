//! The conditions of a policy: each alone, every pair, under each `otherwise`, with and without a person's approval.

use std::time::Duration;

use super::tests::{
    Break, Case, HERE, NOW, approved, client, decided, facts, good, session, volume,
};
use super::*;
use crate::records::{Armed, BootSession, Heard, LastBoot};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const RUN: Uptime = Uptime(1_000_000_000);

/// A request for which every condition of a policy that has all of them holds.
fn full() -> Case {
    let mut case = good();
    case.session = None;
    let window = Window::around(NOW);
    volume(&mut case, |volume| {
        volume.policy = Policy {
            elsewhere: Otherwise::Ask,
            windows: vec![window],
            per_hour: Some(3),
            per_day: Some(5),
            armed: true,
            ticket: true,
            life: true,
            silent_after: Some(Span(Duration::from_secs(1800))),
            changes: vec![
                Change::Kernel,
                Change::CommandLine,
                Change::Image,
                Change::Header,
            ],
            once: true,
            ..volume.policy.clone()
        };
    });
    let mut machine = Machine::new(client("web-1"));
    machine.armed = Some(Armed {
        at: NOW,
        until: NOW.plus(HOUR),
        by: None,
        boot: None,
        earlier: Vec::new(),
        used: None,
    });
    machine.heard = Some(Heard {
        at: NOW,
        uptime: RUN,
    });
    case.machine = Some(machine);
    let mut trace = Trace::new(case.wanted.volume);
    trace.current = Some(Bytes([7; 32]));
    trace.last = Some(LastBoot::new(
        boot(98, NOW),
        HERE.parse().unwrap(),
        &facts(),
        None,
    ));
    case.trace = Some(trace);
    case.ticket = Some(Bytes([7; 32]));
    case.life = Life::Silent;
    case.uptime = RUN;
    case
}

fn policy(case: &mut Case, change: impl FnOnce(&mut Policy)) {
    volume(case, |volume| change(&mut volume.policy));
}

fn trace(case: &mut Case) -> &mut Trace {
    case.trace.as_mut().unwrap()
}

fn boot(number: u8, at: UnixMillis) -> BootSession {
    BootSession {
        request: format!("{number:032x}").parse().unwrap(),
        ephemeral_key: Bytes([number; 32]),
        at,
    }
}

fn boots(case: &mut Case, count: u8, at: UnixMillis) {
    trace(case).boots = (100..100 + count).map(|number| boot(number, at)).collect();
}

/// What happens when a condition does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// Refused always.
    Refuses,
    /// As `elsewhere` says.
    Elsewhere,
    /// As `otherwise` says.
    Otherwise,
    /// Asks always.
    Asks,
    /// Waits.
    Waits,
}

/// In the order in which they decide.
const BREAKS: [(&str, Then, Break); 20] = [
    ("Life", Then::Refuses, |case| case.life = Life::Alive),
    ("Life", Then::Waits, |case| case.life = Life::Waiting),
    ("Once", Then::Refuses, |case| {
        trace(case).used = Some((boot(99, NOW), NOW));
    }),
    // Its time to fetch is over, also for the boot that it was released to.
    ("Once", Then::Refuses, |case| {
        let mut own = boot(1, UnixMillis(NOW.0 - 600_000));
        own.ephemeral_key = Bytes([5; 32]);
        trace(case).used = Some((own, NOW));
    }),
    ("Address", Then::Elsewhere, |case| {
        case.peer = "192.0.2.8".parse().unwrap()
    }),
    ("Ticket", Then::Otherwise, |case| {
        case.ticket = Some(Bytes([8; 32]))
    }),
    ("Ticket", Then::Otherwise, |case| case.ticket = None),
    ("Ticket", Then::Asks, |case| {
        trace(case).current = None;
        trace(case).next = None;
    }),
    ("Window", Then::Otherwise, |case| {
        policy(case, |policy| {
            policy.windows = vec![Window::around(NOW.plus(HOUR * 12))]
        });
    }),
    ("Rate", Then::Otherwise, |case| {
        boots(case, 3, UnixMillis(NOW.0 - 3_599_000))
    }),
    ("Rate", Then::Otherwise, |case| {
        boots(case, 5, UnixMillis(NOW.0 - 86_399_000))
    }),
    ("Armed", Then::Otherwise, |case| {
        case.machine.as_mut().unwrap().armed = None
    }),
    ("Armed", Then::Otherwise, |case| {
        let armed = case.machine.as_mut().unwrap().armed.as_mut();
        if let Some(armed) = armed {
            armed.until = NOW;
        }
    }),
    ("Armed", Then::Otherwise, |case| {
        let armed = case.machine.as_mut().unwrap().armed.as_mut();
        if let Some(armed) = armed {
            armed.used = Some(boot(99, NOW));
        }
    }),
    ("Silence", Then::Otherwise, |case| {
        case.uptime = RUN.plus(Duration::from_secs(1800))
    }),
    ("Silence", Then::Otherwise, |case| {
        case.machine.as_mut().unwrap().heard = None
    }),
    ("Changes", Then::Otherwise, |case| case.facts.header = None),
    ("Changes", Then::Asks, |case| trace(case).last = None),
    ("Changes", Then::Otherwise, |case| {
        case.facts.command_line = Bytes([9; 32])
    }),
    ("Rule", Then::Asks, |case| {
        policy(case, |policy| policy.rule = Rule::Ask)
    }),
];

/// What a request comes to for which the conditions at `places` do not hold.
fn expected(places: &[usize], otherwise: Otherwise, elsewhere: Otherwise) -> String {
    let mut places = places.to_vec();
    places.sort_unstable();
    let refuses = |then: Then| match then {
        Then::Refuses => true,
        Then::Elsewhere => elsewhere == Otherwise::Deny,
        Then::Otherwise => otherwise == Otherwise::Deny,
        Then::Asks | Then::Waits => false,
    };
    if let Some(at) = places.iter().find(|at| refuses(BREAKS[**at].1)) {
        return BREAKS[*at].0.to_owned();
    }
    match places.iter().any(|at| BREAKS[*at].1 == Then::Waits) {
        true => "Wait".to_owned(),
        false => "Ask".to_owned(),
    }
}

#[test]
fn each_condition_and_every_pair_decides_as_the_table_says() {
    assert_eq!(decided(&full()), "Policy");
    for otherwise in [Otherwise::Ask, Otherwise::Deny] {
        for elsewhere in [Otherwise::Ask, Otherwise::Deny] {
            for (first, (name, _, change)) in BREAKS.iter().enumerate() {
                for (second, (other, _, also)) in BREAKS.iter().enumerate() {
                    let mut case = full();
                    policy(&mut case, |policy| {
                        policy.otherwise = otherwise;
                        policy.elsewhere = elsewhere;
                    });
                    change(&mut case);
                    // Two ways to break one condition may undo each other.
                    if first != second && name != other {
                        also(&mut case);
                    } else if first != second {
                        continue;
                    }
                    let what = format!("{} {} {otherwise:?} {elsewhere:?}", name, other);
                    let expected = expected(&[first, second], otherwise, elsewhere);
                    assert_eq!(decided(&case), expected, "{what}");

                    // A person's approval stands for what a person may decide, and for nothing else.
                    let request = case.request;
                    case.session = Some(session(request, SessionState::Approved, &[case.wanted]));
                    let with = match expected.as_str() {
                        "Ask" => "Approval".to_owned(),
                        _ => expected,
                    };
                    assert_eq!(decided(&case), with, "approved: {what}");
                }
            }
        }
    }
}

#[test]
fn a_stale_or_hidden_ticket_is_never_released_without_a_person_whatever_the_policy() {
    for json in [
        r#"{"rule":"allow"}"#,
        r#"{"rule":"allow","from":["192.0.2.7"]}"#,
        r#"{"rule":"allow","per-day":3,"otherwise":"deny"}"#,
    ] {
        let mut case = full();
        policy(&mut case, |policy| {
            *policy = serde_json::from_str(json).unwrap()
        });
        assert_eq!(decided(&case), "Policy");
        case.ticket = Some(Bytes([8; 32]));
        assert_eq!(decided(&case), "Ask");
        // An agent that knows of no tickets shows none, and has never shown one.
        case.ticket = None;
        assert_eq!(decided(&case), "Policy");
        trace(&mut case).last.as_mut().unwrap().ticket = true;
        assert_eq!(decided(&case), "Ask");
    }
}

#[test]
fn an_announced_boot_skips_the_wait_only_if_the_machine_has_closed_its_connection() {
    for (life, announced, expected) in [
        (Life::Gone, true, "Policy"),
        (Life::Waiting, true, "Wait"),
        (Life::Silent, true, "Policy"),
        (Life::Alive, true, "Life"),
        (Life::Gone, false, "Wait"),
        (Life::Waiting, false, "Wait"),
        (Life::Silent, false, "Policy"),
        (Life::Alive, false, "Life"),
    ] {
        let mut case = full();
        policy(&mut case, |policy| policy.armed = false);
        case.life = life;
        if !announced {
            case.machine.as_mut().unwrap().armed = None;
        }
        assert_eq!(decided(&case), expected, "{life:?} {announced}");
    }
}

#[test]
fn a_host_key_that_every_copy_has_neither_announces_a_boot_nor_is_heard_of_and_its_silence_says_nothing()
 {
    type Set = fn(&mut Policy);
    let none: Set = |policy| {
        policy.armed = false;
        policy.life = false;
        policy.silent_after = None;
    };
    let asks: [(Set, &str); 3] = [
        (|policy| policy.armed = true, "Armed"),
        (|policy| policy.life = true, "Exposed"),
        (
            |policy| policy.silent_after = Some(Span(Duration::from_secs(1800))),
            "Silence",
        ),
    ];
    let exposed = |set: Set, otherwise| {
        let mut case = full();
        volume(&mut case, |volume| {
            volume.opened_by = OpenedBy::ExposedBootKey;
            volume.policy.otherwise = otherwise;
            none(&mut volume.policy);
            set(&mut volume.policy);
        });
        case
    };
    assert_eq!(decided(&exposed(none, Otherwise::Deny)), "Policy");
    for (set, refused) in asks {
        assert_eq!(decided(&exposed(set, Otherwise::Ask)), "Ask", "{refused}");
        assert_eq!(decided(&exposed(set, Otherwise::Deny)), refused);
    }
    // An answer still says that there are two of it, and is waited for whatever was announced.
    for (life, expected) in [
        (Life::Alive, "Life"),
        (Life::Waiting, "Wait"),
        (Life::Gone, "Wait"),
    ] {
        let mut case = exposed(|policy| policy.life = true, Otherwise::Ask);
        case.life = life;
        assert_eq!(decided(&case), expected, "{life:?}");
    }
}

#[test]
fn an_announcement_wants_the_ticket_and_volumes_without_one_have_none_to_show() {
    for (current, shown, expected) in [
        (Some(7), Some(7), "Policy"),
        (Some(7), Some(8), "Ask"),
        (Some(7), None, "Ask"),
        (None, None, "Policy"),
    ] {
        let mut case = full();
        policy(&mut case, |policy| policy.ticket = false);
        trace(&mut case).current = current.map(|byte| Bytes([byte; 32]));
        case.ticket = shown.map(|byte| Bytes([byte; 32]));
        assert_eq!(decided(&case), expected, "{current:?} {shown:?}");
    }
}

#[test]
fn what_was_released_to_a_boot_is_not_counted_against_it() {
    let mut case = full();
    boots(&mut case, 3, NOW);
    assert_eq!(decided(&case), "Ask");
    let own = BootSession {
        request: case.request,
        ephemeral_key: case.key,
        at: NOW,
    };
    trace(&mut case).boots.push(own);
    assert_eq!(decided(&case), "Policy");
    // Of the same policy, the one boot may fetch again until its time is over.
    trace(&mut case).used = Some((own, NOW));
    assert_eq!(decided(&case), "Policy");
    case.policy_set = NOW.plus(HOUR);
    trace(&mut case).used = Some((boot(99, NOW), NOW));
    assert_eq!(decided(&case), "Policy", "the policy was set again");
}

#[test]
fn boots_of_long_ago_do_not_count() {
    let mut case = full();
    boots(&mut case, 4, UnixMillis(NOW.0 - 3_600_000));
    assert_eq!(decided(&case), "Policy");
    let day = u64::try_from(DAY.as_millis()).unwrap();
    boots(&mut case, 9, UnixMillis(NOW.0 - day));
    assert_eq!(decided(&case), "Policy");
    // A clock that was put back counts more, never less.
    boots(&mut case, 3, NOW.plus(DAY));
    assert_eq!(decided(&case), "Ask");
}

#[test]
fn an_image_that_was_announced_is_no_change_and_neither_is_its_kernel() {
    let other = Bytes([9; 32]);
    for (kernel, image, announced, expected) in [
        (false, false, false, "Policy"),
        (true, false, false, "Ask"),
        (false, true, false, "Ask"),
        (true, true, false, "Ask"),
        (false, true, true, "Policy"),
        (true, true, true, "Policy"),
        // A new kernel in the old image is none that was announced.
        (true, false, true, "Ask"),
    ] {
        let mut case = full();
        if kernel {
            case.facts.kernel = latchkey_protocol::wire::Text::cut("6.6");
        }
        if image {
            case.facts.image = Some(other);
        }
        if announced {
            case.machine.as_mut().unwrap().images = vec![other];
        }
        assert_eq!(decided(&case), expected, "{kernel} {image} {announced}");
    }
    let mut case = full();
    policy(&mut case, |policy| {
        policy.from.clear();
        policy.elsewhere = Otherwise::Deny;
        policy.changes.push(Change::Address);
    });
    assert_eq!(decided(&case), "Policy");
    case.peer = "192.0.2.8".parse().unwrap();
    assert_eq!(decided(&case), "Ask");
}

#[test]
fn home_is_the_address_that_the_volume_was_bound_at() {
    for (home, expected) in [
        (Some("192.0.2.7"), "Policy"),
        (Some("192.0.2.9"), "Ask"),
        (None, "Ask"),
    ] {
        let mut case = full();
        policy(&mut case, |policy| policy.from = vec![Source::Home]);
        case.home = home.map(|text| Range::around(text.parse().unwrap()));
        assert_eq!(decided(&case), expected, "{home:?}");
    }
}

#[test]
fn as_many_of_the_named_people_must_approve_as_the_policy_wants() {
    for (by, count, given, expected) in [
        (&[][..], 1, &["anna"][..], "Approval"),
        (&[], 2, &["anna"], "Pending"),
        (&[], 2, &["anna", "anna"], "Pending"),
        (&[], 2, &["anna", "bert"], "Approval"),
        (&["anna", "bert", "cleo"], 2, &["anna", "dora"], "Pending"),
        (
            &["anna", "bert", "cleo"],
            2,
            &["dora", "cleo", "bert"],
            "Approval",
        ),
        (&["anna"], 1, &["bert"], "Pending"),
    ] {
        let mut case = full();
        policy(&mut case, |policy| {
            policy.rule = Rule::Ask;
            policy.approval.count = count;
            policy.approval.by = by.iter().map(|name: &&str| (*name).to_owned()).collect();
        });
        let mut open = session(case.request, SessionState::Approved, &[case.wanted]);
        open.approvals = given.iter().map(|name| approved(name)).collect();
        case.session = Some(open);
        assert_eq!(decided(&case), expected, "{by:?} {count} {given:?}");
        // What an approval is good for ends.
        case.now = NOW.plus(Duration::from_secs(600));
        policy(&mut case, |policy| policy.windows.clear());
        assert_eq!(decided(&case), "Pending", "{by:?} {count} {given:?}");
    }
}
