#!/bin/sh
#
# shellcheck disable=SC2016 # scripts are written here, not run
#
# Runs the boot scripts in a fake initramfs, with an agent that is a script, under dash and, where there is one,
# busybox. The absolute paths are replaced in copies of the scripts; nothing else of them is changed. That the real
# agent boots a real machine with them is what the boot tests show.

set -eu
here="$(cd "${0%/*}/.." && pwd)"
top="$(mktemp -d)"
trap 'end_agent; rm -rf "$top"' EXIT
failures=0

main()
{
	for shell in sh "busybox sh"; do
		command -v "${shell%% *}" >/dev/null || continue
		a_machine_that_has_not_joined_boots_as_before
		latchkey_off_skips_the_agent
		cryptopts_skips_the_agent
		without_crypttab_there_is_nothing_to_do
		the_native_prompt_follows_the_agent
		an_agent_that_crashes_leaves_the_native_prompt
		an_agent_that_never_begins_leaves_the_native_prompt
		scripts_that_lack_a_part_leave_the_native_prompt
		late_disks_are_waited_for_in_local_block
		an_agent_that_ends_in_local_block_leaves_the_native_prompt
		the_native_script_asks_whose_a_volume_is
		a_volume_that_the_boot_goes_on_without_is_not_prompted_for
		a_prompt_of_the_agent_is_waited_for
		a_broken_wait_waits_for_the_agent
		no_shell_before_the_credentials_are_gone
		a_good_root_boots_on
		a_foreign_root_stops_the_boot
		a_finish_that_is_killed_stops_no_boot_that_a_person_opened
		a_hibernated_machine_resumes_without_credentials
		a_system_that_hibernated_into_a_file_resumes_without_credentials
	done
	[ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
	echo "boot scripts: all passed"
}

a_machine_that_has_not_joined_boots_as_before()
{
	initramfs
	rm -r "$root/etc/latchkey"
	for stage in local-top local-block local-premount local-bottom panic; do
		run "$stage"
		expect "$status $output" "0 "
	done
	expect "$(calls)" ""
}

latchkey_off_skips_the_agent()
{
	initramfs
	echo "root=/dev/x latchkey=off quiet" >"$root/cmdline"
	run local-top
	expect "$status" 0
	run local-bottom
	expect "$status" 0
	expect "$(calls)" ""
	expect_wiped
}

cryptopts_skips_the_agent()
{
	initramfs
	echo "root=/dev/x cryptopts=" >"$root/cmdline"
	run local-top
	expect "$status $(calls)" "0 "
	expect_wiped
}

without_crypttab_there_is_nothing_to_do()
{
	initramfs
	true >"$root/cryptroot/crypttab"
	run local-top
	expect "$status $(calls)" "0 "
	expect_wiped
}

the_native_prompt_follows_the_agent()
{
	initramfs
	touch -d @1 "$root/cryptroot/crypttab"
	run local-top
	expect "$status" 0
	expect "$(calls)" "unlock wait:--device-timeout:5 cleanup"
	expect_wiped
	[ "$root/cryptroot/crypttab" -nt "$root/old" ] || wrong "cryptroot-unlock would say: try again later"
	expect "$(stat -c %a "$root/run/cryptsetup")" 700
}

an_agent_that_crashes_leaves_the_native_prompt()
{
	initramfs
	agent unlock 'kill -ABRT $$'
	agent cleanup 'kill -ABRT $$'
	run local-top
	expect "$status" 0
	expect_wiped
	run local-block
	expect "$status" 0
}

# A program that is broken is never asked for anything else.
an_agent_that_never_begins_leaves_the_native_prompt()
{
	for never in 'exit 1' 'exec sleep 1000'; do
		initramfs
		echo "echo unlock >>calls; $never" >"$root/agent/unlock"
		run local-top
		expect "$status" 0
		tries=0
		while lives && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done # a signal takes its time
		! lives || wrong "the agent still lives"
		run local-bottom
		expect "$status $output" "0 "
		expect "$(calls)" "unlock"
		expect_wiped
	done
}

# Parts of latchkey may be lost from an image; `image add` leaves no boot key in one without the functions.
scripts_that_lack_a_part_leave_the_native_prompt()
{
	for part in usr/lib/latchkey/boot-functions scripts/latchkey-functions; do
		initramfs
		rm "$root/$part"
		for stage in local-top local-block local-premount local-bottom panic; do
			run "$stage"
		done
		asked_in_vain
		expect "$(calls)" ""
	done
}

# Whatever but 0 lets the native script prompt.
asked_in_vain()
{
	! (cd "$root/agent" && $shell "$root/scripts/latchkey-holds" root 2>/dev/null) ||
		wrong "the native script does not prompt"
}

late_disks_are_waited_for_in_local_block()
{
	initramfs
	agent unlock 'while [ ! -e ended ]; do sleep 0.1; done'
	agent wait '[ "$4" = 1 ] || exit 1; touch ended; until_gone "$2"'
	run local-top
	expect "$status" 0
	lives || wrong "the agent was ended although its disks may still come"
	[ -e "$key" ] || wrong "the boot key was wiped under a living agent"
	run local-block
	expect "$status" 0
	! lives || wrong "local-block did not wait"
	run local-block
	expect "$(calls)" "unlock wait:--device-timeout:5 wait:--device-timeout:1 cleanup native:/dev/x"
	expect_wiped
}

# By then initramfs-tools may have given up on the root device: nothing else would prompt.
an_agent_that_ends_in_local_block_leaves_the_native_prompt()
{
	initramfs
	agent unlock 'while [ ! -e ended ]; do sleep 0.1; done; kill -ABRT $$'
	agent wait '[ "$4" = 1 ] || exit 1; touch ended; until_gone "$2"'
	agent cleanup 'kill -ABRT $$'
	run local-top
	run local-block
	expect "$status" 0
	expect "$(calls)" "unlock wait:--device-timeout:5 wait:--device-timeout:1 cleanup native:/dev/x"
	expect_wiped
}

the_native_script_asks_whose_a_volume_is()
{
	initramfs
	asked root 1 # no agent
	agent unlock 'mkdir -p ../run/latchkey/held; : >../run/latchkey/held/root; while [ ! -e ended ]; do sleep 0.1; done'
	agent wait 'exit 1'
	run local-top
	until [ -e "$root/run/latchkey/held/root" ]; do sleep 0.1; done
	asked root 0
	asked data 1 # not bound
	rm "$root/run/latchkey/held/root"
	asked root 1 # open
	true >"$root/run/latchkey/held/root"
	touch "$root/agent/ended"
	while lives; do sleep 0.1; done
	asked root 1
	asked root 1
	expect "$(calls | sed 's/ wait:--device-timeout:0//g')" "unlock wait:--device-timeout:5 cleanup"
	expect_wiped
}

# The script has read the line before the agent took it out.
a_volume_that_the_boot_goes_on_without_is_not_prompted_for()
{
	initramfs
	run local-top
	printf 'data' >"$root/etc/latchkey/optional"
	asked data 0
	asked root 1
	echo 'data UUID=y none luks,nofail' >>"$root/cryptroot/crypttab"
	asked data 1
}

# It has a volume that is there, and its prompt may stand: nobody else prompts beside it, for whichever volume.
a_prompt_of_the_agent_is_waited_for()
{
	initramfs
	agent unlock 'until [ -e ended ]; do sleep 0.1; done'
	agent wait '[ "$4" = 0 ] || exit 1; touch ended; until_gone "$2"'
	run local-top
	asked data 1
	! lives || wrong "the native prompt came beside the agent's"
	expect "$(calls)" "unlock wait:--device-timeout:5 wait:--device-timeout:0 cleanup"
	expect_wiped
}

# asked(volume, answer)
asked()
{
	answer=0
	(cd "$root/agent" && $shell "$root/scripts/latchkey-holds" "$1") || answer=$?
	expect "$1 $answer" "$1 $2"
}

a_broken_wait_waits_for_the_agent()
{
	initramfs
	agent unlock 'until grep -q wait calls; do sleep 0.1; done; sleep 0.3; echo done >>calls'
	agent wait 'exit 101'
	run local-top
	expect "$status" 0
	expect "$(calls)" "unlock wait:--device-timeout:5 done cleanup"
}

no_shell_before_the_credentials_are_gone()
{
	initramfs
	agent unlock 'while [ ! -e ended ]; do sleep 0.1; done'
	agent wait 'exit 1'
	agent cleanup 'touch ended'
	run local-top
	run panic
	expect "$status" 0
	expect "$(calls)" "unlock wait:--device-timeout:5 cleanup withdraw"
	expect_wiped
}

a_good_root_boots_on()
{
	initramfs
	run local-top
	run local-bottom
	expect "$status $output" "0 "
	expect "$(calls)" "unlock wait:--device-timeout:5 cleanup finish"
}

a_foreign_root_stops_the_boot()
{
	initramfs
	agent finish 'exit 1'
	run local-top
	echo root >"$root/run/latchkey/begun-automatically"
	run local-bottom
	case "$output" in *"panic: latchkey: root does not lie on"*) ;; *) wrong "no panic: $output" ;; esac
}

a_finish_that_is_killed_stops_no_boot_that_a_person_opened()
{
	initramfs
	agent finish 'kill -9 $$'
	run local-top
	run local-bottom
	case "$output" in *panic*) wrong "$output" ;; esac
}

a_hibernated_machine_resumes_without_credentials()
{
	for kind in swap swsuspend; do
		initramfs
		agent unlock 'while [ ! -e ended ]; do sleep 0.1; done'
		agent wait 'exit 1'
		agent cleanup 'touch ended'
		echo "$kind" >"$root/fstype"
		run local-top
		resume=/dev/x run local-premount
		case "$kind" in
		swap) expect "$(calls)" "unlock wait:--device-timeout:5" ;;
		*) expect "$(calls)" "unlock wait:--device-timeout:5 cleanup" ;;
		esac
	done
}

# The file system's type says nothing of a swap file in it.
a_system_that_hibernated_into_a_file_resumes_without_credentials()
{
	for mark in "" S1SUSPEND; do
		initramfs
		agent unlock 'while [ ! -e ended ]; do sleep 0.1; done'
		agent wait 'exit 1'
		agent cleanup 'touch ended'
		echo ext4 >"$root/fstype"
		head -c 12278 /dev/zero >"$root/device"
		printf '%s' "${mark:-SWAPSPACE}2" >>"$root/device"
		run local-top
		resume="$root/device" resume_offset=2 run local-premount
		case "$mark" in
		"") expect "$(calls)" "unlock wait:--device-timeout:5" ;;
		*) expect "$(calls)" "unlock wait:--device-timeout:5 cleanup" ;;
		esac
	done
}

# An initramfs of a machine that has joined. The agent is a copy of the shell: `latchkey WORD` runs the script WORD.
initramfs()
{
	end_agent
	rm -rf "$top/root"
	root="$top/root"
	key="$root/etc/latchkey/servers/0123456789abcdef/boot.key"
	mkdir -p "$root/etc/latchkey/servers/0123456789abcdef" "$root/usr/bin" "$root/cryptroot" "$root/run" "$root/agent" \
		"$root/usr/lib/latchkey"
	cp -r "$here/scripts" "$root/"
	cp "$here/../image/boot-functions" "$root/usr/lib/latchkey/"
	find "$root/scripts" "$root/usr/lib/latchkey" -type f -exec sed -i \
		-e "s|/scripts/|$root/scripts/|g; s|/usr/bin/latchkey|$root/usr/bin/latchkey|g; s|/run/|$root/run/|g" \
		-e "s|/etc/latchkey|$root/etc/latchkey|g; s|/cryptroot/|$root/cryptroot/|g" \
		-e "s|/usr/lib/latchkey/|$root/usr/lib/latchkey/|g; s|/proc/cmdline|$root/cmdline|" {} +
	cat >"$root/scripts/functions" <<-END
		wait_for_udev() { :; }
		panic() { echo "panic: \$*"; }
		modprobe() { :; }
		resolve_device() { echo "\$1"; }
		get_fstype() { cat "$root/fstype"; }
	END
	printf '#!/bin/sh\necho "native:$1" >>calls\n' >"$root/scripts/local-block/cryptroot"
	chmod +x "$root/scripts/local-block/cryptroot"
	cp "$(command -v dash)" "$root/usr/bin/latchkey"
	echo "id" >"$root/etc/latchkey/servers/0123456789abcdef/server.toml"
	echo "boot key" >"$key"
	echo "root UUID=x none luks" >"$root/cryptroot/crypttab"
	echo "root=/dev/mapper/root quiet" >"$root/cmdline"
	touch -d @1000 "$root/old"
	for word in unlock cleanup finish withdraw; do agent "$word" ''; done
	agent wait 'until_gone "$2"'
}

# No agent outlives its test.
end_agent()
{
	if [ -e "$top/root/run/latchkey/started" ] && "$top/root/scripts/latchkey-agent-lives"; then
		kill "$(cat "$top/root/run/latchkey/started")"
	fi
}

# agent(word, what it does)
agent()
{
	{
		case "$1" in
		wait)
			# The agent starts beside it: a fixed order for the list of calls.
			echo 'until grep -qs unlock calls; do sleep 0.1; done; echo "wait:$3:$4" >>calls'
			echo 'until_gone() { while readlink "/proc/$1/exe" >/dev/null; do sleep 0.1; done; }'
			;;
		unlock) echo 'echo unlock >>calls; : >../run/latchkey/agent.pid' ;;
		*) echo "echo $1 >>calls" ;;
		esac
		echo "$2"
	} >"$root/agent/$1"
}

calls()
{
	[ ! -e "$root/agent/calls" ] || tr '\n' ' ' <"$root/agent/calls" | sed 's/ $//'
}

lives()
{
	"$root/scripts/latchkey-agent-lives"
}

run()
{
	status=0
	output="$(cd "$root/agent" && resume="${resume-}" $shell "$root/scripts/$1/latchkey" /dev/x 2>"$root/errors")" || status=$?
}

expect()
{
	[ "$1" = "$2" ] || wrong "$(printf "expected '%s'\n     found '%s'" "$2" "$1")"
}

expect_wiped()
{
	[ ! -e "$key" ] || wrong "the boot key is still there"
}

wrong()
{
	failures=$((failures + 1))
	echo "FAILED ($shell): $1" >&2
	[ ! -s "$root/errors" ] || sed 's/^/    /' "$root/errors" >&2
}

main
