//! Tickets, announced reboots, proof of life, silence: what an unattended boot rests on.

use latchkey_protocol::wire::LifeAnswer;

use super::*;
use crate::policy::Preset;

const INTERVAL: Duration = life::BEAT;
const MINUTE: Duration = Duration::from_secs(60);

/// A machine under a preset, and the ticket in its header.
pub(super) fn under(rig: &Rig, preset: &str) -> (Machine, VolumeId, Bytes<32>) {
    let (machine, volume, _) = rig.bound("web-1", 1);
    let ticket = rig.move_ticket(&machine, volume);
    let policy = Preset::named(preset).unwrap().policy();
    rig.service.set_policy(&volume, &policy, "root").unwrap();
    (machine, volume, ticket)
}

pub(super) fn life_stream(rig: &Rig, machine: &Machine) -> life::LifeStream {
    let host = rig.identity(&machine.host);
    rig.service.open_life(&host, address(HOME)).unwrap()
}

pub(super) fn answers(
    rig: &Rig,
    machine: &Machine,
    challenge: Bytes<32>,
) -> Result<(), ServiceError> {
    let host = rig.identity(&machine.host);
    let answer = LifeAnswer {
        version: Version::default(),
        challenge,
    };
    rig.service.answer_life(&host, address(HOME), &answer)
}

#[test]
fn the_next_ticket_is_the_same_until_it_is_confirmed() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let first = rig.next_ticket(&machine, volume);
    rig.restart();
    assert_eq!(rig.next_ticket(&machine, volume), first);
    rig.confirm(&machine, volume, first, None).unwrap();
    let second = rig.next_ticket(&machine, volume);
    assert_ne!(second, first);
    // Until it is confirmed, both are good; then the first one is a copy's.
    rig.confirm(&machine, volume, first, None).unwrap();
    rig.confirm(&machine, volume, second, None).unwrap();
    rig.confirm(&machine, volume, second, None).unwrap();
    for wrong in [first, Bytes([0; 32])] {
        let refused = rig.confirm(&machine, volume, wrong, None);
        assert!(matches!(refused, Err(ServiceError::Invalid(_))));
    }
}

#[test]
fn tickets_are_for_the_machines_own_live_volumes() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let (other, foreign, _) = rig.bound("web-2", 2);
    let ticket = rig.move_ticket(&other, foreign);
    let refused = rig.confirm(&machine, foreign, ticket, None);
    assert!(matches!(
        refused,
        Err(ServiceError::Refused(Refusal::NotOwned))
    ));
    rig.service.destroy(&volume, "root").unwrap();
    let gone = rig.confirm(&machine, volume, ticket, None);
    assert!(matches!(gone, Err(ServiceError::Destroyed)));
    // The boot key moves no ticket.
    let boot = rig.identity(&machine.boot);
    let request = TicketsRequest {
        version: Version::default(),
        volumes: vec![Shown {
            volume,
            shown: None,
        }],
    };
    let refused = rig.service.next_tickets(&boot, address(HOME), &request);
    assert!(matches!(refused, Err(ServiceError::Refused(Refusal::Role))));
}

#[test]
fn a_policy_that_wants_tickets_is_refused_where_there_is_none() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let policy = Preset::named("home-server").unwrap().policy();
    let refused = rig.service.set_policy(&volume, &policy, "root");
    assert!(matches!(refused, Err(AdminError::NoTickets(_))));
    let target = listing::PolicyTarget::Client(machine.name.clone());
    let refused = rig.service.set_policy_of(&target, Some(&policy), "root");
    assert!(matches!(refused, Err(AdminError::NoTickets(_))));
    rig.move_ticket(&machine, volume);
    rig.service.set_policy(&volume, &policy, "root").unwrap();
}

#[test]
fn a_thief_who_hides_his_old_ticket_asks_a_person_and_so_does_a_header_that_was_put_back_once() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let boots = |boot: &Boot, ticket| rig.boots(&machine, HOME, boot, volume, ticket);
    // An image of an earlier version shows none.
    rig.move_ticket(&machine, volume);
    released(&boots(&Boot::new(), None));
    let ticket = rig.move_ticket(&machine, volume);
    released(&boots(&Boot::new(), Some(ticket)));
    rig.move_ticket(&machine, volume);
    assert!(rig.alarms().is_empty());
    let restored = Boot::new();
    let (id, code) = pending(&boots(&restored, None));
    assert!(rig.alarms()[0].contains("no ticket was shown"));
    rig.service.approve(&id, &code, "root").unwrap();
    released(&boots(&restored, None));
    released(&boots(&Boot::new(), None));
    assert_eq!(rig.alarms().len(), 1);
}

