//! A volume as the administrator names it: its id, its label, the beginning of one of them, or CLIENT/LABEL.

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
    let (client, name) = match name.split_once('/') {
        Some((client, rest)) => (Some(client), rest),
        None => (None, name),
    };
    let volumes: Vec<_> = volumes
        .into_iter()
        .filter(|volume| client.is_none_or(|client| volume.client.as_str() == client))
        .collect();
    // An id is an id even if a label looks like it. What was given up or destroyed is meant only if nothing live
    // is: a machine that was bound anew has the same label again.
    for (live, fits) in [
        (false, is_id as fn(&VolumeListing, &str) -> bool),
        (true, is_label),
        (true, begins),
        (false, is_label),
        (false, begins),
    ] {
        let mut found = volumes
            .iter()
            .filter(|volume| !live || is_live(volume))
            .filter(|volume| !name.is_empty() && fits(volume, name));
        match (found.next(), found.next()) {
            (None, _) => {}
            (Some(only), None) => return Ok(only.clone()),
            (Some(one), Some(other)) => {
                return Err(Failure::refused(format!(
                    "'{name}' stands for several volumes, such as '{}' of '{}' and '{}' of '{}'\nuse the id or CLIENT/LABEL, see 'latchkeyd volumes'",
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

fn is_live(volume: &VolumeListing) -> bool {
    volume.retired.is_none() && volume.destroyed.is_none()
}

fn is_id(volume: &VolumeListing, name: &str) -> bool {
    volume.id.to_string() == name
}

/// A label is what the machine calls the volume and the UUID in its header; either will do.
fn is_label(volume: &VolumeListing, name: &str) -> bool {
    volume.label == name || volume.label.split(' ').any(|word| word == name)
}

fn begins(volume: &VolumeListing, name: &str) -> bool {
    volume.id.to_string().starts_with(name)
        || volume.label.split(' ').any(|word| word.starts_with(name))
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
            policy: crate::policy::Policy::plain(crate::policy::Rule::Allow),
            policy_text: String::new(),
            policy_scope: String::new(),
            created: crate::clock::UnixMillis(0),
            retired: None,
            destroyed: None,
            opened_by: Default::default(),
        }
    }

    #[test]
    fn a_volume_goes_by_id_label_or_prefix_if_that_is_unique() {
        let (a, b, c) = (
            "11111111-89ab-4cde-8f01-23456789abcd",
            "11122222-89ab-4cde-8f01-23456789abcd",
            "33333333-89ab-4cde-8f01-23456789abcd",
        );
        let volumes = || {
            let mut other = volume(c, "root 0af1");
            other.client = "web-2".parse().unwrap();
            vec![volume(a, "root 77aa"), volume(b, "root-2 88bb"), other]
        };
        for (name, id) in [
            (a, a),
            ("root 77aa", a),
            ("77aa", a),
            ("88", b),
            ("web-1/root", a),
            ("web-2/root", c),
            ("web-2/", ""),
            ("1111", a),
            ("root-", b),
            ("1112", b),
        ] {
            let found = pick(volumes(), name).map(|volume| volume.id.to_string());
            assert_eq!(found.unwrap_or_default(), id, "{name}");
        }
        for (name, words) in [
            ("root", "several"),
            ("111", "several"),
            ("roo", "several"),
            ("x", "no volume"),
            ("", "no volume"),
        ] {
            let failure = pick(volumes(), name).unwrap_err();
            assert!(failure.text.contains(words), "{name}: {}", failure.text);
        }
    }

    #[test]
    fn a_volume_that_was_bound_anew_is_the_live_one() {
        let (old, new) = (
            "11111111-89ab-4cde-8f01-23456789abcd",
            "22222222-89ab-4cde-8f01-23456789abcd",
        );
        let mut retired = volume(old, "root 77aa");
        retired.retired = Some(crate::clock::UnixMillis(1));
        let volumes = || vec![retired.clone(), volume(new, "root 77aa")];
        assert_eq!(pick(volumes(), "root").unwrap().id.to_string(), new);
        assert_eq!(pick(volumes(), old).unwrap().id.to_string(), old);
        let only_old = vec![retired.clone()];
        assert_eq!(pick(only_old, "root").unwrap().id.to_string(), old);
    }
}
