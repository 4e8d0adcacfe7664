//! Names of systemd's units that are made of other names: systemd.unit(5), "String escaping for inclusion in unit names".

/// A name as the instance in a unit's name.
pub fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for (position, byte) in name.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if position == 0 => escaped.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("\\x{other:02x}")),
        }
    }
    escaped
}

/// The unit that mounts what fstab(5) says about `mount_point`, an absolute path.
pub fn mount(mount_point: &str) -> String {
    let parts: Vec<&str> = mount_point
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    match parts.is_empty() {
        true => "-.mount".to_owned(),
        false => format!("{}.mount", escape(&parts.join("/"))),
    }
}

/// Our unit that opens the volume `name` in the running system.
pub fn ours(name: &str) -> String {
    format!("latchkey@{}.service", escape(name))
}

/// systemd's own unit for the same volume.
pub fn native(name: &str) -> String {
    format!("systemd-cryptsetup@{}.service", escape(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_does() {
        for (name, escaped) in [
            ("vda2_crypt", "vda2_crypt"),
            ("luks-8a3d", r"luks\x2d8a3d"),
            (".hidden", r"\x2ehidden"),
            ("a b@ä", r"a\x20b\x40\xc3\xa4"),
            ("a.b:c", "a.b:c"),
        ] {
            assert_eq!(escape(name), escaped);
        }
        assert_eq!(ours("my-data"), r"latchkey@my\x2ddata.service");
        assert_eq!(native("data"), "systemd-cryptsetup@data.service");
    }

    #[test]
    fn a_mount_point_names_its_unit() {
        for (path, unit) in [
            ("/", "-.mount"),
            ("/srv", "srv.mount"),
            ("/srv/my-data/", r"srv-my\x2ddata.mount"),
            ("//a/./b", "a-b.mount"),
            ("/.snap", r"\x2esnap.mount"),
        ] {
            assert_eq!(mount(path), unit);
        }
    }
}
