//! Resolver addresses: read from the running machine, written for the initramfs.
//!
//! Only plain addresses are taken over. The file written in the initramfs is read by glibc's resolver, which
//! the agent is linked with; its limits keep one dead resolver from holding up the boot.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files;
use super::values::is_unicast;

/// As many as glibc reads (resolv.conf(5), MAXNS).
pub const LIMIT: usize = 3;
/// As many as every glibc takes (resolv.conf(5), `search`).
pub const SEARCH_LIMIT: usize = 6;

const MARK: &str =
    "# resolvers of this boot, written by latchkey and taken away before the system starts\n";

/// What was at the place of the file before it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "was", deny_unknown_fields)]
pub enum Before {
    /// Nothing.
    Missing {},
    /// A file with this text.
    File {
        /// All of it.
        text: String,
    },
    /// A symbolic link.
    Symlink {
        /// Where it pointed.
        target: String,
    },
}

/// The addresses in the text of a resolv.conf, both families, without stubs on this machine.
pub fn parse(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // An IPv6 address with a zone means something only on the link it was written for.
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        let usable = match address {
            IpAddr::V4(address) => is_unicast(address),
            IpAddr::V6(address) => {
                !address.is_loopback() && !address.is_multicast() && !address.is_unspecified()
            }
        };
        if usable && !found.contains(&address) && found.len() < LIMIT {
            found.push(address);
        }
    }
    found
}

/// The domains in which short names are looked up, in the text of a resolv.conf: the last line that names any.
pub fn parse_search(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let Some("search" | "domain") = words.next() {
            found = words
                .filter(|word| is_domain(word))
                .take(SEARCH_LIMIT)
                .map(str::to_owned)
                .collect();
        }
    }
    found
}

/// Which resolvers to ask, each once: those of the command line; those that the running machine asked, for they know its
/// names; those that this boot's network gives. Where the running machine had some of the network's too, these come before its
/// others, as without a record. One place is kept for the network's, in case the machine has moved.
pub fn order(parameter: &[Ipv4Addr], recorded: &[Ipv4Addr], given: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let is_where_it_was = given.iter().any(|address| recorded.contains(address));
    let then = match is_where_it_was {
        true => [given, recorded],
        false => [recorded, given],
    };
    let mut all = Vec::new();
    for address in [parameter, then[0], then[1]].concat() {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    if let Some(first) = given.first()
        && !all
            .iter()
            .take(LIMIT)
            .any(|address| given.contains(address))
    {
        all.insert(LIMIT - 1, *first);
    }
    all.truncate(LIMIT);
    all
}

/// Whether `text` can stand in a resolv.conf as one domain (RFC 1035, 2.3.4 and what is used beside its letters).
pub fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    name.len() <= 253 && name.split('.').all(is_label)
}

/// The resolvers that klibc's ipconfig noted in `/run/net-DEVICE.conf`: a shell file made from what a DHCP server
/// sent, so that only dotted addresses are looked for in it.
pub fn parse_ipconfig(text: &str) -> Vec<Ipv4Addr> {
    let values = text.lines().filter_map(|line| line.strip_prefix("IPV4DNS"));
    let values = values
        .filter_map(|line| line.split_once('='))
        .map(|(_, value)| value.trim_matches(['\'', '"']));
    values
        .filter_map(|value| value.parse().ok())
        .filter(|address| is_unicast(*address))
        .take(LIMIT)
        .collect()
}

/// What the file to be written replaces.
///
/// # Errors
/// Where it can neither be read nor said to be missing.
pub fn before(path: &Path) -> io::Result<Before> {
    let kind = match path.symlink_metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Before::Missing {}),
        Err(error) => return Err(error),
    };
    if kind.is_symlink() {
        return Ok(Before::Symlink {
            target: std::fs::read_link(path)?.to_string_lossy().into_owned(),
        });
    }
    Ok(Before::File {
        text: String::from_utf8_lossy(&std::fs::read(path)?).into_owned(),
    })
}

/// Writes the file, atomically.
///
/// # Errors
/// What the file system says.
pub fn write(path: &Path, resolvers: &[Ipv4Addr], search: &[String]) -> io::Result<()> {
    let mut text = MARK.to_string();
    for address in resolvers.iter().take(LIMIT) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {address}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text += "options timeout:1 attempts:2\n";
    files::replace(path, text.as_bytes(), 0o644)
}

