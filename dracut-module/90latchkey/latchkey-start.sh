#!/bin/sh
#
# udev runs, devices are about to appear: starts the agent beside all that.

# A file that `.` does not find would end the shell, which is the first program here.
[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh || return 0

mkdir -p /run/latchkey /run/cryptsetup
chmod 0700 /run/latchkey /run/cryptsetup

# A machine without any console boots too.
latchkey_console=/dev/console
(: <>"$latchkey_console") 2>/dev/null || latchkey_console=/dev/null

# shellcheck disable=SC2094 # a terminal
"$latchkey_binary" unlock --device-limit infinity <"$latchkey_console" >"$latchkey_console" 2>&1 &
echo $! >/run/latchkey/started
unset latchkey_console
