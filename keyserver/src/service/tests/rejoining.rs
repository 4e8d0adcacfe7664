//! Machines that lost their keys and are taken back, or not.

use latchkey_protocol::wire::RejoinRequest;
use proptest::prelude::*;

use super::*;
use crate::records::{BEGUN_LIMIT, UsedBy};
use crate::service::rejoin::{RejoinError, Rejoining};

fn keys(number: u8) -> UsedBy {
    UsedBy {
        boot: key_number(2 * number),
        host: key_number(2 * number + 1),
    }
}

fn asks(
    rig: &Rig,
    number: u8,
    from: &str,
    volumes: &[VolumeId],
    ticket: Option<Bytes<32>>,
) -> Result<Rejoining, RejoinError> {
    let ticket = ticket.map(|ticket| VolumeTicket {
        volume: volumes[0],
        ticket,
    });
    let request = RejoinRequest {
        version: Version::default(),
        volumes: volumes.to_vec(),
        tickets: ticket.into_iter().collect(),
        boot_csr: Text::cut(""),
        host_csr: Text::cut(""),
    };
    rig.service.rejoin(keys(number), &request, address(from))
}

/// The administrator's id and the code of one that waits.
#[track_caller]
fn waiting(rejoining: Result<Rejoining, RejoinError>) -> (String, String) {
    match rejoining.unwrap() {
        Rejoining::Pending { number, code } => (number.to_string(), code.shown()),
        other => panic!("not pending: {other:?}"),
    }
}

#[track_caller]
fn stranger(rejoining: Result<Rejoining, RejoinError>) {
    assert!(
        matches!(rejoining, Err(RejoinError::Stranger(_))),
        "{rejoining:?}"
    );
}

#[test]
fn with_a_persons_word_the_new_keys_take_the_place_of_the_old_ones_in_one_step() {
    let rig = Rig::new();
    let (machine, volume, share) = rig.bound("web-1", 1);
    let ticket = rig.move_ticket(&machine, volume);
    rig.service.arm(&machine.name, HOUR, "root").unwrap();
    let (id, code) = waiting(asks(&rig, 9, AWAY, &[volume], Some(ticket)));
    assert_eq!(
        waiting(asks(&rig, 9, AWAY, &[volume], Some(ticket))),
        (id.clone(), code.clone()),
        "the same keys, the same request"
    );
    // So far nothing has changed.
    assert!(rig.service.identify(&keys(9).boot).unwrap().is_none());
    released(&rig.boots(&machine, HOME, &Boot::new(), volume, Some(ticket)));
    let listed = rig.service.rejoins().unwrap().remove(0);
    assert!(listed.ticket.contains("the last boot"), "{}", listed.ticket);
    assert_eq!(listed.old_host_key, Some(machine.host));
    // It is no boot, and is not approved as one.
    let as_boot = rig.service.approve(&id, &code, "root");
    assert!(matches!(as_boot, Err(AdminError::IsRejoin(_))));
    let as_boot = rig.service.deny(&id, AfterDeny::Nothing, "root");
    assert!(matches!(as_boot, Err(AdminError::IsRejoin(_))));
    assert!(rig.service.requests().unwrap().is_empty());

    rig.service.approve_rejoin(&id, &code, "root").unwrap();
    let joined = asks(&rig, 9, AWAY, &[volume], None).unwrap();
    assert_eq!(joined, Rejoining::Joined(machine.name.clone()));
    assert!(rig.service.rejoins().unwrap().is_empty());
    // The old keys are nobody's now.
    let verdict = rig.verdict(&machine, HOME, &Boot::new(), volume);
    assert!(denied(&verdict).contains("revoked"));
    let old = rig.identity(&machine.host);
    let proof = Boot::new().release(&[volume]);
    let refused = rig.service.proof(&old, address(HOME), &proof);
    assert!(matches!(refused, Err(ServiceError::Refused(_))));
    // Volume, share and policy are as they were; announcement and tickets are not.
    let back = Machine {
        name: machine.name.clone(),
        boot: keys(9).boot,
        host: keys(9).host,
    };
    let boot = Boot::new();
    let sealed = *released(&rig.boots(&back, HOME, &boot, volume, None));
    assert_eq!(boot.open(&back, volume, Purpose::Release, &sealed), share);
    denied(&rig.verdict(&back, AWAY, &Boot::new(), volume));
    let next = rig.move_ticket(&back, volume);
    assert_ne!(next, ticket);
    rig.boots(&back, HOME, &Boot::new(), volume, Some(ticket));
    assert!(
        rig.alarms()
            .iter()
            .any(|text| text.contains("earlier time"))
    );
    let taken = rig
        .audit()
        .into_iter()
        .find(|entry| entry.event.kind == Kind::Joined && entry.event.text.contains("taken back"));
    assert!(taken.unwrap().event.text.contains("no longer count"));
}

