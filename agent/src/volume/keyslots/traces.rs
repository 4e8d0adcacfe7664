//! What tells a keyslot from every other one.

use serde_json::Value;

use super::ITERATIONS;

/// What is to be seen of a keyslot; see [`traces`](super::traces()).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// The salt of its key derivation: no other keyslot has it.
    pub salt: Option<String>,
    /// Whether its key derivation is as cheap as of those that we make.
    pub cheapest: bool,
    /// Whether a token of anybody names it.
    pub named: bool,
}

impl Traces {
    /// Of keyslot `slot` in a LUKS2 header; `None` if there is no such.
    pub fn of_luks2(json: &Value, slot: u32) -> Option<Self> {
        let slot = slot.to_string();
        let keyslot = &json["keyslots"][&slot];
        if keyslot.is_null() {
            return None;
        }
        let kdf = &keyslot["kdf"];
        let named = |token: &Value| {
            let keyslots = token["keyslots"].as_array();
            keyslots.is_some_and(|all| all.iter().any(|one| *one == slot))
        };
        let tokens = json["tokens"].as_object();
        Some(Self {
            salt: kdf["salt"].as_str().map(str::to_owned),
            cheapest: kdf["type"] == "pbkdf2" && kdf["iterations"] == ITERATIONS,
            named: tokens.is_some_and(|all| all.values().any(named)),
        })
    }
}
