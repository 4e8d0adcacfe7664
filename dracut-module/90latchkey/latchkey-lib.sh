#!/bin/sh
#
# What latchkey's hooks share in an initramfs that dracut's scripts run. Whatever fails in them, the boot goes on to the
# native prompt.

# A file that `.` does not find would end the shell, which is the first program here.
[ -e /usr/lib/latchkey/boot-functions ] || return 1
. /usr/lib/latchkey/boot-functions

# latchkey_wait(what…): the gate. Returns when the agent has ended, or as `latchkey wait` is told. An agent that has ended is
# tidied up after: one that was killed leaves its prompt, which would swallow what is typed at the native one.
latchkey_wait()
{
	latchkey_wait_for_life
	[ -e "$latchkey_run/agent.pid" ] || return 0
	"$latchkey_binary" wait "$@" </dev/null
	read -r latchkey_pid <"$latchkey_run/agent.pid"
	if [ ! -e "$latchkey_run/ended" ] && ! latchkey_runs "$latchkey_pid"; then
		latchkey_end
	fi
}
