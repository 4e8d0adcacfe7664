//! A volume as the administrator names it: its id, its label, the beginning of one of them, or CLIENT/LABEL. Where
//! nothing can be undone, only a whole id or label.

use super::Failure;
use super::target::Target;
use crate::admin::protocol::Request;
use crate::service::listing::VolumeListing;

/// A way to understand a name: whether only live volumes are meant by it, and whether it fits one.
type Reading = (bool, fn(&VolumeListing, &str) -> bool);

/// An id is an id even if a label looks like it. What was given up or destroyed is meant only if nothing live is: a
/// machine that was bound anew has the same label again.
const WHOLE: [Reading; 3] = [(false, is_id), (true, is_label), (false, is_label)];

/// A whole name never stands for a volume whose name only begins with it, even if its own volume is gone.
const BEGINNINGS: [Reading; 2] = [(true, begins), (false, begins)];

/// The one volume that `name` stands for.
pub fn find(target: &Target, name: &str) -> Result<VolumeListing, Failure> {
    let volumes: Vec<VolumeListing> = target.ask(&Request::Volumes)?;
    pick(volumes, name)
}

/// As [`find`], where a wrong guess cannot be undone: no beginning of a name will do.
pub fn find_whole(target: &Target, name: &str) -> Result<VolumeListing, Failure> {
    let volumes: Vec<VolumeListing> = target.ask(&Request::Volumes)?;
    pick_whole(volumes, name)
}

fn pick(volumes: Vec<VolumeListing>, name: &str) -> Result<VolumeListing, Failure> {
    let readings = [WHOLE.as_slice(), BEGINNINGS.as_slice()].concat();
    read(&volumes, name, &readings)?.ok_or_else(|| none(name))
}

fn pick_whole(volumes: Vec<VolumeListing>, name: &str) -> Result<VolumeListing, Failure> {
    if let Some(found) = read(&volumes, name, &WHOLE)? {
        return Ok(found);
    }
    Err(match read(&volumes, name, &BEGINNINGS) {
        Ok(None) => none(name),
        Ok(Some(_)) | Err(_) => Failure::refused(format!(
            "'{}' is only the beginning of a volume's name\ngive the whole id or label, see 'latchkeyd volumes'",
            name.escape_default()
        )),
    })
}

/// The one volume that `name` stands for in the first of `readings` in which it stands for any.
fn read(
    volumes: &[VolumeListing],
    name: &str,
    readings: &[Reading],
) -> Result<Option<VolumeListing>, Failure> {
    let (client, name) = match name.split_once('/') {
        Some((client, rest)) => (Some(client), rest),
        None => (None, name),
    };
    let volumes: Vec<_> = volumes
        .iter()
        .filter(|volume| client.is_none_or(|client| volume.client.as_str() == client))
        .collect();
    for (live, fits) in readings {
        let mut found = volumes
            .iter()
            .filter(|volume| !live || is_live(volume))
            .filter(|volume| !name.is_empty() && fits(volume, name));
        match (found.next(), found.next()) {
            (None, _) => {}
            (Some(only), None) => return Ok(Some((*only).clone())),
            (Some(one), Some(other)) => {
                return Err(Failure::refused(format!(
                    "'{name}' stands for several volumes, such as '{}' of '{}' and '{}' of '{}'\nuse the id or CLIENT/LABEL, see 'latchkeyd volumes'",
                    one.id, one.client, other.id, other.client
                )));
            }
        }
    }
    Ok(None)
}

fn none(name: &str) -> Failure {
    Failure::refused(format!(
        "there is no volume '{}'\nsee 'latchkeyd volumes'",
        name.escape_default()
    ))
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

    #[test]
    fn the_name_of_a_destroyed_volume_is_not_the_beginning_of_a_live_one() {
        let (old, other) = (
            "11111111-89ab-4cde-8f01-23456789abcd",
            "22222222-89ab-4cde-8f01-23456789abcd",
        );
        let mut destroyed = volume(old, "data 77aa");
        destroyed.destroyed = Some(crate::clock::UnixMillis(1));
        let volumes = || vec![destroyed.clone(), volume(other, "data2 88bb")];
        for name in ["data", "web-1/data", "77aa"] {
            assert_eq!(pick(volumes(), name).unwrap().id.to_string(), old, "{name}");
        }
        assert_eq!(pick(volumes(), "dat").unwrap().id.to_string(), other);
    }

    #[test]
    fn a_beginning_is_no_whole_name() {
        let id = "11111111-89ab-4cde-8f01-23456789abcd";
        let volumes = || vec![volume(id, "data2 88bb")];
        for name in [id, "data2", "88bb", "web-1/data2"] {
            let found = pick_whole(volumes(), name).unwrap();
            assert_eq!(found.id.to_string(), id, "{name}");
        }
        for (name, words) in [
            ("data", "only the beginning"),
            ("1111", "only the beginning"),
            ("web-1/d", "only the beginning"),
            ("x", "no volume"),
            ("", "no volume"),
        ] {
            let failure = pick_whole(volumes(), name).unwrap_err();
            assert!(failure.text.contains(words), "{name}: {}", failure.text);
        }
    }
}