#[test]
fn after_a_power_cut_a_home_server_boots_once_nobody_answers() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    drop(life_stream(&rig, &machine));
    let boot = Boot::new();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(2 * INTERVAL - Duration::from_millis(1));
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(Duration::from_millis(1));
    released(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    assert!(rig.alarms().is_empty(), "{:?}", rig.alarms());
    // From elsewhere, or without its ticket, a person is asked.
    for (from, ticket) in [(AWAY, Some(ticket)), (HOME, None)] {
        let boot = Boot::new();
        waits(&rig.boots(&machine, from, &boot, volume, ticket));
        rig.pass(2 * INTERVAL);
        pending(&rig.boots(&machine, from, &boot, volume, ticket));
    }
}

#[test]
fn a_copy_is_refused_while_the_original_lives_and_the_alarm_is_there_at_once() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let mut stream = life_stream(&rig, &machine);
    let copy = Boot::new();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    let challenge = stream.challenges.try_recv().unwrap();
    assert!(answers(&rig, &machine, Bytes([0; 32])).is_err());
    answers(&rig, &machine, challenge).unwrap();
    assert!(rig.alarms()[0].contains("running machine answered"));
    for _ in 0..3 {
        let verdict = rig.boots(&machine, HOME, &copy, volume, Some(ticket));
        assert!(denied(&verdict).contains("this is a copy"));
        rig.pass(INTERVAL);
    }
    // An answer counts once, and for the session that it was asked for.
    assert!(answers(&rig, &machine, challenge).is_err());
    waits(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
}

#[test]
fn a_copy_that_asks_without_end_does_not_silence_the_original() {
    let mut rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    rig.service = service(Box::new(rig.store.clone()), &rig.clock).with_entries_per_hour(8);
    let mut stream = life_stream(&rig, &machine);
    let copy = Boot::new();
    let identity = rig.identity(&machine.boot);
    let mut request = copy.release(&[volume]);
    request.tickets = vec![VolumeTicket { volume, ticket }];
    let asked = (0..20)
        .take_while(|_| {
            rig.service
                .release(&identity, address(HOME), &request)
                .is_ok()
        })
        .count();
    assert_eq!(asked, 8);
    let challenge = stream.challenges.try_recv().unwrap();
    answers(&rig, &machine, challenge).unwrap();
    rig.pass(HOUR);
    // Whether it is still remembered or asked about anew: nothing is released.
    let verdict = rig.boots(&machine, HOME, &copy, volume, Some(ticket));
    assert!(!matches!(verdict, Verdict::Released { .. }), "{verdict:?}");
}

#[test]
fn an_original_that_comes_back_stops_a_copy_that_a_person_was_asked_for() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "paranoid");
    let copy = Boot::new();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    rig.pass(2 * INTERVAL);
    let (id, code) = pending(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    let mut stream = life_stream(&rig, &machine);
    // It is asked as soon as the copy asks again, and meanwhile nothing is released.
    rig.service.approve(&id, &code, "alice").unwrap();
    rig.service.approve(&id, &code, "bob").unwrap();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    let challenge = stream.challenges.try_recv().unwrap();
    answers(&rig, &machine, challenge).unwrap();
    let verdict = rig.boots(&machine, HOME, &copy, volume, Some(ticket));
    assert!(denied(&verdict).contains("this is a copy"));
}

#[test]
fn a_machine_that_comes_up_is_not_taken_for_a_copy_of_itself() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let boot = Boot::new();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(2 * INTERVAL);
    released(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    let mut stream = life_stream(&rig, &machine);
    assert!(stream.challenges.try_recv().is_err());
    rig.heartbeat(&machine, None, Some(boot.request));
    rig.move_ticket(&machine, volume);
    assert!(rig.alarms().is_empty());
}

#[test]
fn a_newer_stream_takes_the_place_of_an_older_one() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let mut old = life_stream(&rig, &machine);
    let mut new = life_stream(&rig, &machine);
    assert!(old.challenges.try_recv().is_err() && old.challenges.is_closed());
    // The end of the old one is not the end of the new one.
    rig.service.close_life(&old);
    waits(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
    assert!(new.challenges.try_recv().is_ok());
}

