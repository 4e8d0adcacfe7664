#!/bin/sh
#
# What latchkey's hooks share in an initramfs that dracut's scripts run. Whatever fails in them, the boot goes on to the
# native prompt.
#
# /run/latchkey/agent.pid is there once the agent has begun: from then on its program can be relied on to answer. Before
# that, or where it never comes, only the shell's own means are used.

latchkey_binary=/usr/bin/latchkey

# latchkey_wait(what…): the gate. Returns when the agent has ended, or as `latchkey wait` is told. An agent that has ended is
# tidied up after: one that was killed leaves its prompt, which would swallow what is typed at the native one.
latchkey_wait()
{
	latchkey_wait_for_life
	[ -e /run/latchkey/agent.pid ] || return 0
	"$latchkey_binary" wait "$@" </dev/null
	read -r latchkey_pid </run/latchkey/agent.pid
	if [ ! -e /run/latchkey/ended ] && ! latchkey_runs "$latchkey_pid"; then
		latchkey_end
		: >/run/latchkey/ended
	fi
}

# An agent that shows no sign of life within ten seconds is ended, and the boot goes on without it.
latchkey_wait_for_life()
{
	[ ! -e /run/latchkey/agent.pid ] && read -r latchkey_pid 2>/dev/null </run/latchkey/started || return 0
	latchkey_tries=0
	while [ ! -e /run/latchkey/agent.pid ] && latchkey_runs "$latchkey_pid" && [ "$latchkey_tries" -lt 100 ]; do
		sleep 0.1
		latchkey_tries=$((latchkey_tries + 1))
	done
	if [ ! -e /run/latchkey/agent.pid ]; then
		kill -9 "$latchkey_pid" 2>/dev/null
		rm -f /run/latchkey/started
		latchkey_wipe
	fi
}

# latchkey_runs(pid): is there such a process, and has it not ended? One that nobody has waited for is a zombie.
latchkey_runs()
{
	read -r _ _ latchkey_state _ 2>/dev/null <"/proc/$1/stat" && [ "$latchkey_state" != Z ]
}

# Ends the agent if it lives, takes back the network, wipes the credentials. May be run again.
latchkey_end()
{
	[ ! -e /run/latchkey/agent.pid ] || "$latchkey_binary" cleanup </dev/null
	latchkey_wipe
}

# Overwrites the boot keys in place, without the binary: the initramfs lies in memory and is freed at the switch to the real
# root, but not cleared.
latchkey_wipe()
{
	for latchkey_file in /etc/latchkey/servers/*/boot.key; do
		[ -f "$latchkey_file" ] || continue
		dd if=/dev/zero of="$latchkey_file" bs=4096 count=1 conv=notrunc 2>/dev/null
		rm -f "$latchkey_file"
	done
}
