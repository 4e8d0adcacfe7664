//! The policies that come with the key server, word for word as `docs/policies/` has them.

use super::Policy;

/// A policy that comes with the key server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// All of them.
pub const PRESETS: [Preset; 3] = [
    Preset {
        name: "home-server",
        text: include_str!("../../../docs/policies/home-server.toml"),
    },
    Preset {
        name: "fleet",
        text: include_str!("../../../docs/policies/fleet.toml"),
    },
    Preset {
        name: "paranoid",
        text: include_str!("../../../docs/policies/paranoid.toml"),
    },
];

impl Preset {
    /// The preset of this name.
    pub fn named(name: &str) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }

    /// The policy that its text stands for.
    pub fn policy(self) -> Policy {
        Policy::parse(self.text).expect("the presets are tested")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_policy_with_a_sentence_and_says_what_it_does_not_stop() {
        for preset in PRESETS {
            let policy = Policy::parse(preset.text).unwrap();
            assert_eq!(preset.policy(), policy);
            assert_eq!(Preset::named(preset.name), Some(preset));
            assert!(policy.life && policy.ticket, "{}", preset.name);
            assert!(policy.sentence().len() < super::super::SENTENCE_LIMIT);
            assert!(policy.limits().contains("does not stop"), "{}", preset.name);
        }
        assert_eq!(Preset::named("home"), None);
    }
}
