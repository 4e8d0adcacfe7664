//! Which keyslots of a LUKS2 header a passphrase is tried on.

use latchkey_protocol::envelope::TOKEN_TYPE;
use serde_json::Value;

/// Whether a keyslot that is asked for by its number may be tried: whatever its priority, but never one of latchkey.
pub(super) fn is_asked_for(json: &Value, slot: u32) -> bool {
    let keyslot = &json["keyslots"][slot.to_string()];
    let is_ignored = keyslot["priority"].as_u64() == Some(PRIORITY_IGNORE);
    let slot = slot.to_string();
    let is_ours = || {
        let tokens = json["tokens"].as_object().into_iter().flatten();
        let ours = tokens.filter(|(_, token)| token["type"] == TOKEN_TYPE);
        let mut named =
            ours.flat_map(|(_, token)| token["keyslots"].as_array().into_iter().flatten());
        named.any(|named| named.as_str() == Some(&slot))
    };
    // A token costs nobody a passphrase: only what no other unlocker takes by itself may be latchkey's.
    keyslot["type"] == "luks2" && !(is_ignored && is_ours())
}

/// Keyslots that a passphrase may open, those of priority `prefer` first.
pub(super) fn usable_keyslots(json: &Value) -> Vec<u32> {
    let mut slots: Vec<(u64, u32)> = json["keyslots"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, keyslot)| keyslot["type"] == "luks2")
        .filter_map(|(slot, keyslot)| {
            let priority = keyslot["priority"].as_u64().unwrap_or(PRIORITY_NORMAL);
            Some((priority, slot.parse().ok()?))
        })
        .filter(|(priority, _)| *priority >= PRIORITY_NORMAL)
        .collect();
    slots.sort_by_key(|(priority, slot)| (u64::MAX - priority, *slot));
    slots.into_iter().map(|(_, slot)| slot).collect()
}

/// LUKS2's keyslot priorities: 0 ignore, 1 normal, 2 prefer.
const PRIORITY_NORMAL: u64 = 1;
const PRIORITY_IGNORE: u64 = 0;
