//! Names of users, for the audit.

/// The name in /etc/passwd, or `uid N`: the name service of a static program cannot load other sources.
pub fn name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&passwd, uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_as_passwd_names_them() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nlatchkeyd:x:990:990::/:/sbin/nologin\n";
        for (uid, name) in [(0, Some("root")), (990, Some("latchkeyd")), (1, None)] {
            assert_eq!(name_in(passwd, uid).as_deref(), name, "{uid}");
        }
    }
}