#[test]
fn setting_the_clock_makes_nobody_seem_silent() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let _stream = life_stream(&rig, &machine);
    let copy = Boot::new();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    rig.clock.0.fetch_add(3_600_000, Ordering::SeqCst);
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
}

#[test]
fn a_restart_begins_the_wait_anew() {
    let mut rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "home-server");
    let boot = Boot::new();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(2 * INTERVAL);
    rig.restart();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    for _ in 1..life::GRACE_BEATS {
        rig.pass(INTERVAL);
        waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    }
    rig.pass(INTERVAL);
    released(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
}

#[test]
fn an_old_copy_asks_with_an_alarm_and_a_person_may_let_it_in() {
    let rig = Rig::new();
    let (machine, volume, old) = under(&rig, "home-server");
    let new = rig.move_ticket(&machine, volume);
    assert_ne!(old, new);
    let copy = Boot::new();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(old)));
    assert!(
        rig.alarms()[0].contains("earlier time"),
        "{:?}",
        rig.alarms()
    );
    rig.pass(2 * INTERVAL);
    let (id, code) = pending(&rig.boots(&machine, HOME, &copy, volume, Some(old)));
    rig.service.approve(&id, &code, "root").unwrap();
    released(&rig.boots(&machine, HOME, &copy, volume, Some(old)));
}

#[test]
fn an_announced_reboot_goes_through_at_once_and_once() {
    let mut rig = Rig::new();
    let (machine, volume, _) = under(&rig, "fleet");
    let before = Boot::new();
    rig.heartbeat(&machine, None, Some(before.request));
    let ticket = rig.next_ticket(&machine, volume);
    let answer = rig.confirm(&machine, volume, ticket, Some(900)).unwrap();
    let until = rig.clock.now().plus(15 * MINUTE).0 / 1000;
    assert_eq!(answer.armed_until, Some(until));
    rig.restart();
    let boot = Boot::new();
    waits(&rig.boots(&machine, AWAY, &boot, volume, Some(ticket)));
    rig.pass(GRACE);
    released(&rig.boots(&machine, AWAY, &boot, volume, Some(ticket)));
    // An answer that was lost is fetched again; nobody else fetches anything.
    released(&rig.boots(&machine, AWAY, &boot, volume, Some(ticket)));
    let stolen = Boot {
        request: boot.request,
        pair: BootKeyPair::generate().unwrap(),
    };
    for other in [&Boot::new(), &stolen] {
        waits(&rig.boots(&machine, AWAY, other, volume, Some(ticket)));
        rig.pass(2 * INTERVAL);
        pending(&rig.boots(&machine, AWAY, other, volume, Some(ticket)));
    }
    rig.heartbeat(&machine, None, Some(boot.request));
    let late = Boot::new();
    waits(&rig.boots(&machine, AWAY, &late, volume, Some(ticket)));
}

#[test]
fn a_copy_without_the_ticket_of_the_announcement_does_not_use_it_up() {
    let rig = Rig::new();
    let (machine, volume, old) = under(&rig, "fleet");
    let ticket = rig.next_ticket(&machine, volume);
    rig.confirm(&machine, volume, ticket, Some(900)).unwrap();
    for shown in [Some(old), None] {
        waits(&rig.boots(&machine, HOME, &Boot::new(), volume, shown));
    }
    released(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
}

#[test]
fn an_announced_boot_waits_while_the_machine_keeps_its_connection() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "fleet");
    let mut stream = life_stream(&rig, &machine);
    rig.confirm(&machine, volume, ticket, Some(900)).unwrap();
    let copy = Boot::new();
    waits(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    let challenge = stream.challenges.try_recv().unwrap();
    answers(&rig, &machine, challenge).unwrap();
    denied(&rig.boots(&machine, HOME, &copy, volume, Some(ticket)));
    // It goes down, and its own boot is the announced one.
    rig.service.close_life(&stream);
    let boot = Boot::new();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(2 * INTERVAL);
    released(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
}

#[test]
fn an_administrator_announces_a_boot_too() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "fleet");
    for bad in [Duration::from_secs(59), Duration::from_secs(86_401)] {
        let refused = rig.service.arm(&machine.name, bad, "root");
        assert!(matches!(refused, Err(AdminError::ArmedLifetime)));
    }
    let until = rig.service.arm(&machine.name, 15 * MINUTE, "root").unwrap();
    assert_eq!(until, rig.clock.now().plus(15 * MINUTE));
    released(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
    let armed = rig
        .audit()
        .into_iter()
        .find(|entry| entry.event.kind == Kind::Armed);
    assert_eq!(armed.unwrap().event.who.as_deref(), Some("root"));
}

