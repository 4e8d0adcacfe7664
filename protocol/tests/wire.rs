//! The JSON bodies are read strictly: no unknown field, none twice, none missing, no other version, limits kept.
#![allow(clippy::unwrap_used)] // the helpers of tests as well

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::envelope::Token;
use latchkey_protocol::wire::{
    BODY_LIMIT, BootReport, ConfirmAnswer, ConfirmRequest, Done, ErrorAnswer, HeartbeatAnswer,
    HeartbeatRequest, IMAGES_LIMIT, JoinAnswer, JoinRequest, LifeAnswer, LifeLine, RejoinAnswer,
    RejoinRequest, ReleaseAnswer, ReleaseRequest, RenewAnswer, RenewRequest, RotationEnd,
    RotationRequest, SignedHead, StatusAnswer, TEXT_LIMIT, Text, TicketsAnswer, TicketsRequest,
    VOLUMES_LIMIT, VolumeAnswer, VolumeRequest,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A body: its name, whether a text is one, and an example with every field.
type Body = (&'static str, fn(&str) -> bool, Value);

fn bodies() -> Vec<Body> {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let sealed = format!("{}=", "A".repeat(107));
    let volume = "0b5c2a58-8f5b-4f0e-9d7c-3a51d2f0c9aa";
    let request = "000102030405060708090a0b0c0d0e0f";
    let head = json!({"epoch": "AAECAwQFBgcICQoLDA0ODw==", "sequence": 7, "hash": key,
        "signature": format!("{}==", "A".repeat(86))});
    vec![
        (
            "join request",
            reads::<JoinRequest>,
            json!({"version": 1, "secret": key, "boot_csr": "PEM", "host_csr": "PEM"}),
        ),
        (
            "join answer",
            reads::<JoinAnswer>,
            json!({"version": 1, "boot_certificate": "PEM", "host_certificate": "PEM"}),
        ),
        (
            "rejoin request",
            reads::<RejoinRequest>,
            json!({"version": 1, "volumes": [volume], "tickets": [{"volume": volume, "ticket": key}],
                "boot_csr": "PEM", "host_csr": "PEM"}),
        ),
        (
            "rejoin answer",
            reads::<RejoinAnswer>,
            json!({"version": 1, "outcome": {"joined": {"client": "web-1", "boot_certificate": "PEM",
                "host_certificate": "PEM"}}}),
        ),
        (
            "rejoin answer, pending",
            reads::<RejoinAnswer>,
            json!({"version": 1, "outcome": {"pending": {"id": "7KQ2M", "code": "4DX-9WB", "retry_after": 5}}}),
        ),
        (
            "volume request",
            reads::<VolumeRequest>,
            json!({"version": 1, "request": request, "ephemeral_key": key, "volume": volume, "label": "root", "opened_by": "host-key"}),
        ),
        (
            "volume answer",
            reads::<VolumeAnswer>,
            json!({"version": 1, "generation": 1, "sealed": sealed, "policy": "allow"}),
        ),
        ("done", reads::<Done>, json!({"version": 1})),
        (
            "release request",
            reads::<ReleaseRequest>,
            json!({"version": 1, "request": request, "ephemeral_key": key,
                "volumes": [{"volume": volume, "generation": 1}],
                "facts": {"kernel": "6.1", "command_line": key, "image_built": 1, "image": key, "header": key},
                "tickets": [{"volume": volume, "ticket": key}]}),
        ),
        (
            "release answer",
            reads::<ReleaseAnswer>,
            json!({"version": 1, "verdicts": [
                {"volume": volume, "verdict": {"released": {"generation": 1, "sealed": sealed}}},
                {"volume": volume, "verdict": {"pending": {"id": "7", "code": "ABCD", "retry_after": 5}}},
                {"volume": volume, "verdict": {"denied": {"reason": "revoked", "retry_after": 300}}},
                {"volume": volume, "verdict": {"wait": {"reason": "to hear", "retry_after": 5}}},
                {"volume": volume, "verdict": "destroyed"},
            ]}),
        ),
        (
            "report",
            reads::<BootReport>,
            json!({"version": 1, "request": request, "lines": ["opened 'root'"]}),
        ),
        (
            "status",
            reads::<StatusAnswer>,
            json!({"version": 1, "volumes": [
                {"volume": volume, "generation": 1, "policy": "allow", "destroyed": false}]}),
        ),
        (
            "tickets request",
            reads::<TicketsRequest>,
            json!({"version": 1, "volumes": [{"volume": volume, "shown": key}]}),
        ),
        (
            "tickets answer",
            reads::<TicketsAnswer>,
            json!({"version": 1, "tickets": [{"volume": volume, "ticket": key}]}),
        ),
        (
            "confirm request",
            reads::<ConfirmRequest>,
            json!({"version": 1, "tickets": [{"volume": volume, "ticket": key}], "arm": {"seconds": 900}}),
        ),
        (
            "confirm answer",
            reads::<ConfirmAnswer>,
            json!({"version": 1, "armed_until": 1}),
        ),
        (
            "heartbeat request",
            reads::<HeartbeatRequest>,
            json!({"version": 1, "head": head, "images": [key], "boot": request}),
        ),
        (
            "heartbeat answer",
            reads::<HeartbeatAnswer>,
            json!({"version": 1, "head": head, "head_key": key, "heartbeat_every": 300, "life_every": 10,
                "renew": false}),
        ),
        (
            "life answer",
            reads::<LifeAnswer>,
            json!({"version": 1, "challenge": key}),
        ),
        (
            "renew request",
            reads::<RenewRequest>,
            json!({"version": 1, "host_csr": "PEM"}),
        ),
        (
            "renew answer",
            reads::<RenewAnswer>,
            json!({"version": 1, "host_certificate": "PEM"}),
        ),
        (
            "rotation request",
            reads::<RotationRequest>,
            json!({"version": 1, "request": "0123456789abcdef0123456789abcdef", "ephemeral_key": key,
                "volume": volume}),
        ),
        (
            "rotation end",
            reads::<RotationEnd>,
            json!({"version": 1, "volume": volume, "keep": 2}),
        ),
        (
            "error",
            reads::<ErrorAnswer>,
            json!({"version": 1, "error": "refused"}),
        ),
        (
            "token",
            |text| Token::parse(text.as_bytes()).is_ok(),
            json!({"type": "latchkey", "keyslots": ["1"], "version": 1, "volume": volume, "uuid": "u",
                "bound": {"luks2": {"keyslot": 1, "iterations": 1000, "cipher": "aes-xts-plain64",
                    "key-size": 64, "sector-size": 512, "offset": 16777216, "volume-key-id": key}},
                "envelopes": [{"server": "ab".repeat(32), "generation": 1, "salt": key,
                    "nonce": "A".repeat(32), "commitment": key, "sealed": "A".repeat(64)}]}),
        ),
    ]
}

#[test]
fn the_examples_are_read() {
    for (name, reads, example) in bodies() {
        assert!(reads(&example.to_string()), "{name}: {example}");
    }
}

#[test]
fn unknown_fields_are_refused_at_every_depth() {
    for (name, reads, example) in bodies() {
        let changed = spellings(&example, &|fields| {
            let mut more = fields.to_vec();
            more.push(r#""unexpected":1"#.to_owned());
            vec![more]
        });
        assert!(!changed.is_empty(), "{name}");
        for text in changed {
            assert!(!reads(&text), "{name}: {text}");
        }
    }
}

#[test]
fn duplicate_fields_are_refused_at_every_depth() {
    for (name, reads, example) in bodies() {
        let changed = spellings(&example, &|fields| {
            let twice = |field: &String| [fields, std::slice::from_ref(field)].concat();
            fields.iter().map(twice).collect()
        });
        assert!(!changed.is_empty(), "{name}");
        for text in changed {
            assert!(!reads(&text), "{name}: {text}");
        }
    }
}

#[test]
fn missing_fields_are_refused_at_every_depth() {
    for (name, reads, example) in bodies() {
        let changed = spellings(&example, &|fields| {
            let without = |at: usize| [&fields[..at], &fields[at + 1..]].concat();
            (0..fields.len()).map(without).collect()
        });
        for text in changed {
            assert_eq!(
                reads(&text),
                lacks_only_optional(name, &example, &text),
                "{name}: {text}"
            );
        }
    }
}

/// Whether what is missing in `text` of the example may be missing: what a version 1 before it did not have, and what not
/// every machine has.
fn lacks_only_optional(name: &str, example: &Value, text: &str) -> bool {
    let optional: &[(&str, &str)] = match name {
        "report" => &[("", "request")],
        "volume request" => &[("", "opened_by")],
        "release request" => &[("/facts", "image"), ("/facts", "header"), ("", "tickets")],
        "rejoin request" => &[("", "tickets")],
        "tickets request" => &[("/volumes/0", "shown")],
        "confirm request" => &[("", "arm")],
        "confirm answer" => &[("", "armed_until")],
        "heartbeat request" => &[("", "head"), ("", "images"), ("", "boot")],
        "heartbeat answer" => &[("", "head")],
        _ => &[],
    };
    let value: Value = serde_json::from_str(text).unwrap();
    optional.iter().any(|(place, field)| {
        let mut without = example.clone();
        let object = without.pointer_mut(place).unwrap().as_object_mut().unwrap();
        object.remove(*field);
        without == value
    })
}

#[test]
fn only_version_1_is_spoken() {
    for (name, reads, mut example) in bodies() {
        for version in [json!(0), json!(2), json!("1"), json!(1.0), json!(null)] {
            example["version"] = version;
            assert!(!reads(&example.to_string()), "{name}: {example}");
        }
    }
}

#[test]
fn a_request_names_some_volumes_each_once_and_not_too_many() {
    let volumes = |count: usize| -> Vec<Value> {
        let wanted = |number| json!({"volume": format!("00000000-0000-4000-8000-{number:012x}"), "generation": 1});
        (0..count).map(wanted).collect()
    };
    let (_, reads, mut request) = bodies()
        .into_iter()
        .find(|(name, ..)| *name == "release request")
        .unwrap();
    for (count, good) in [
        (0, false),
        (VOLUMES_LIMIT, true),
        (VOLUMES_LIMIT + 1, false),
    ] {
        request["volumes"] = json!(volumes(count));
        assert_eq!(reads(&request.to_string()), good, "{count} volumes");
    }
    request["volumes"] = json!([volumes(1), volumes(1)].concat());
    assert!(!reads(&request.to_string()), "a volume named twice");
}

#[test]
fn tickets_are_of_different_volumes_and_not_too_many() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let tickets = |count: usize| -> Vec<Value> {
        let ticket = |number| json!({"volume": format!("00000000-0000-4000-8000-{number:012x}"), "ticket": key});
        (0..count).map(ticket).collect()
    };
    let find = |wanted: &str| {
        let found = bodies().into_iter().find(|(name, ..)| *name == wanted);
        let (_, reads, example) = found.unwrap();
        (reads, example)
    };
    for name in ["release request", "tickets answer", "confirm request"] {
        let (reads, mut body) = find(name);
        for (count, good) in [(0, true), (VOLUMES_LIMIT, true), (VOLUMES_LIMIT + 1, false)] {
            body["tickets"] = json!(tickets(count));
            assert_eq!(reads(&body.to_string()), good, "{name}: {count} tickets");
        }
        body["tickets"] = json!([tickets(1), tickets(1)].concat());
        assert!(!reads(&body.to_string()), "{name}: a volume named twice");
    }
    let (reads, mut body) = find("tickets request");
    for (volumes, good) in [
        (json!([]), false),
        (
            json!([{"volume": "00000000-0000-4000-8000-000000000001"}]),
            true,
        ),
    ] {
        body["volumes"] = volumes;
        assert_eq!(reads(&body.to_string()), good, "{body}");
    }
    let (reads, mut body) = find("heartbeat request");
    for (count, good) in [(IMAGES_LIMIT, true), (IMAGES_LIMIT + 1, false)] {
        body["images"] = json!(vec![key; count]);
        assert_eq!(reads(&body.to_string()), good, "{count} images");
    }
}

#[test]
fn what_a_first_agent_says_is_what_a_new_one_says_without_tickets() {
    let (_, _, mut old) = bodies()
        .into_iter()
        .find(|(name, ..)| *name == "release request")
        .unwrap();
    let fields = old.as_object_mut().unwrap();
    fields.remove("tickets");
    let facts = fields["facts"].as_object_mut().unwrap();
    facts.remove("image");
    facts.remove("header");
    let request: ReleaseRequest = serde_json::from_value(old.clone()).unwrap();
    assert!(request.tickets.is_empty());
    assert_eq!(serde_json::to_value(&request).unwrap(), old);
}

#[test]
fn a_line_of_life_is_a_beat_or_a_challenge() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let challenge = format!(r#"{{"challenge":"{key}"}}"#);
    for (text, good) in [
        (r#"{"beat":0}"#, true),
        (r#"{"beat":18446744073709551615}"#, true),
        (&challenge, true),
        (r#"{"beat":-1}"#, false),
        (r#"{"beat":1,"beat":1}"#, false),
        (r#"{"challenge":"AAEC"}"#, false),
        (r#"{"other":1}"#, false),
        (r#""beat""#, false),
    ] {
        assert_eq!(reads::<LifeLine>(text), good, "{text}");
    }
    let line: LifeLine = serde_json::from_str(&challenge).unwrap();
    assert_eq!(serde_json::to_string(&line).unwrap(), challenge);
    assert_eq!(format!("{line:?}"), "Challenge(..)");
}

#[test]
fn the_signature_of_a_head_covers_all_of_it() {
    let server = |byte| latchkey_protocol::ServerId::from_bytes([byte; 32]);
    let bytes = |byte, epoch, sequence, hash| {
        SignedHead::signed_bytes(
            &server(byte),
            &Bytes([epoch; 16]),
            sequence,
            &Bytes([hash; 32]),
        )
    };
    let first = bytes(1, 1, 1, 1);
    for other in [
        bytes(2, 1, 1, 1),
        bytes(1, 2, 1, 1),
        bytes(1, 1, 2, 1),
        bytes(1, 1, 1, 2),
    ] {
        assert_ne!(first, other);
    }
}

#[test]
fn a_full_request_is_within_the_body_limit() {
    let wanted = |number: usize| json!({"volume": format!("00000000-0000-4000-8000-{number:012x}"), "generation": u32::MAX});
    let (_, reads, mut request) = bodies()
        .into_iter()
        .find(|(name, ..)| *name == "release request")
        .unwrap();
    request["volumes"] = json!((0..VOLUMES_LIMIT).map(wanted).collect::<Vec<_>>());
    request["facts"]["kernel"] = json!("k".repeat(TEXT_LIMIT));
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let ticket = |number: usize| json!({"volume": format!("00000000-0000-4000-8000-{number:012x}"), "ticket": key});
    request["tickets"] = json!((0..VOLUMES_LIMIT).map(ticket).collect::<Vec<_>>());
    assert!(reads(&request.to_string()));
    assert!(request.to_string().len() < BODY_LIMIT);
}

#[test]
fn texts_are_limited() {
    for (length, good) in [(TEXT_LIMIT, true), (TEXT_LIMIT + 1, false)] {
        let error = json!({"version": 1, "error": "x".repeat(length)});
        assert_eq!(reads::<ErrorAnswer>(&error.to_string()), good, "{length}");
    }
    // Cut where a character begins: the last of these would end after the limit.
    let text = Text::cut(&format!("x{}", "é".repeat(TEXT_LIMIT)));
    assert_eq!(text.as_str().len(), TEXT_LIMIT - 1);
}

#[test]
fn a_verdict_is_one_verdict() {
    let volume = "0b5c2a58-8f5b-4f0e-9d7c-3a51d2f0c9aa";
    let denied = r#""denied":{"reason":"r","retry_after":1}"#;
    let pending = r#""pending":{"id":"7","code":"c","retry_after":1}"#;
    for (verdict, good) in [
        (format!("{{{denied}}}"), true),
        (format!("{{{denied},{pending}}}"), false),
        (format!("{{{denied},{denied}}}"), false),
        ("{}".to_owned(), false),
        (r#""released""#.to_owned(), false),
        (r#""unheard-of""#.to_owned(), false),
        ("null".to_owned(), false),
    ] {
        let answer =
            format!(r#"{{"version":1,"verdicts":[{{"volume":"{volume}","verdict":{verdict}}}]}}"#);
        assert_eq!(reads::<ReleaseAnswer>(&answer), good, "{answer}");
    }
}

#[test]
fn the_secret_of_an_invitation_is_not_shown() {
    let (_, _, request) = bodies().swap_remove(0);
    let request: JoinRequest = serde_json::from_value(request).unwrap();
    assert_eq!(format!("{request:?}"), "JoinRequest");
}

fn reads<T: DeserializeOwned>(text: &str) -> bool {
    serde_json::from_str::<T>(text).is_ok()
}

/// What a list of an object's fields, each as `"name":value`, is changed to: any number of lists.
type Change<'a> = &'a dyn Fn(&[String]) -> Vec<Vec<String>>;

/// All texts in which one object of `value`, at any depth, has its fields changed by `change`.
fn spellings(value: &Value, change: Change<'_>) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let parts: Vec<String> = fields
                .iter()
                .map(|(name, value)| field(name, &value.to_string()))
                .collect();
            let mut texts: Vec<String> = change(&parts)
                .into_iter()
                .map(|parts| format!("{{{}}}", parts.join(",")))
                .collect();
            for (at, (name, value)) in fields.iter().enumerate() {
                for text in spellings(value, change) {
                    let mut parts = parts.clone();
                    parts[at] = field(name, &text);
                    texts.push(format!("{{{}}}", parts.join(",")));
                }
            }
            texts
        }
        Value::Array(items) => {
            let parts: Vec<String> = items.iter().map(Value::to_string).collect();
            let mut texts = Vec::new();
            for (at, item) in items.iter().enumerate() {
                for text in spellings(item, change) {
                    let mut parts = parts.clone();
                    parts[at] = text;
                    texts.push(format!("[{}]", parts.join(",")));
                }
            }
            texts
        }
        _ => Vec::new(),
    }
}

fn field(name: &str, value: &str) -> String {
    format!("{}:{value}", Value::from(name))
}
