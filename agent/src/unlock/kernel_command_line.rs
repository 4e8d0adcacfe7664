//! What the kernel command line means for us. It can only take something away: nothing on it points the agent
//! elsewhere or weakens a check.
//!
//! Words are split as the kernel does (Documentation/admin-guide/kernel-parameters): at blanks outside double
//! quotes; `-` and `_` are the same in a parameter's name.

/// `/proc/cmdline`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelCommandLine {
    words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    /// With `_` for `-`.
    name: String,
    value: Option<String>,
}

/// Parameters after which the boot is not an ordinary one: a shell, a rescue system, another init or another `/usr` that it
/// comes from. The one list.
/// It stops accidents and casual attempts; whoever controls the boot loader can do without all of them.
const SHELLS: &[&str] = &[
    "break",
    "rd.break",
    "rdbreak",
    "rdinit",
    "rd.cmdline",
    "real_init",
    "rd.distroinit",
    "rd.systemd.unit",
    "rd.systemd.debug_shell",
    "rd.systemd.wants",
    "systemd.unit",
    "systemd.debug_shell",
    "systemd.default_debug_tty",
    "systemd.wants",
    "systemd.run",
    "systemd.run_success_action",
    "systemd.run_failure_action",
    "systemd.mask",
    "systemd.set_credential",
    "systemd.set_credential_binary",
    "systemd.import_credentials",
    "systemd.setenv",
    "systemd.environment",
    "systemd.confirm_spawn",
    "systemd.crash_shell",
    "systemd.mount_extra",
    "rd.systemd.mount_extra",
    "mount.usr",
    "mount.usrfstype",
    "mount.usrflags",
    "SYSTEMD_SULOGIN_FORCE",
    "single",
    "emergency",
    "rescue",
    "_s",
    "s",
    "S",
    "1",
    "_b",
];

impl KernelCommandLine {
    /// Takes `text` apart.
    pub fn parse(text: &str) -> Self {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut quoted = false;
        for c in text.chars().chain([' ']) {
            match c {
                '"' => quoted = !quoted,
                c if c.is_ascii_whitespace() && !quoted => {
                    if !word.is_empty() {
                        words.push(Word::new(&std::mem::take(&mut word)));
                    }
                }
                c => word.push(c),
            }
        }
        if !word.is_empty() {
            words.push(Word::new(&word)); // a quote that never closes: the rest is one word
        }
        Self { words }
    }

    /// `latchkey=off`.
    pub fn is_switched_off(&self) -> bool {
        self.values("latchkey").any(|value| value == Some("off"))
    }

    /// `latchkey.debug`.
    pub fn wants_debug(&self) -> bool {
        let name = "latchkey.debug";
        self.values(name).next().is_some() && self.is_on(name)
    }

    /// The word that asks for something else than an ordinary boot of `usual_init`, if there is one.
    pub fn asks_for_shell(&self, usual_init: &str) -> Option<String> {
        self.words
            .iter()
            .find(|word| word.asks_for_shell(usual_init))
            .map(Word::shown)
    }

    /// What the words of that name say, in their order; `name` has `_` for `-`.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<&'a str>> {
        self.values_where(move |word| word == name)
    }

    /// What the words whose names are wanted say, in their order.
    pub fn values_where<'a>(
        &'a self,
        is_wanted: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = Option<&'a str>> {
        self.words
            .iter()
            .filter(move |word| is_wanted(&word.name))
            .map(|word| word.value.as_deref())
    }

    /// A switch that is on unless its last word says no (kernel-command-line(7)).
    pub fn is_on(&self, name: &str) -> bool {
        !matches!(self.values(name).last(), Some(Some(value)) if is_no(value))
    }
}

pub(super) fn is_no(value: &str) -> bool {
    ["0", "no", "off", "false"].contains(&value)
}

impl Word {
    fn new(word: &str) -> Self {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        Self {
            name: name.replace('-', "_"),
            value,
        }
    }

    fn asks_for_shell(&self, usual_init: &str) -> bool {
        let value = self.value.as_deref();
        match self.name.as_str() {
            "init" => value.is_some_and(|init| init != usual_init),
            // `=0` and `=no` switch these off; anything else, or nothing, on.
            name => SHELLS.contains(&name) && !value.is_some_and(is_no),
        }
    }

    /// At most 60 printable characters.
    fn shown(&self) -> String {
        let text = match &self.value {
            Some(value) => format!("{}={value}", self.name),
            None => self.name.clone(),
        };
        text.chars().filter(|c| !c.is_control()).take(60).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Option<String> {
        KernelCommandLine::parse(line).asks_for_shell("/sbin/init")
    }

    #[test]
    fn an_ordinary_boot_asks_for_no_shell() {
        for line in [
            "BOOT_IMAGE=/vmlinuz root=/dev/mapper/vda2_crypt ro quiet splash console=ttyS0",
            "root=UUID=1 init=/sbin/init",
            "rd.break=0 systemd.debug-shell=no",
            "breakpoint=1 initcall_debug resume=/dev/sda1 s390=x",
            "",
        ] {
            assert_eq!(shell(line), None, "{line:?}");
        }
    }

    #[test]
    fn every_way_to_a_shell_is_seen() {
        for line in [
            "ro break",
            "ro break=premount",
            "init=/bin/sh",
            "init=/bin/bash quiet",
            "\"init=/bin/sh\"",
            "init=\"/bin/sh -x\"",
            "rdinit=/bin/sh",
            "rd.break",
            "rd.break=pre-mount",
            "systemd.debug-shell",
            "systemd.debug_shell=1",
            "rd.systemd.debug_shell=ttyS0",
            "systemd.unit=rescue.target",
            "SYSTEMD_SULOGIN_FORCE=1",
            "mount.usr=/dev/vdb1",
            "rd.systemd.mount-extra=/dev/vdb1:/usr",
            "systemd.confirm_spawn",
            "single",
            "s",
            "S",
            "1",
            "-s",
            "-b",
            "emergency",
            "rescue",
            "\tbreak\n",
            "a \"b c\" rd-break break",
        ] {
            assert!(shell(line).is_some(), "{line:?}");
        }
    }

    #[test]
    fn our_own_words_are_read() {
        assert!(KernelCommandLine::parse("a latchkey=off b").is_switched_off());
        assert!(!KernelCommandLine::parse("latchkey=on xlatchkey=off latchkey").is_switched_off());
        assert!(KernelCommandLine::parse("latchkey.debug").wants_debug());
        for quiet in [
            "latchkey.debug=0 latchkey_debug",
            "latchkey.debug latchkey.debug=off",
            "",
        ] {
            assert!(!KernelCommandLine::parse(quiet).wants_debug(), "{quiet}");
        }
    }

    #[test]
    fn what_is_shown_cannot_move_the_cursor() {
        let shown = shell("init=/bin/\u{1b}[2Jsh").expect("another init");
        assert_eq!(shown, "init=/bin/[2Jsh");
    }
}