#[test]
fn an_announcement_before_the_first_heartbeat_of_a_boot_is_for_the_boot_after_it() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "fleet");
    rig.heartbeat(&machine, None, Some(Boot::new().request));
    rig.service.arm(&machine.name, 15 * MINUTE, "root").unwrap();
    let up = Boot::new();
    released(&rig.boots(&machine, HOME, &up, volume, Some(ticket)));
    // It is up, and nobody has heard of it yet. Who announces now, the administrator or the machine, means the next boot.
    rig.service.arm(&machine.name, 15 * MINUTE, "root").unwrap();
    for _ in 0..2 {
        rig.heartbeat(&machine, None, Some(up.request));
    }
    let next = Boot::new();
    released(&rig.boots(&machine, HOME, &next, volume, Some(ticket)));
    rig.confirm(&machine, volume, ticket, Some(900)).unwrap();
    rig.heartbeat(&machine, None, Some(next.request));
    released(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
}

#[test]
fn a_boot_without_its_announcement_ends_it_and_the_audit_says_so() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "fleet");
    rig.heartbeat(&machine, None, Some(Boot::new().request));
    rig.service.arm(&machine.name, 15 * MINUTE, "root").unwrap();
    // A passphrase was typed: nothing was released to this one.
    rig.heartbeat(&machine, None, Some(Boot::new().request));
    let ended = rig.audit().into_iter().next_back().unwrap().event;
    assert!(ended.text.contains("without its announced reboot"));
    let boot = Boot::new();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(2 * INTERVAL);
    pending(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
}

