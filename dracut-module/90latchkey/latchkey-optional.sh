#!/bin/sh
#
# After dracut's hook for crypttab, which has systemd wait without end for the device of every line: what the boot goes on
# without is no reason to stay in the initramfs. Where systemd's own unlocker wants such a device, its own limit holds.

[ -s /etc/latchkey/optional ] && [ -e /etc/crypttab ] || return 0
# A file that `.` does not find would end the shell.
if ! command -v dev_unit_name >/dev/null; then
    [ -e /lib/dracut-dev-lib.sh ] || return 0
    . /lib/dracut-dev-lib.sh
fi
while read -r latchkey_optional; do
    while read -r latchkey_name latchkey_device _ || [ -n "$latchkey_device" ]; do
        [ "$latchkey_name" = "$latchkey_optional" ] || continue
        latchkey_device="$(dev_unit_name "$latchkey_device").device"
        rm -f "/etc/systemd/system/initrd.target.wants/$latchkey_device"
        rm -rf "/etc/systemd/system/$latchkey_device.d"
    done </etc/crypttab
done </etc/latchkey/optional
unset latchkey_optional latchkey_name latchkey_device
