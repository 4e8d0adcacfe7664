#!/bin/sh
#
# Root is mounted. `latchkey finish` makes sure that it lies on a volume that was opened here: a plain file system under the
# same UUID must not get the volumes that opened by themselves. It closes those, and stops the boot only if it cannot.

# A file that `.` does not find would end the shell, which is the first program here.
[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh || return 0
if ! latchkey_finish "$NEWROOT"; then
	latchkey_wipe
	die "latchkey: root does not lie on the volume that was opened. 'latchkey=off' on the kernel command line boots without latchkey."
fi
latchkey_wipe
# So that the shutdown closes the root again: the native prompt asks for it, which found the volume open.
if [ -e "$latchkey_run/agent.pid" ] && command -v need_shutdown >/dev/null; then
	need_shutdown
fi