#[test]
fn whoever_names_no_live_volume_of_one_client_is_a_stranger() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let (_, other, _) = rig.bound("web-2", 2);
    let unknown = VolumeId::random().unwrap();
    for volumes in [&[unknown][..], &[volume, unknown], &[volume, other]] {
        stranger(asks(&rig, 9, HOME, volumes, None));
    }
    assert!(rig.service.rejoins().unwrap().is_empty());
    let entries = rig.audit().len();
    rig.service.destroy(&other, "root").unwrap();
    stranger(asks(&rig, 9, HOME, &[other], None));
    assert_eq!(rig.audit().len(), entries + 1, "a stranger writes nothing");
    // One that was locked out or revoked is not taken back, and its administrator hears that it asked.
    rig.service.lock(&machine.name, "root").unwrap();
    stranger(asks(&rig, 9, HOME, &[volume], None));
    rig.service.readmit(&machine.name, "root").unwrap();
    let (id, code) = waiting(asks(&rig, 9, HOME, &[volume], None));
    rig.service.revoke(&machine.name, "root").unwrap();
    stranger(asks(&rig, 9, HOME, &[volume], None));
    let approved = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(approved, Err(AdminError::NeverTakenBack(_))));
    assert!(rig.service.identify(&keys(9).host).unwrap().is_none());
    assert!(rig.count(Kind::Refused) >= 2);
    // Nor do its keys take the place of those of a machine that has joined since.
    rig.machine("web-1", 7);
    let approved = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(approved, Err(AdminError::NoRequest(_))));
}

#[test]
fn known_and_equal_keys_are_refused() {
    let rig = Rig::new();
    let (_, volume, _) = rig.bound("web-1", 1);
    rig.bound("web-2", 2);
    let taken = asks(&rig, 2, HOME, &[volume], None);
    assert!(matches!(taken, Err(RejoinError::KeyTaken)));
    let request = RejoinRequest {
        version: Version::default(),
        volumes: vec![volume],
        tickets: Vec::new(),
        boot_csr: Text::cut(""),
        host_csr: Text::cut(""),
    };
    let same = UsedBy {
        boot: key_number(99),
        host: key_number(99),
    };
    let refused = rig.service.rejoin(same, &request, address(HOME));
    assert!(matches!(refused, Err(RejoinError::SameKey)));
}

#[test]
fn while_the_original_is_connected_nobody_is_taken_back_in_its_place() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let host = rig.identity(&machine.host);
    let stream = rig.service.open_life(&host, address(HOME)).unwrap();
    let (id, code) = waiting(asks(&rig, 9, AWAY, &[volume], None));
    assert!(rig.alarms()[0].contains("is connected while another asks"));
    assert!(rig.service.rejoins().unwrap()[0].connected);
    let refused = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(refused, Err(AdminError::StillRuns(_))));
    // Its line was cut, and it may be about to come back.
    rig.service.close_life(&stream);
    let refused = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(
        refused,
        Err(AdminError::NotKnownYet { left: 21, .. })
    ));
    rig.pass(2 * life::BEAT);
    rig.service.approve_rejoin(&id, &code, "root").unwrap();
}

