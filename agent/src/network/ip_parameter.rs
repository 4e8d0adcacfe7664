//! The `ip=` parameter of the kernel command line, which wins over the recorded configuration.
//!
//! Understood: the kernel's and klibc's form (Documentation/admin-guide/nfs/nfsroot.rst)
//! `ip=<client>:<server>:<gateway>:<netmask>:<host>:<device>:<autoconf>:<dns0>:<dns1>:<ntp0>`, shortened
//! anywhere, `ip=dhcp|on|any|both`, `ip=off|none`, dracut's `ip=<device>:dhcp` and
//! `…:<autoconf>:<mtu>:<mac>` (dracut.cmdline(7)), several of them, and `nameserver=<address>`.
//!
//! Not handled, and reported so: IPv6, BOOTP and RARP alone, iBFT. Ignored: server, host name, NTP server,
//! the hardware address to set, `BOOTIF=`, `vlan=`, `bond=`, `bridge=`, `rd.route=`.

use std::net::Ipv4Addr;

use super::values::{
    InterfaceAddress, Ipv4Config, Ipv4Network, Route, is_mtu, is_unicast, prefix_of_mask,
};

/// All that the command line says about the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpParameter {
    /// In the order of the command line, at most one for each device.
    pub rules: Vec<Rule>,
    /// From `nameserver=` and the two DNS fields.
    pub resolvers: Vec<Ipv4Addr>,
    /// One line for each thing that was not understood.
    pub notes: Vec<String>,
}

/// What one `ip=` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The interface it names; none means any.
    pub device: Option<String>,
    /// How to configure it.
    pub method: RuleMethod,
}

/// How an interface is configured by `ip=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleMethod {
    /// Ask a DHCP server.
    Dhcp {
        /// In bytes, if the server names none.
        mtu: Option<u32>,
    },
    /// Set what the parameter says.
    Static(Ipv4Config),
    /// Leave it alone.
    Off,
}

/// The words of a command line; everything after a lone "--" belongs to init.
pub fn words(cmdline: &str) -> impl Iterator<Item = &str> {
    let words = cmdline.split_ascii_whitespace();
    words.take_while(|word| *word != "--")
}

/// Reads the parameter out of an image's own words and the kernel's: whoever types `ip=` or `nameserver=` at the boot loader means
/// it in place of what the image has.
pub fn parse_both(image: &str, kernel: &str) -> IpParameter {
    let is_replaced = |word: &str| {
        let mut of_both = ["ip=", "nameserver="].into_iter();
        of_both
            .any(|what| word.starts_with(what) && words(kernel).any(|word| word.starts_with(what)))
    };
    let kept = image
        .split_ascii_whitespace()
        .filter(|word| !is_replaced(word));
    let both: Vec<&str> = kept.chain([kernel]).collect();
    parse(&both.join(" "))
}

/// Reads the parameter out of a kernel command line.
pub fn parse(cmdline: &str) -> IpParameter {
    let mut found = IpParameter::default();
    for word in words(cmdline) {
        if let Some(value) = word.strip_prefix("ip=") {
            match rule(value, &mut found.resolvers) {
                Ok(rule) => {
                    found.rules.retain(|earlier| earlier.device != rule.device);
                    found.rules.push(rule);
                }
                Err(reason) => found
                    .notes
                    .push(format!("'ip={value}' is ignored: {reason}")),
            }
        } else if let Some(value) = word.strip_prefix("nameserver=") {
            match value.parse() {
                Ok(address) if is_unicast(address) => found.resolvers.push(address),
                _ => found.notes.push(format!(
                    "'nameserver={value}' is ignored: not an IPv4 address"
                )),
            }
        }
    }
    found.resolvers.dedup();
    found.resolvers.truncate(super::resolv::LIMIT);
    found
}

impl RuleMethod {
    fn with_mtu(self, mtu: Option<u32>) -> Self {
        match self {
            Self::Dhcp { .. } => Self::Dhcp { mtu },
            other => other,
        }
    }
}