#[test]
fn an_announced_boot_uses_its_announcement_up_whatever_let_it_through() {
    for policy in [r#"{"rule":"allow"}"#, r#"{"rule":"ask"}"#] {
        let rig = Rig::new();
        let (machine, volume, ticket) = under(&rig, "fleet");
        rig.set_policy(volume, policy);
        rig.heartbeat(&machine, None, Some(Boot::new().request));
        rig.service.arm(&machine.name, 15 * MINUTE, "root").unwrap();
        let boot = Boot::new();
        let mut verdict = rig.boots(&machine, HOME, &boot, volume, Some(ticket));
        if let Verdict::Pending { id, code, .. } = &verdict {
            rig.service
                .approve(id.as_str(), code.as_str(), "root")
                .unwrap();
            verdict = rig.boots(&machine, HOME, &boot, volume, Some(ticket));
        }
        released(&verdict);
        let entry = rig.audit().into_iter().next_back().unwrap().event;
        assert!(entry.text.contains(" as announced and "), "{}", entry.text);
        // A copy has nothing left to come up by.
        rig.set_policy(volume, r#"{"rule":"allow","armed":true}"#);
        pending(&rig.boots(&machine, AWAY, &Boot::new(), volume, Some(ticket)));
        rig.heartbeat(&machine, None, Some(boot.request));
        let without = |entry: &AuditEntry| entry.event.text.contains("came up without");
        assert!(!rig.audit().iter().any(without), "{policy}");
    }
}

#[test]
fn an_announcement_ends_with_its_time() {
    let rig = Rig::new();
    let (machine, volume, ticket) = under(&rig, "fleet");
    rig.confirm(&machine, volume, ticket, Some(60)).unwrap();
    rig.pass(MINUTE);
    let boot = Boot::new();
    waits(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    rig.pass(2 * INTERVAL);
    pending(&rig.boots(&machine, HOME, &boot, volume, Some(ticket)));
    for bad in [0, 59, 86_401] {
        let refused = rig.confirm(&machine, volume, ticket, Some(bad));
        assert!(matches!(refused, Err(ServiceError::Invalid(_))), "{bad}");
    }
}

#[test]
fn a_one_time_release_is_for_one_boot_until_the_policy_is_set_again() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let once = r#"{"rule":"allow","once":true}"#;
    rig.set_policy(volume, once);
    let first = Boot::new();
    released(&rig.verdict(&machine, HOME, &first, volume));
    rig.restart();
    released(&rig.verdict(&machine, HOME, &first, volume));
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert!(denied(&verdict).contains("allowed one boot"));
    rig.pass(10 * MINUTE);
    denied(&rig.verdict(&machine, HOME, &first, volume));
    rig.set_policy(volume, once);
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}

#[test]
fn a_one_time_policy_that_comes_back_into_force_is_still_used_up() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let once: Policy = serde_json::from_str(r#"{"rule":"allow","once":true}"#).unwrap();
    let client = listing::PolicyTarget::Client(machine.name.clone());
    let own = listing::PolicyTarget::Volume(volume);
    for target in [&client, &own] {
        rig.pass(MINUTE);
        let set = rig.service.set_policy_of(target, Some(&once), "root");
        set.unwrap();
        if *target == client {
            rig.service.set_policy_of(&own, None, "root").unwrap();
        }
        released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    }
    rig.service.set_policy_of(&own, None, "root").unwrap();
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert!(denied(&verdict).contains("allowed one boot"));
}

#[test]
fn what_a_clock_that_ran_ahead_stamped_counts_for_its_time_and_no_longer() {
    const YEAR: i64 = 365 * 86_400;
    let rig = Rig::new();
    rig.pass(Duration::from_secs(600));
    let (machine, volume, _) = rig.bound("web-1", 1);
    let client = listing::PolicyTarget::Client(machine.name.clone());
    let own = listing::PolicyTarget::Volume(volume);
    let set = |target: &listing::PolicyTarget, json: &str| {
        let policy: Policy = serde_json::from_str(json).unwrap();
        let set = rig.service.set_policy_of(target, Some(&policy), "root");
        set.unwrap();
    };
    let boots = || rig.verdict(&machine, HOME, &Boot::new(), volume);
    let once = r#"{"rule":"allow","once":true}"#;
    rig.set_clock(YEAR);
    for target in [&client, &own] {
        set(target, once);
        if *target == client {
            rig.service.set_policy_of(&own, None, "root").unwrap();
        }
        released(&boots());
    }
    rig.set_clock(-YEAR);
    denied(&boots());
    for target in [&own, &client] {
        set(target, once);
        if *target == client {
            rig.service.set_policy_of(&own, None, "root").unwrap();
        }
        released(&boots());
        denied(&boots());
    }

    let hourly = r#"{"rule":"allow","per-hour":1}"#;
    rig.set_clock(YEAR);
    set(&own, hourly);
    released(&boots());
    rig.set_clock(-YEAR);
    // Nothing is won by the clock: it counts for an hour of the right time.
    pending(&boots());
    rig.pass(59 * MINUTE);
    pending(&boots());
    rig.pass(MINUTE);
    released(&boots());
}

#[test]
fn silence_is_measured_in_the_time_that_the_server_ran() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(volume, r#"{"rule":"allow","silent-after":"30m"}"#);
    pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    rig.heartbeat(&machine, None, None);
    rig.pass(20 * MINUTE);
    rig.service.maintain().unwrap();
    // Two days of which the server sees nothing.
    rig.clock.0.fetch_add(2 * 86_400_000, Ordering::SeqCst);
    rig.restart();
    rig.pass(10 * MINUTE - Duration::from_millis(1));
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    rig.pass(Duration::from_millis(1));
    pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
}

#[test]
fn what_changed_since_the_last_boot_of_this_volume_is_asked_about() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let second = VolumeId::random().unwrap();
    rig.register(&machine, second);
    for id in [volume, second] {
        rig.set_policy(id, r#"{"rule":"allow"}"#);
    }
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    released(&rig.verdict(&machine, HOME, &Boot::new(), second));
    rig.set_policy(second, r#"{"rule":"allow","changes":["command-line"]}"#);
    let boot = Boot::new();
    let identity = rig.identity(&machine.boot);
    let ask = |id| {
        let mut request = boot.release(&[id]);
        request.facts.command_line = Bytes([9; 32]);
        let answer = rig.service.release(&identity, address(HOME), &request);
        answer.unwrap().verdicts.remove(0).verdict
    };
    // What one volume is released with is nothing to another one.
    released(&ask(volume));
    pending(&ask(second));
}