#[test]
fn a_key_server_that_has_just_begun_takes_nobody_back_whose_original_may_be_about_to_connect() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.heartbeat(&machine, None, None);
    let (id, code) = waiting(asks(&rig, 9, AWAY, &[volume], None));
    rig.restart();
    let refused = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(
        refused,
        Err(AdminError::NotKnownYet { left: 81, .. })
    ));
    rig.pass(GRACE - Duration::from_secs(1));
    let host = rig.identity(&machine.host);
    let stream = rig.service.open_life(&host, address(HOME)).unwrap();
    let refused = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(refused, Err(AdminError::StillRuns(_))));
    drop(stream);
    rig.restart();
    rig.pass(GRACE);
    rig.service.approve_rejoin(&id, &code, "root").unwrap();
    // Nobody runs who was never heard of.
    let (_, other, _) = rig.bound("web-2", 2);
    let (id, code) = waiting(asks(&rig, 10, AWAY, &[other], None));
    rig.restart();
    rig.service.approve_rejoin(&id, &code, "root").unwrap();
}

#[test]
fn one_waits_for_each_client_and_few_may_begin_in_an_hour() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let ticket = rig.move_ticket(&machine, volume);
    rig.move_ticket(&machine, volume);
    let (mut id, _) = waiting(asks(&rig, 9, HOME, &[volume], Some(ticket)));
    assert!(rig.alarms()[0].contains("a ticket of an earlier time"));
    let second = asks(&rig, 10, AWAY, &[volume], None);
    assert!(matches!(second, Err(RejoinError::Rival)));
    let listed = rig.service.rejoins().unwrap().remove(0);
    assert_eq!(listed.rival, Some(address(AWAY)));
    assert!(listed.ticket.contains("EARLIER"));
    for number in 10..9 + u8::try_from(BEGUN_LIMIT).unwrap() {
        let denied = rig.service.deny_rejoin(&id, AfterDeny::Nothing, "root");
        denied.unwrap();
        let told = asks(&rig, number - 1, HOME, &[volume], None).unwrap();
        assert!(matches!(told, Rejoining::Denied(_)), "{told:?}");
        id = waiting(asks(&rig, number, HOME, &[volume], None)).0;
        rig.restart();
    }
    rig.service
        .deny_rejoin(&id, AfterDeny::Nothing, "root")
        .unwrap();
    are_too_many(&rig, volume);
    rig.pass(HOUR);
    rig.service.maintain().unwrap();
    waiting(asks(&rig, 40, HOME, &[volume], None));
}

/// Begins as many requests as there may be in an hour.
fn use_up(rig: &Rig, volume: VolumeId) {
    for number in 10..10 + u8::try_from(BEGUN_LIMIT).unwrap() {
        let (id, _) = waiting(asks(rig, number, HOME, &[volume], None));
        let denied = rig.service.deny_rejoin(&id, AfterDeny::Nothing, "root");
        denied.unwrap();
    }
}

#[track_caller]
fn are_too_many(rig: &Rig, volume: VolumeId) {
    let many = asks(rig, 40, HOME, &[volume], None);
    assert!(matches!(many, Err(RejoinError::TooMany { .. })), "{many:?}");
}

#[test]
fn requests_that_a_clock_which_ran_ahead_stamped_count_for_an_hour() {
    const YEAR: i64 = 365 * 86_400;
    let rig = Rig::new();
    let (_, volume, _) = rig.bound("web-1", 1);
    rig.pass(HOUR);
    rig.set_clock(YEAR);
    use_up(&rig, volume);
    rig.set_clock(-YEAR);
    rig.service.maintain().unwrap();
    are_too_many(&rig, volume);
    rig.pass(HOUR);
    waiting(asks(&rig, 40, HOME, &[volume], None));
}

#[test]
fn a_server_that_starts_in_the_past_forgets_no_request() {
    const YEAR: i64 = 365 * 86_400;
    let rig = Rig::new();
    let (_, volume, _) = rig.bound("web-1", 1);
    use_up(&rig, volume);
    rig.set_clock(-YEAR);
    rig.service.maintain().unwrap();
    rig.set_clock(YEAR);
    are_too_many(&rig, volume);
}

#[test]
fn a_request_ends_by_wrong_codes_and_by_its_time() {
    let rig = Rig::new();
    let (_, volume, _) = rig.bound("web-1", 1);
    let (id, _) = waiting(asks(&rig, 9, HOME, &[volume], None));
    for left in (0..approval::ATTEMPTS).rev() {
        match rig.service.approve_rejoin(&id, "AAA-AAA", "root") {
            Err(AdminError::WrongCode { left: told }) => assert_eq!(told, left),
            other => panic!("{other:?}"),
        }
    }
    let again = rig.service.approve_rejoin(&id, "AAA-AAA", "root");
    assert!(matches!(again, Err(AdminError::Decided { .. })));
    assert!(matches!(
        asks(&rig, 9, HOME, &[volume], None),
        Ok(Rejoining::Denied(_))
    ));
    let (id, code) = waiting(asks(&rig, 10, HOME, &[volume], None));
    rig.pass(waiting::WAITING);
    let late = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(late, Err(AdminError::NoRequest(_))));
    assert!(rig.service.rejoins().unwrap().is_empty());
}