fn mtu_of(text: &str) -> Option<u32> {
    text.parse().ok().filter(|mtu| is_mtu(*mtu))
}

fn rule(value: &str, resolvers: &mut Vec<Ipv4Addr>) -> Result<Rule, &'static str> {
    if value.contains('[') {
        return Err("IPv6 is not handled yet");
    }
    let fields: Vec<&str> = value.split(':').collect();
    match fields[..] {
        [method] if method.parse::<Ipv4Addr>().is_err() => Ok(Rule {
            device: None,
            method: autoconf(method)?,
        }),
        [device, method] if device.parse::<Ipv4Addr>().is_err() && !device.is_empty() => Ok(Rule {
            device: Some(device_name(device)?),
            method: autoconf(method)?,
        }),
        [device, method, mtu] | [device, method, mtu, _]
            if device.parse::<Ipv4Addr>().is_err()
                && !device.is_empty()
                && autoconf(method).is_ok() =>
        {
            let mtu = match mtu {
                "" => None,
                text => Some(mtu_of(text).ok_or("its third field is not an MTU")?),
            };
            Ok(Rule {
                device: Some(device_name(device)?),
                method: autoconf(method)?.with_mtu(mtu),
            })
        }
        _ => long_form(&fields, resolvers),
    }
}

fn long_form(fields: &[&str], resolvers: &mut Vec<Ipv4Addr>) -> Result<Rule, &'static str> {
    let field = |index: usize| fields.get(index).copied().filter(|text| !text.is_empty());
    let device = field(5).map(device_name).transpose()?;
    let mtu = match (
        field(7),
        field(7).and_then(|text| text.parse::<Ipv4Addr>().ok()),
    ) {
        (Some(_), Some(_)) | (None, _) => None,
        (Some(text), None) => {
            Some(mtu_of(text).ok_or("its eighth field is neither a DNS server nor an MTU")?)
        }
    };
    let servers = [field(7), field(8)]
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse().ok());
    let servers: Vec<Ipv4Addr> = servers.filter(|address| is_unicast(*address)).collect();

    let Some(client) = field(0) else {
        let method = autoconf(field(6).unwrap_or("dhcp"))?.with_mtu(mtu);
        resolvers.extend(servers);
        return Ok(Rule { device, method });
    };
    if let Some("off") | Some("none") | Some("static") | None = field(6) {
    } else {
        // An address and DHCP together: the address is only a wish, and DHCP tells the rest.
        let method = autoconf(field(6).unwrap_or_default())?.with_mtu(mtu);
        resolvers.extend(servers);
        return Ok(Rule { device, method });
    }

    let address = client.parse().ok().filter(|address| is_unicast(*address));
    let address = address.ok_or("its first field is not an IPv4 address")?;
    let prefix = match field(3) {
        Some(text) => netmask(text).ok_or("its netmask is not one")?,
        None => class_prefix(address),
    };
    let gateway = match field(2) {
        Some("0.0.0.0") | None => None,
        Some(text) => Some(
            text.parse()
                .ok()
                .filter(|gateway| is_unicast(*gateway))
                .ok_or("its gateway is not an IPv4 address")?,
        ),
    };
    let mut config = Ipv4Config {
        addresses: vec![InterfaceAddress {
            address,
            prefix,
            peer: None,
        }],
        routes: gateway.map(default_route).into_iter().collect(),
        mtu,
        resolvers: Vec::new(),
    };
    config.order_routes();
    resolvers.extend(servers);
    Ok(Rule {
        device,
        method: RuleMethod::Static(config),
    })
}

fn autoconf(text: &str) -> Result<RuleMethod, &'static str> {
    match text {
        "dhcp" | "on" | "any" | "both" => Ok(RuleMethod::Dhcp { mtu: None }),
        "off" | "none" => Ok(RuleMethod::Off),
        "dhcp6" | "auto6" | "either6" | "link6" | "link-local" => Err("IPv6 is not handled yet"),
        "bootp" | "rarp" | "ibft" => Err("this protocol is not handled, use 'dhcp'"),
        _ => Err("not a form that is handled"),
    }
}

