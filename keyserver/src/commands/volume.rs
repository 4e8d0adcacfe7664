//! A volume as the administrator names it: its id, the beginning of its id, or its label.

use super::Failure;
use super::target::Target;
use crate::admin::protocol::Request;
use crate::service::listing::VolumeListing;

/// The one volume that `name` stands for.
pub fn find(target: &Target, name: &str) -> Result<VolumeListing, Failure> {
    let volumes: Vec<VolumeListing> = target.ask(&Request::Volumes)?;
    pick(volumes, name)
}

fn pick(volumes: Vec<VolumeListing>, name: &str) -> Result<VolumeListing, Failure> {
    // An id is an id even if a label looks like it; a label goes before the beginning of an id.
    let by_id = |volume: &VolumeListing| volume.id.to_string() == name;
    let by_label = |volume: &VolumeListing| volume.label == name;
    let by_prefix = |volume: &VolumeListing| {
        !name.is_empty()
            && (volume.id.to_string().starts_with(name) || volume.label.starts_with(name))
    };
    for matches in [
        &by_id as &dyn Fn(&VolumeListing) -> bool,
        &by_label,
        &by_prefix,
    ] {
        let mut found = volumes.iter().filter(|volume| matches(volume));
        match (found.next(), found.next()) {
            (None, _) => {}
            (Some(only), None) => return Ok(only.clone()),
            (Some(one), Some(other)) => {
                return Err(Failure::refused(format!(
                    "'{name}' stands for several volumes, such as '{}' of '{}' and '{}' of '{}'\nuse the id, see 'latchkeyd volumes'",
                    one.id, one.client, other.id, other.client
                )));
            }
        }
    }
    Err(Failure::refused(format!(
        "there is no volume '{}'\nsee 'latchkeyd volumes'",
        name.escape_default()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use latchkey_protocol::ids::Generation;

    fn volume(id: &str, label: &str) -> VolumeListing {
        VolumeListing {
            id: id.parse().unwrap(),
            client: "web-1".parse().unwrap(),
            label: label.to_owned(),
            generation: Generation::FIRST,
            policy: crate::policy::Policy {
                rule: crate::policy::Rule::Allow,
                from: Vec::new(),
                elsewhere: crate::policy::Elsewhere::Deny,
            },
            policy_text: String::new(),
            created: crate::clock::UnixMillis(0),
            retired: None,
            destroyed: None,
        }
    }

    #[test]
    fn a_volume_goes_by_id_label_or_prefix_if_that_is_unique() {
        let (a, b) = (
            "11111111-89ab-4cde-8f01-23456789abcd",
            "11122222-89ab-4cde-8f01-23456789abcd",
        );
        let volumes = || vec![volume(a, "root"), volume(b, "root-2")];
        for (name, id) in [(a, a), ("root", a), ("1111", a), ("root-", b), ("1112", b)] {
            assert_eq!(pick(volumes(), name).unwrap().id.to_string(), id, "{name}");
        }
        for (name, words) in [
            ("111", "several"),
            ("roo", "several"),
            ("x", "no volume"),
            ("", "no volume"),
        ] {
            let failure = pick(volumes(), name).unwrap_err();
            assert!(failure.text.contains(words), "{name}: {}", failure.text);
        }
    }
}