#[test]
fn it_takes_every_person_that_any_volume_of_the_client_wants() {
    let rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    let other = VolumeId::random().unwrap();
    rig.register(&machine, other);
    rig.set_policy(
        other,
        r#"{"rule":"ask","approval":{"count":2,"by":["alice","bob"]}}"#,
    );
    // It names only the one that wants nobody in particular.
    let (id, code) = waiting(asks(&rig, 9, HOME, &[volume], None));
    let approve = |who: &str| rig.service.approve_rejoin(&id, &code, who);
    approve("root").unwrap();
    approve("alice").unwrap();
    assert!(rig.service.identify(&keys(9).host).unwrap().is_none());
    assert!(matches!(
        approve("alice"),
        Err(AdminError::ApprovedAlready(_))
    ));
    approve("bob").unwrap();
    assert!(rig.service.identify(&keys(9).host).unwrap().is_some());
}

#[test]
fn in_a_store_that_was_put_back_nobody_is_taken_back() {
    let mut rig = Rig::new();
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.heartbeat(&machine, None, None);
    let yesterday = rig.store.copy();
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let newer = rig.heartbeat(&machine, None, None).head;
    rig.store = yesterday;
    rig.restart();
    let (id, code) = waiting(asks(&rig, 9, HOME, &[volume], None));
    rig.heartbeat(&machine, newer, None);
    let refused = rig.service.approve_rejoin(&id, &code, "root");
    assert!(matches!(refused, Err(AdminError::NeverTakenBack(_))));
    stranger(asks(&rig, 9, HOME, &[volume], None));
}

#[derive(Debug, Clone)]
enum Step {
    /// Which machine asks, from where.
    Ask(u8, bool),
    /// A person types the code of a machine's screen for that machine's request, or for another one's.
    Approve(u8, u8),
    Deny(u8),
    Boot(u8),
    Prove(u8),
    OpenStream(u8),
    CloseStream,
    Lock,
    Readmit,
    Pass(u64),
    SetClock(i64),
    Restart,
    Maintain,
}

/// The machine that joined, and those that ask to be taken back.
const MACHINES: u8 = 4;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let machine = 0..MACHINES;
    let step = prop_oneof![
        8 => (1..MACHINES, any::<bool>()).prop_map(|(machine, away)| Step::Ask(machine, away)),
        6 => (1..MACHINES, 1..MACHINES, prop::bool::weighted(0.7))
            .prop_map(|(of, for_, same)| Step::Approve(of, if same { of } else { for_ })),
        1 => (1..MACHINES).prop_map(Step::Deny),
        4 => machine.clone().prop_map(Step::Boot),
        4 => machine.clone().prop_map(Step::Prove),
        1 => machine.prop_map(Step::OpenStream),
        2 => Just(Step::CloseStream),
        1 => Just(Step::Lock),
        2 => Just(Step::Readmit),
        3 => prop_oneof![Just(1u64), Just(601), Just(3600)].prop_map(Step::Pass),
        1 => prop_oneof![Just(-86_400i64), Just(-301), Just(301), Just(86_400)].prop_map(Step::SetClock),
        1 => Just(Step::Restart),
        1 => Just(Step::Maintain),
    ];
    prop::collection::vec(step, 1..50)
}

struct Model {
    rig: Rig,
    name: ClientName,
    volume: VolumeId,
    /// What each machine's screen shows.
    screens: std::collections::BTreeMap<u8, (String, String)>,
    /// Whose keys count, by what the person approved.
    current: u8,
    stream: Option<(u8, life::LifeStream)>,
    replaced: usize,
}