/// Puts back what was there, if the file is still ours.
///
/// # Errors
/// What the file system says.
pub fn restore(path: &Path, before: &Before) -> io::Result<()> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match before {
        Before::Missing {} => std::fs::remove_file(path),
        Before::File { text } => files::replace(path, text.as_bytes(), 0o644),
        Before::Symlink { target } => {
            std::fs::remove_file(path)?;
            std::os::unix::fs::symlink(target, path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_are_taken() {
        for (text, expected) in [
            ("", &[][..]),
            ("nameserver 192.0.2.53\n", &["192.0.2.53"]),
            ("nameserver 127.0.0.53\nnameserver ::1\n", &[]),
            (
                "nameserver fe80::1%eth0\nnameserver 2001:db8::53\n",
                &["2001:db8::53"],
            ),
            (
                "# nameserver 192.0.2.1\n;nameserver 192.0.2.2\nsearch nameserver 192.0.2.3\n",
                &[],
            ),
            (
                "nameserver $(reboot)\nnameserver\nnameserver 192.0.2.1 # x\n",
                &["192.0.2.1"],
            ),
            (
                "nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
                &["192.0.2.1", "192.0.2.2", "192.0.2.3"],
            ),
        ] {
            let found: Vec<String> = parse(text).iter().map(IpAddr::to_string).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn the_last_search_line_counts_and_only_names_of_domains() {
        for (text, expected) in [
            ("nameserver 192.0.2.1\n", ""),
            ("search example.net lan\n", "example.net lan"),
            ("search example.net\ndomain lan\n", "lan"),
            ("search . $(reboot) a..b -x_y.example. #\n", "-x_y.example."),
            ("search a b c d e f g\n", "a b c d e f"),
        ] {
            assert_eq!(parse_search(text).join(" "), expected, "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let search = ["example.net".to_owned(), "lan".to_owned()];
        write(&path, &[Ipv4Addr::new(192, 0, 2, 1)], &search).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\nsearch example.net lan\n"), "{text}");
    }

    #[test]
    fn the_machines_own_resolvers_come_before_those_of_the_network_and_leave_it_a_place() {
        let addresses = |text: &str| -> Vec<Ipv4Addr> {
            text.split_ascii_whitespace()
                .map(|end| format!("192.0.2.{end}").parse().unwrap())
                .collect()
        };
        for (parameter, recorded, given, expected) in [
            ("", "", "1 2 3 4", "1 2 3"),
            ("", "5", "1 2", "5 1 2"),
            ("", "5 6 7", "1 2", "5 6 1"),
            ("", "5 6 7", "6", "6 5 7"),
            ("9", "5 6", "1", "9 5 1"),
            ("9", "5 6", "5", "9 5 6"),
        ] {
            let ordered = order(
                &addresses(parameter),
                &addresses(recorded),
                &addresses(given),
            );
            assert_eq!(
                ordered,
                addresses(expected),
                "{parameter}, {recorded}, {given}"
            );
        }
    }

    #[test]
    fn the_file_of_ipconfig_gives_addresses_and_nothing_else() {
        let text = "DEVICE='eth0'\nIPV4DNS0='192.0.2.53'\nIPV4DNS1='0.0.0.0'\nDNSDOMAIN='$(reboot)'\nIPV4DNS2=x\n";
        assert_eq!(parse_ipconfig(text), [Ipv4Addr::new(192, 0, 2, 53)]);
    }

    #[test]
    fn what_was_there_comes_back() {
        for case in ["missing", "file", "symlink"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("resolv.conf");
            match case {
                "file" => std::fs::write(&path, "nameserver 192.0.2.99\n").unwrap(),
                "symlink" => std::os::unix::fs::symlink("nowhere/at-all", &path).unwrap(),
                _ => {}
            }
            let was = before(&path).unwrap();
            write(&path, &[Ipv4Addr::new(192, 0, 2, 1)], &[]).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                text.ends_with("nameserver 192.0.2.1\noptions timeout:1 attempts:2\n"),
                "{text}"
            );
            restore(&path, &was).unwrap();
            assert_eq!(before(&path).unwrap(), was, "{case}");
        }
    }

    #[test]
    fn a_file_that_somebody_else_wrote_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        write(&path, &[Ipv4Addr::new(192, 0, 2, 1)], &[]).unwrap();
        std::fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        restore(&path, &Before::Missing {}).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "nameserver 192.0.2.2\n"
        );
    }
}
