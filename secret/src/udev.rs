//! The five libudev functions that libdevmapper calls, answered here because there is no static libudev.
//!
//! libdevmapper asks once, in `_check_udev_is_running()`, whether udev is active. If so it creates a device node by
//! telling the kernel and then waits, without a limit, until a udev rule gives the word; if not it makes the node
//! itself. libudev's own answer looks only at udev's control socket. Where udev runs without device-mapper's
//! rules, as in a small initramfs, the wait would never end, so the answer here looks at the rules too.

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;

/// Where udev reads rules from (udev(7)), relative to the root.
const RULES: [&str; 5] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
];

/// Makes the linker keep the functions below: called once by what links libdevmapper.
pub fn link() {
    std::hint::black_box((
        udev_new as *const (),
        udev_unref as *const (),
        udev_queue_new as *const (),
        udev_queue_unref as *const (),
        udev_queue_get_udev_is_active as *const (),
    ));
}

/// Whether a wait for udev's word would end: udev runs and has device-mapper's rules, the one that names the nodes
/// (`10-dm.rules`, on Debian `55-dm.rules`) and the one that notifies (`95-dm-notify.rules`).
fn waits_end(root: &Path) -> bool {
    let has = |rule: &str| RULES.iter().any(|dir| root.join(dir).join(rule).exists());
    root.join("run/udev/control").exists()
        && has("95-dm-notify.rules")
        && (has("10-dm.rules") || has("55-dm.rules"))
}

/// A handle that is never followed; it only must not be null, which would mean "out of memory".
static HANDLE: u8 = 0;

fn handle() -> *mut c_void {
    (&raw const HANDLE).cast_mut().cast()
}

/// libudev(3) `udev_new`: a handle without content.
#[unsafe(no_mangle)]
pub extern "C" fn udev_new() -> *mut c_void {
    handle()
}

/// libudev(3) `udev_unref`: nothing to give back.
#[unsafe(no_mangle)]
pub extern "C" fn udev_unref(_udev: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// `udev_queue_new`: a handle without content.
#[unsafe(no_mangle)]
pub extern "C" fn udev_queue_new(_udev: *mut c_void) -> *mut c_void {
    handle()
}

/// `udev_queue_unref`: nothing to give back.
#[unsafe(no_mangle)]
pub extern "C" fn udev_queue_unref(_queue: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// `udev_queue_get_udev_is_active`: 1 if libdevmapper may wait for udev, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn udev_queue_get_udev_is_active(_queue: *mut c_void) -> c_int {
    c_int::from(waits_end(Path::new("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udev_counts_as_active_only_with_its_socket_and_both_rules() {
        let cases: [(&[&str], bool); 8] = [
            (&[], false),
            (&["run/udev/control"], false),
            (
                &[
                    "run/udev/control",
                    "usr/lib/udev/rules.d/95-dm-notify.rules",
                ],
                false,
            ),
            (
                &["run/udev/control", "usr/lib/udev/rules.d/55-dm.rules"],
                false,
            ),
            (
                &[
                    "usr/lib/udev/rules.d/55-dm.rules",
                    "usr/lib/udev/rules.d/95-dm-notify.rules",
                ],
                false,
            ),
            (
                &[
                    "run/udev/control",
                    "usr/lib/udev/rules.d/55-dm.rules",
                    "usr/lib/udev/rules.d/95-dm-notify.rules",
                ],
                true,
            ),
            (
                &[
                    "run/udev/control",
                    "lib/udev/rules.d/10-dm.rules",
                    "etc/udev/rules.d/95-dm-notify.rules",
                ],
                true,
            ),
            (
                &[
                    "run/udev/control",
                    "opt/udev/rules.d/10-dm.rules",
                    "etc/udev/rules.d/95-dm-notify.rules",
                ],
                false,
            ),
        ];
        for (files, active) in cases {
            let root = tempfile::tempdir().unwrap();
            for file in files {
                let path = root.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            assert_eq!(waits_end(root.path()), active, "with {files:?}");
        }
    }

    #[test]
    fn handles_are_not_null() {
        assert!(!udev_new().is_null());
        assert!(!udev_queue_new(udev_new()).is_null());
    }
}
