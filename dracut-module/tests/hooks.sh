#!/bin/sh
#
# Sources the hooks in a fake initramfs, as the first program of a boot by dracut's scripts does, under dash and, where
# there is one, busybox: whatever of latchkey is lost, that shell goes on. The absolute paths are replaced in copies of
# the hooks; nothing else of them is changed. That they boot a real machine is what the boot tests show.

set -eu
here="$(cd "${0%/*}/.." && pwd)"
top="$(mktemp -d)"
trap 'rm -rf "$top"' EXIT
failures=0

main()
{
	for shell in sh "busybox sh"; do
		command -v "${shell%% *}" >/dev/null || continue
		every_hook_is_passed_over_where_a_part_is_lost
		an_agent_that_never_begins_is_ended_and_the_boot_key_wiped
		an_agent_that_ended_is_tidied_up_after_once
		a_place_that_cannot_be_written_ends_no_shell
		the_question_before_a_resume_is_asked_again
		a_device_that_the_boot_does_without_is_not_wanted
		the_shutdown_is_to_close_what_the_agent_opened
	done
	an_image_gets_the_modules_that_volumes_need
	lines_of_crypttab_name_the_devices_as_dracuts_own_do
	[ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
	echo "dracut hooks: all passed"
}

# Sourced by dracut's bash.
an_image_gets_the_modules_that_volumes_need()
{
	initramfs
	for needed in "dm_integrity crypto-authenc" ""; do
		printf '#!/bin/sh\nprintf "%%s\\n" %s\n' "$needed" >"$root/image"
		[ -n "$needed" ] || printf '#!/bin/sh\nexit 1\n' >"$root/image"
		chmod +x "$root/image"
		found="$(bash -euc '
			. "$1"
			latchkey_image="$2"
			instmods() { echo "$hostonly: $*"; }
			hostonly=strict
			installkernel
		' bash "$here/90latchkey/module-setup.sh" "$root/image")"
		expect "$(echo "$found" | sed -n "s/^: dm_/dm_/p")" "$needed"
		expect "$(echo "$found" | sed -n "1s/ .*//p; \$s/ .*//p" | tr "\n" " ")" ": strict: "
	done
}

# dracut's set_systemd_timeout_for_dev makes a unit's name of what stands there.
lines_of_crypttab_name_the_devices_as_dracuts_own_do()
{
	initramfs
	cat >"$root/etc/crypttab" <<-END
		# name device
		a UUID=8A3d none luks,x-initrd.attach
		b PARTUUID="59454B4c-02" none x-initrd.attach,plain # a comment
		c /dev/vdb none luks,x-initrd.attach
		d LABEL=data none luks,x-initrd.attach
		e /dev/vdc none luks
		f /dev/vdd none luks,x-initrd.attach
		n UUID=3d4e none luks,nofail,x-initrd.attach
		o UUID=5f60 none luks,x-initrd.attach
		q PARTUUID=6a7b-01 none luks,x-initrd.attach
	END
	mkdir -p "$root/image/etc/latchkey"
	printf '8a3d a\n1b2c b\n3d4e n\n?6a7b q\n' >"$root/image/etc/latchkey/bound"
	echo "f /dev/disk/by-uuid/1 none luks" >"$root/image/etc/crypttab"
	bash -euc '. "$1"; hostonly=yes initdir="$2/image" dracutsysrootdir="$2"; latchkey_add_volumes' \
		bash "$here/90latchkey/module-setup.sh" "$root"
	expect "$(cut -d" " -f1,2 "$root/image/etc/crypttab" | tr "\n" " ")" \
		"f /dev/disk/by-uuid/1 a /dev/disk/by-uuid/8a3d b /dev/disk/by-partuuid/59454b4c-02 c /dev/vdb d LABEL=data n UUID=3d4e o UUID=5f60 q PARTUUID=6a7b-01 "
}

the_shutdown_is_to_close_what_the_agent_opened()
{
	initramfs
	# shellcheck disable=SC2016 # the hook runs it
	echo 'need_shutdown() { echo asked; }' >>"$root/lib/latchkey-lib.sh"
	hook finish
	expect "$output" "lives on"
	hook start
	hook finish
	expect "$output" "asked
lives on"
}

every_hook_is_passed_over_where_a_part_is_lost()
{
	for part in lib/latchkey-lib.sh usr/lib/latchkey/boot-functions; do
		initramfs
		rm "$root/$part"
		for hook in optional start wait resume finish wipe end; do
			hook "$hook"
			expect "$output" "lives on"
		done
		expect "$(calls)" ""
	done
}

# A program that is broken is never asked for anything else.
an_agent_that_never_begins_is_ended_and_the_boot_key_wiped()
{
	for never in 'exit 1' 'exec sleep 1000'; do
		initramfs
		echo "echo \$1 >>$root/calls; $never" >"$root/agent"
		hook start
		read -r agent <"$root/run/latchkey/started"
		hook wait
		expect "$output" "lives on"
		ends "$agent" || wrong "the agent still lives"
		[ ! -e "$key" ] || wrong "the boot key is still there"
		hook finish
		expect "$output $(calls)" "lives on unlock"
	done
}