/// Interface names as the kernel allows them (dev_valid_name), so that they can stand in messages.
fn device_name(text: &str) -> Result<String, &'static str> {
    let good = text.len() < 16
        && !matches!(text, "." | "..")
        && text
            .chars()
            .all(|letter| letter.is_ascii_graphic() && !matches!(letter, '/' | ':'));
    if good {
        Ok(text.into())
    } else {
        Err("its device is not an interface name")
    }
}

fn netmask(text: &str) -> Option<u8> {
    let prefix = match text.parse::<u8>() {
        Ok(prefix) => prefix,
        Err(_) => prefix_of_mask(text.parse().ok()?)?,
    };
    (1..=32).contains(&prefix).then_some(prefix)
}

/// What the kernel and klibc assume where the mask is left out: the classes of RFC 791.
fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        ..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

fn default_route(gateway: Ipv4Addr) -> Route {
    Route {
        to: Ipv4Network::ALL,
        via: Some(gateway),
        on_link: false,
        metric: None,
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device, address with prefix, gateway (`!` when on-link), MTU, resolvers: one line, easy to read in a table.
    fn say(found: &IpParameter) -> String {
        let mut words: Vec<String> = Vec::new();
        for rule in &found.rules {
            let device = rule.device.as_deref().unwrap_or("*");
            words.push(match &rule.method {
                RuleMethod::Dhcp { mtu: None } => format!("{device} dhcp"),
                RuleMethod::Dhcp { mtu: Some(mtu) } => format!("{device} dhcp mtu {mtu}"),
                RuleMethod::Off => format!("{device} off"),
                RuleMethod::Static(config) => {
                    let address = config.addresses[0];
                    let mut text = format!("{device} {}/{}", address.address, address.prefix);
                    for route in &config.routes {
                        let mark = if route.on_link { "!" } else { "" };
                        text += &format!(" via {}{mark}", route.via.unwrap());
                    }
                    if let Some(mtu) = config.mtu {
                        text += &format!(" mtu {mtu}");
                    }
                    text
                }
            });
        }
        words.extend(
            found
                .resolvers
                .iter()
                .map(|address| format!("dns {address}")),
        );
        words.extend(found.notes.iter().map(|_| "note".to_string()));
        words.join(", ")
    }

    #[test]
    fn what_is_typed_at_the_boot_loader_replaces_what_the_image_has() {
        for (image, kernel, expected) in [
            (
                "ip=eth0:dhcp nameserver=192.0.2.1",
                "quiet",
                "eth0 dhcp, dns 192.0.2.1",
            ),
            (
                "ip=eth0:dhcp nameserver=192.0.2.1",
                "ip=off",
                "* off, dns 192.0.2.1",
            ),
            (
                "ip=eth0:dhcp nameserver=192.0.2.1",
                "nameserver=192.0.2.2",
                "eth0 dhcp, dns 192.0.2.2",
            ),
            ("ip=eth0:dhcp", "quiet -- ip=off", "eth0 dhcp"),
            ("", "ip=dhcp", "* dhcp"),
        ] {
            assert_eq!(
                say(&parse_both(image, kernel)),
                expected,
                "{image}, {kernel}"
            );
        }
    }

    #[test]
    fn forms_of_the_parameter() {
        for (line, meaning) in [
            ("root=/dev/vda1 ro quiet", ""),
            ("ip=dhcp", "* dhcp"),
            ("ip=on", "* dhcp"),
            ("ip=off", "* off"),
            ("ip=none", "* off"),
            ("ip=:::::eth0:dhcp", "eth0 dhcp"),
            ("ip=::::host:eth0:dhcp", "eth0 dhcp"),
            ("ip=::::host:eth0", "eth0 dhcp"),
            ("ip=:::::eth0:off", "eth0 off"),
            ("ip=eth0:dhcp", "eth0 dhcp"),
            ("ip=ens3:dhcp:1400", "ens3 dhcp mtu 1400"),
            ("ip=ens3:dhcp:14", "note"),
            ("ip=ens3:dhcp:1400:52:54:00:12:34:56", "note"),
            ("ip=192.0.2.7", "* 192.0.2.7/24"),
            (
                "ip=192.0.2.7::192.0.2.1:255.255.255.0::eth0:off",
                "eth0 192.0.2.7/24 via 192.0.2.1",
            ),
            (
                "ip=192.0.2.7::192.0.2.1:24::eth0:none",
                "eth0 192.0.2.7/24 via 192.0.2.1",
            ),
            (
                "ip=192.0.2.7::192.0.2.1:255.255.255.0:name",
                "* 192.0.2.7/24 via 192.0.2.1",
            ),
            ("ip=10.1.2.3::10.0.0.1", "* 10.1.2.3/8 via 10.0.0.1"),
            (
                "ip=192.0.2.7::172.31.1.1:255.255.255.255::ens3:none",
                "ens3 192.0.2.7/32 via 172.31.1.1!",
            ),
            (
                "ip=192.0.2.7::192.0.2.1:255.255.255.0::eth0:off:9.9.9.9:1.1.1.1",
                "eth0 192.0.2.7/24 via 192.0.2.1, dns 9.9.9.9, dns 1.1.1.1",
            ),
            (
                "ip=192.0.2.7::192.0.2.1:24::eth0:none:1280",
                "eth0 192.0.2.7/24 via 192.0.2.1 mtu 1280",
            ),
            ("ip=192.0.2.7::192.0.2.1:24::eth0:dhcp", "eth0 dhcp"),
            ("ip=eth0:dhcp ip=eth1:off", "eth0 dhcp, eth1 off"),
            ("ip=eth0:off ip=eth0:dhcp", "eth0 dhcp"),
            ("ip=dhcp nameserver=9.9.9.9", "* dhcp, dns 9.9.9.9"),
            ("ip=dhcp -- ip=off", "* dhcp"),
            // Not handled, and said so.
            ("ip=auto6", "note"),
            ("ip=[2001:db8::2]::[2001:db8::1]:64::eth0:none", "note"),
            ("ip=bootp", "note"),
            ("ip=", "note"),
            ("ip=192.0.2.7::192.0.2.1:255.0.255.0::eth0:off", "note"),
            ("ip=192.0.2.7::192.0.2.1:0::eth0:off", "note"),
            ("ip=192.0.2.7::192.0.2.1:33::eth0:off", "note"),
            ("ip=192.0.2.7::gateway:24::eth0:off", "note"),
            ("ip=300.0.2.7::192.0.2.1:24::eth0:off", "note"),
            ("ip=127.0.0.1::192.0.2.1:24::eth0:off", "note"),
            ("ip=192.0.2.7::192.0.2.1:24::eth0/../x:off", "note"),
            (
                "ip=192.0.2.7::192.0.2.1:24::a-name-that-is-too-long:off",
                "note",
            ),
            ("ip=192.0.2.7::192.0.2.1:24::eth0:off:500", "note"),
            ("nameserver=$(reboot)", "note"),
            ("nameserver=127.0.0.53", "note"),
        ] {
            assert_eq!(say(&parse(line)), meaning, "'{line}'");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_on_the_command_line_makes_it_panic(line in "(ip=|nameserver=)?[0-9a-z.:\\[\\] =/-]{0,60}") {
            for rule in parse(&line).rules {
                if let RuleMethod::Static(config) = rule.method {
                    proptest::prop_assert!(is_unicast(config.addresses[0].address));
                    proptest::prop_assert!((1..=32).contains(&config.addresses[0].prefix));
                }
            }
        }
    }
}
