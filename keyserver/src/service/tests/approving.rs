//! `ask`: sessions, codes, approvals.

use super::*;
use crate::records::SessionState;

const MINUTE: Duration = Duration::from_secs(60);

fn asking(rig: &Rig) -> (Machine, VolumeId, [u8; 32]) {
    let bound = rig.bound("web-1", 1);
    rig.set_policy(bound.1, r#"{"rule":"ask"}"#);
    bound
}

/// Another code than `code`.
fn wrong(code: &str) -> String {
    let first = if code.starts_with('2') { "3" } else { "2" };
    format!("{first}{}", &code[1..])
}

#[test]
fn the_code_of_the_console_approves_this_session() {
    let mut rig = Rig::new();
    let (machine, volume, share) = asking(&rig);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, AWAY, &boot, volume));
    assert_eq!((id.len(), code.len(), &code[3..4]), (5, 7, "-"));
    rig.restart();
    // Asking again is the same session, with the same code.
    assert_eq!(
        pending(&rig.verdict(&machine, AWAY, &boot, volume)),
        (id.clone(), code.clone())
    );
    let listed = rig.service.requests().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].id.as_str(), listed[0].conflict),
        (id.as_str(), false)
    );
    assert_eq!(listed[0].volumes[0].label, "vda5_crypt");
    assert!(!serde_json::to_string(&listed).unwrap().contains(&code));

    let typed = code.to_lowercase().replace('-', "");
    rig.service
        .approve(&id.to_lowercase(), &typed, "root")
        .unwrap();
    rig.restart();
    for _ in 0..2 {
        let verdict = rig.verdict(&machine, AWAY, &boot, volume);
        assert_eq!(
            boot.open(&machine, volume, Purpose::Release, released(&verdict)),
            share
        );
    }
    let kinds = rig.kinds();
    let tail = [Kind::Asked, Kind::Approved, Kind::Released, Kind::Released];
    assert_eq!(kinds[kinds.len() - 4..], tail);
}

#[test]
fn no_other_session_uses_an_approval() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    rig.service.approve(&id, &code, "root").unwrap();
    let same_id = Boot {
        request: boot.request,
        pair: BootKeyPair::generate().unwrap(),
    };
    let verdict = rig.verdict(&machine, HOME, &same_id, volume);
    assert_eq!(denied(&verdict), "this request id belongs to another boot");
    let (other, _) = pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    assert_ne!(other, id);
}

#[test]
fn an_approval_lasts_ten_minutes() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    rig.pass(30 * MINUTE);
    rig.service.approve(&id, &code, "root").unwrap();
    rig.pass(10 * MINUTE - Duration::from_millis(1));
    released(&rig.verdict(&machine, HOME, &boot, volume));
    rig.pass(Duration::from_millis(1));
    let (_, anew) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    assert_ne!(anew, code);
}

#[test]
fn a_request_ends_after_an_hour() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    rig.pass(HOUR);
    assert!(rig.service.requests().unwrap().is_empty());
    let late = rig.service.approve(&id, &code, "root");
    assert!(matches!(late, Err(AdminError::NoRequest(_))));
    // The same boot asks on, under a new number with a new code; the old number stays dead.
    let (anew, _) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    assert_ne!(anew, id);
    let stale = rig.service.approve(&id, &code, "root");
    assert!(matches!(stale, Err(AdminError::NoRequest(_))));
    rig.pass(HOUR);
    rig.service.maintain().unwrap();
    for prefix in ["session/", "number/"] {
        assert!(
            rig.store.range(prefix, None, 10).unwrap().is_empty(),
            "{prefix}"
        );
    }
}

#[test]
fn five_wrong_codes_deny_the_session() {
    let mut rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let boot = Boot::new();
    let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
    for left in [4, 3, 2, 1, 0] {
        match rig.service.approve(&id, &wrong(&code), "root") {
            Err(AdminError::WrongCode { left: found }) => assert_eq!(found, left),
            other => panic!("{other:?}"),
        }
        rig.restart();
    }
    let right = rig.service.approve(&id, &code, "root");
    assert!(matches!(right, Err(AdminError::Decided { .. })));
    let verdict = rig.verdict(&machine, HOME, &boot, volume);
    assert_eq!(
        denied(&verdict),
        "too many wrong codes were typed for this request"
    );
    assert_eq!(
        (rig.count(Kind::WrongCode), rig.count(Kind::Denied)),
        (5, 1)
    );
    // Another boot of the machine may ask again.
    pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}

#[test]
fn a_denied_session_is_told_so_even_after_it_was_approved() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    for approve_first in [false, true] {
        let boot = Boot::new();
        let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
        if approve_first {
            rig.service.approve(&id, &code, "root").unwrap();
        }
        let listing = rig.service.deny(&id, AfterDeny::Nothing, "root").unwrap();
        assert_eq!(listing.state, SessionState::Denied);
        match rig.verdict(&machine, HOME, &boot, volume) {
            Verdict::Denied {
                reason,
                retry_after,
            } => {
                assert_eq!(
                    reason.as_str(),
                    "the request was denied by the administrator"
                );
                assert_eq!(retry_after, 300);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            rig.service.deny(&id, AfterDeny::Nothing, "root"),
            Err(AdminError::Decided { .. })
        ));
        assert!(matches!(
            rig.service.approve(&id, &code, "root"),
            Err(AdminError::Decided { .. })
        ));
    }
}