an_agent_that_ended_is_tidied_up_after_once()
{
	initramfs
	hook start
	hook wait
	hook wait
	hook end
	expect "$output $(calls)" "lives on unlock wait cleanup wait withdraw"
	[ ! -e "$key" ] || wrong "the boot key is still there"
}

a_place_that_cannot_be_written_ends_no_shell()
{
	initramfs
	hook start
	ln -s "$root/run/latchkey/nowhere/ended" "$root/run/latchkey/ended"
	hook wait
	expect "$output" "lives on"
}

# dracut 106 removes a hook of the queue's end that said yes.
the_question_before_a_resume_is_asked_again()
{
	initramfs
	hook start
	rm -f "$root/none/initqueue/finished/"*
	hook wait
	expect "$output $(ls "$root/none/initqueue/finished")" "lives on 00-latchkey-resume.sh"
}

a_device_that_the_boot_does_without_is_not_wanted()
{
	initramfs
	units="$root/etc/systemd/system"
	printf 'root /dev/vda2 none luks\ndata /dev/data none luks,nofail' >"$root/etc/crypttab"
	for device in vda2 data; do
		mkdir -p "$units/initrd.target.wants" "$units/dev-$device.device.d"
		ln -s "../dev-$device.device" "$units/initrd.target.wants/"
	done
	hook optional
	expect "$output $(cd "$units/initrd.target.wants" && echo *)" "lives on dev-data.device dev-vda2.device" # the image does not say
	echo data >"$root/etc/latchkey/optional"
	hook optional
	expect "$output $(cd "$units" && echo *)" "lives on dev-vda2.device.d initrd.target.wants"
	expect "$(ls "$units/initrd.target.wants")" "dev-vda2.device"
	rm "$root/lib/dracut-dev-lib.sh"
	hook optional
	expect "$output" "lives on"
}

# An initramfs of a machine that has joined. The agent is a shell script.
initramfs()
{
	root="$top/root"
	rm -rf "$root"
	key="$root/etc/latchkey/servers/0123456789abcdef/boot.key"
	mkdir -p "${key%/*}" "$root/usr/bin" "$root/usr/lib/latchkey" "$root/lib" "$root/hooks" "$root/run" "$root/dev"
	echo "boot key" >"$key"
	cp "$here"/90latchkey/latchkey-*.sh "$root/hooks/"
	mv "$root/hooks/latchkey-lib.sh" "$root/lib/"
	cp "$root/hooks/latchkey-resume.sh" "$root/lib/"
	mkdir -p "$root/none/initqueue/finished"
	# shellcheck disable=SC2016 # the hook runs it
	echo 'dev_unit_name() { echo "dev-${1##*/}"; }' >"$root/lib/dracut-dev-lib.sh"
	cp "$here/../image/boot-functions" "$root/usr/lib/latchkey/"
	sed -i -e "s|/lib/latchkey-lib|$root/lib/latchkey-lib|g; s|/usr/lib/latchkey/|$root/usr/lib/latchkey/|g" \
		-e "s|/usr/bin/latchkey|$root/usr/bin/latchkey|g; s|/run/|$root/run/|g; s|/dev/console|$root/dev/console|" \
		-e "s|/lib/dracut-dev-lib|$root/lib/dracut-dev-lib|g; s|/lib/latchkey-resume|$root/lib/latchkey-resume|g" \
		-e "s|/etc/crypttab|$root/etc/crypttab|g; s|/etc/systemd|$root/etc/systemd|g" \
		-e "s|/etc/latchkey|$root/etc/latchkey|g" "$root"/hooks/* "$root"/lib/* "$root"/usr/lib/latchkey/*
	printf '#!/bin/sh\n. %s/agent\n' "$root" >"$root/usr/bin/latchkey"
	chmod +x "$root/usr/bin/latchkey"
	cat >"$root/agent" <<-END
		[ "\$1" != unlock ] || echo \$\$ >$root/run/latchkey/agent.pid
		# The agent starts beside it: a fixed order for the list of calls.
		[ "\$1" != wait ] || while grep -qs '^State:[[:space:]]*[A-Y]' /proc/\$(cat $root/run/latchkey/agent.pid)/status; do
			sleep 0.1
		done
		echo \$1 >>$root/calls
	END
}

hook()
{
	output="$(hookdir="$root/none" NEWROOT="$root" $shell -c ". $root/hooks/latchkey-$1.sh; echo lives on" 2>"$top/errors")" ||
		output="the shell ended"
}

# Not one that has ended and was not waited for.
# A signal takes its time on a busy machine.
ends()
{
	tries=0
	while runs "$1" && [ "$tries" -lt 100 ]; do
		sleep 0.1
		tries=$((tries + 1))
	done
	! runs "$1"
}

runs()
{
	grep -qs '^State:[[:space:]]*[A-Y]' "/proc/$1/status"
}

calls()
{
	[ ! -e "$root/calls" ] || tr '\n' ' ' <"$root/calls" | sed 's/ $//'
}

expect()
{
	[ "$1" = "$2" ] || wrong "$(printf "expected '%s'\n     found '%s'" "$2" "$1")"
}

wrong()
{
	failures=$((failures + 1))
	echo "FAILED ($shell): $1" >&2
	sed 's/^/    /' "$top/errors" >&2
}

main