impl Model {
    fn new() -> Self {
        let rig = Rig::new();
        let (machine, volume, _) = rig.bound("web-1", 20);
        Self {
            rig,
            name: machine.name,
            volume,
            screens: std::collections::BTreeMap::new(),
            current: 0,
            stream: None,
            replaced: 0,
        }
    }

    fn keys(machine: u8) -> UsedBy {
        keys(20 + machine)
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Ask(machine, away) => {
                let from = if *away { AWAY } else { HOME };
                match asks(&self.rig, 20 + machine, from, &[self.volume], None) {
                    Ok(Rejoining::Pending { number, code }) => {
                        let shown = (number.to_string(), code.shown());
                        self.screens.insert(*machine, shown);
                    }
                    Ok(Rejoining::Joined(_)) => assert_eq!(self.current, *machine),
                    _ => {}
                }
            }
            Step::Approve(of, code_of) => {
                let (Some((id, _)), Some((_, code))) =
                    (self.screens.get(of), self.screens.get(code_of))
                else {
                    return;
                };
                if self.rig.service.approve_rejoin(id, code, "root").is_ok() {
                    assert_eq!(of, code_of, "approved by another screen's code");
                    assert!(self.stream.is_none(), "the original was connected");
                    self.current = *of;
                    self.replaced += 1;
                }
            }
            Step::Deny(machine) => {
                if let Some((id, _)) = self.screens.get(machine) {
                    drop(self.rig.service.deny_rejoin(id, AfterDeny::Nothing, "root"));
                }
            }
            Step::Boot(machine) => {
                let Some(identity) = self.known(Self::keys(*machine).boot) else {
                    return;
                };
                let request = Boot::new().release(&[self.volume]);
                let answer = self.rig.service.release(&identity, address(HOME), &request);
                let verdict = answer.unwrap().verdicts.remove(0).verdict;
                if matches!(verdict, Verdict::Released { .. }) {
                    assert_eq!(*machine, self.current, "released to keys that do not count");
                }
            }
            Step::Prove(machine) => {
                let Some(identity) = self.known(Self::keys(*machine).host) else {
                    return;
                };
                let request = Boot::new().release(&[self.volume]);
                let answer = self.rig.service.proof(&identity, address(AWAY), &request);
                assert_eq!(answer.is_ok(), *machine == self.current);
            }
            Step::OpenStream(machine) => {
                let Some(identity) = self.known(Self::keys(*machine).host) else {
                    return;
                };
                if let Ok(stream) = self.rig.service.open_life(&identity, address(HOME)) {
                    assert_eq!(*machine, self.current);
                    self.stream = Some((*machine, stream));
                }
            }
            Step::CloseStream => {
                if let Some((_, stream)) = self.stream.take() {
                    self.rig.service.close_life(&stream);
                }
            }
            Step::Lock => drop(self.rig.service.lock(&self.name, "root")),
            Step::Readmit => drop(self.rig.service.readmit(&self.name, "root")),
            Step::Pass(seconds) => self.rig.pass(Duration::from_secs(*seconds)),
            Step::SetClock(seconds) => self.rig.set_clock(*seconds),
            Step::Restart => {
                self.rig.restart();
                self.stream = None;
            }
            Step::Maintain => self.rig.service.maintain().unwrap(),
        }
    }

    fn known(&self, spki: SpkiHash) -> Option<Identity> {
        self.rig.service.identify(&spki).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_order_of_events_lets_keys_count_that_no_person_approved(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.run(step);
            for machine in 1..MACHINES {
                let known = model.known(Model::keys(machine).host).is_some();
                prop_assert!(!known || model.replaced > 0);
            }
        }
        model.rig.service.verify_audit().unwrap();
    }
}

/// The property above would hold of a server that takes nobody back.
#[test]
fn the_model_sees_machines_taken_back() {
    let mut model = Model::new();
    for step in [
        Step::Boot(0),
        Step::Prove(0),
        Step::Ask(1, false),
        Step::Approve(1, 1),
        Step::Ask(1, true),
        Step::Boot(0),
        Step::Boot(1),
        Step::Prove(0),
        Step::Prove(1),
        Step::Ask(2, true),
        Step::Approve(2, 1),
        Step::Approve(2, 2),
        Step::Prove(1),
        Step::Prove(2),
    ] {
        model.run(&step);
    }
    assert_eq!((model.replaced, model.current), (2, 2));
}