#[test]
fn two_sessions_of_one_client_are_a_conflict_and_displace_nothing() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let (first, second) = (Boot::new(), Boot::new());
    let (id, code) = pending(&rig.verdict(&machine, HOME, &first, volume));
    assert!(!rig.service.requests().unwrap()[0].conflict);
    let (other, _) = pending(&rig.verdict(&machine, AWAY, &second, volume));
    let listed = rig.service.requests().unwrap();
    assert!(listed.iter().all(|listing| listing.conflict));
    assert_eq!(listed.len(), 2);
    rig.service
        .deny(&other, AfterDeny::Nothing, "root")
        .unwrap();
    assert!(
        rig.service
            .requests()
            .unwrap()
            .iter()
            .all(|listing| !listing.conflict)
    );
    rig.service.approve(&id, &code, "root").unwrap();
    released(&rig.verdict(&machine, HOME, &first, volume));
}

#[test]
fn the_code_of_one_session_does_not_approve_another() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let (id, _) = pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let (_, code) = pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let result = rig.service.approve(&id, &code, "root");
    assert!(matches!(result, Err(AdminError::WrongCode { left: 4 })));
}

#[test]
fn open_sessions_of_one_client_are_bounded() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let first = Boot::new();
    pending(&rig.verdict(&machine, HOME, &first, volume));
    for _ in 1..waiting::SESSIONS_LIMIT {
        pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    }
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert_eq!(
        denied(&verdict),
        "too many requests of this client wait for a person"
    );
    pending(&rig.verdict(&machine, HOME, &first, volume));
    // A copy elsewhere fills its own places only, and not without end.
    let asks = |number: usize| {
        let from = format!("10.0.0.{}", number / waiting::SESSIONS_LIMIT);
        rig.verdict(&machine, &from, &Boot::new(), volume)
    };
    for number in 0..waiting::ALL_SESSIONS_LIMIT - waiting::SESSIONS_LIMIT {
        pending(&asks(number));
    }
    denied(&asks(waiting::ALL_SESSIONS_LIMIT));
    rig.pass(HOUR);
    pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}

#[test]
fn volumes_that_need_no_person_are_released_beside_those_that_do() {
    let rig = Rig::new();
    let (machine, asked, _) = asking(&rig);
    let (allowed, late) = (VolumeId::random().unwrap(), VolumeId::random().unwrap());
    rig.register(&machine, allowed);
    rig.register(&machine, late);
    rig.set_policy(late, r#"{"rule":"ask"}"#);
    let boot = Boot::new();
    let answer = rig
        .release(&machine, HOME, &boot, &[asked, allowed])
        .unwrap();
    let (id, code) = pending(&answer.verdicts[0].verdict);
    released(&answer.verdicts[1].verdict);
    // A device that appears later joins the session that waits.
    let answer = rig.release(&machine, HOME, &boot, &[late]).unwrap();
    assert_eq!(
        pending(&answer.verdicts[0].verdict),
        (id.clone(), code.clone())
    );
    let approved = rig.service.approve(&id, &code, "root").unwrap();
    assert_eq!(approved.volumes.len(), 2);
    let answer = rig
        .release(&machine, HOME, &boot, &[late, asked, allowed])
        .unwrap();
    for verdict in &answer.verdicts {
        released(&verdict.verdict);
    }
    let after = VolumeId::random().unwrap();
    rig.register(&machine, after);
    rig.set_policy(after, r#"{"rule":"ask"}"#);
    let verdict = rig.verdict(&machine, HOME, &boot, after);
    assert_eq!(denied(&verdict), "the approval does not cover this volume");
}

#[test]
fn what_changes_after_an_approval_still_counts() {
    let rig = Rig::new();
    type Change = fn(&Rig, &Machine, VolumeId);
    let changes: [(&str, Change); 3] = [
        ("revoked", |rig, machine, _| {
            rig.service.revoke(&machine.name, "root").unwrap();
        }),
        ("denies", |rig, _, volume| {
            rig.set_policy(volume, r#"{"rule":"deny"}"#)
        }),
        ("", |rig, _, volume| {
            drop(rig.service.destroy(&volume, "root").unwrap())
        }),
    ];
    for (n, (reason, change)) in changes.into_iter().enumerate() {
        let number = u8::try_from(n).unwrap() + 1;
        let (machine, volume, _) = rig.bound(&format!("web-{number}"), number);
        rig.set_policy(volume, r#"{"rule":"ask"}"#);
        let boot = Boot::new();
        let (id, code) = pending(&rig.verdict(&machine, HOME, &boot, volume));
        rig.service.approve(&id, &code, "root").unwrap();
        change(&rig, &machine, volume);
        match rig.verdict(&machine, HOME, &boot, volume) {
            Verdict::Denied { reason: told, .. } => assert!(told.as_str().contains(reason)),
            Verdict::Destroyed => assert_eq!(reason, ""),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn odd_ids_and_codes_are_only_wrong() {
    let rig = Rig::new();
    let (machine, volume, _) = asking(&rig);
    let (id, _) = pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    for odd in ["", "/", "../session", "ÄÖÜ", "\0", &"A".repeat(10_000)] {
        let result = rig.service.approve(odd, "ABC-DEF", "root");
        assert!(matches!(result, Err(AdminError::NoRequest(_))), "{odd:?}");
    }
    let result = rig.service.approve(&id, "\0\u{1f511}", "root");
    assert!(matches!(result, Err(AdminError::WrongCode { .. })));
}
