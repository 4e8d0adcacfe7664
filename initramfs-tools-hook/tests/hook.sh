#!/bin/sh
# shellcheck disable=SC2016 # scripts are written here, not run
#
# Runs the hook against a fake machine and looks at the image tree that it leaves. No root, no initramfs-tools
# needed: where that is not installed, a few lines stand in for its hook-functions. The paths of the machine are
# replaced in copies of the scripts; nothing else of them is changed.
#
# Usage: hook.sh            the hook of this folder
#        INITRAMFS_TOOLS=D  with the hook-functions in D instead of /usr/share/initramfs-tools

set -eu
here="$(cd "${0%/*}/.." && pwd)"
tools="${INITRAMFS_TOOLS:-/usr/share/initramfs-tools}"
top="$(mktemp -d)"
trap 'rm -rf "$top"' EXIT
failures=0

# The base64 of an Ed25519 key in PKCS#8 has this shape; the key is not one.
host_key_body=MC4CAQAwBQYDK2VwBCIEIHNvbWV0aGluZyB0aGF0IG11c3Qgbm90IGxlYXZl

main()
{
	nothing_on_a_machine_that_has_not_joined
	only_the_files_of_the_boot
	where_headers_cannot_be_read_the_image_does_not_say_what_is_bound
	files_of_volumes_are_for_root_alone
	a_file_of_a_volume_that_cannot_be_copied_is_no_reason_to_fail
	the_image_of_a_crash_kernel_is_left_alone
	a_half_removed_latchkey_is_no_reason_to_fail
	the_image_says_when_it_was_built
	each_image_has_a_build_id_that_the_machine_remembers
	where_nothing_can_be_noted_there_is_an_image_all_the_same
	modules_for_the_network
	modules_for_volumes_with_integrity
	a_volume_whose_modules_are_not_known_is_no_reason_to_fail
	an_incomplete_server_is_left_out
	a_join_that_was_not_finished_stays_out
	a_missing_binary_is_no_reason_to_fail
	host_key_by_its_name_is_refused
	host_key_by_its_content_is_refused
	a_late_hook_is_searched_too
	the_search_is_repeated_only_after_other_hooks
	an_open_boot_key_is_refused
	an_open_image_is_refused
	umask_only_when_joined
	native_prompt_is_guarded
	an_unknown_native_prompt_is_left_alone
	every_script_is_good_shell
	latchkey_comes_before_the_native_prompt
	[ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
	echo "hook: all passed"
}

nothing_on_a_machine_that_has_not_joined()
{
	machine
	rm -r "$root/etc/latchkey/servers"
	run_hook
	expect "$status" 0
	expect "$(cd "$image" && find . -type f | sort)" "./scripts/local-top/cryptroot"
	expect "$(cat "$image/scripts/local-top/cryptroot")" "$(cat "$root/cryptroot")"
	expect "$modules" ""
}

only_the_files_of_the_boot()
{
	machine
	run_hook
	expect "$status" 0
	expect "$(cd "$image" && find usr etc -type f -printf '%m %p\n' | sort -k 2)" "\
644 etc/hosts
600 etc/latchkey/bound
600 etc/latchkey/config.toml
600 etc/latchkey/image.toml
600 etc/latchkey/network.json
600 etc/latchkey/optional
600 etc/latchkey/servers/0123456789abcdef/boot.key
600 etc/latchkey/servers/0123456789abcdef/boot.pem
600 etc/latchkey/servers/0123456789abcdef/ca.pem
600 etc/latchkey/servers/0123456789abcdef/server.toml
755 usr/bin/latchkey
644 usr/lib/latchkey/boot-functions"
	expect "$(find "$image/etc/latchkey" -type d -printf '%m\n' | sort -u)" 700
	expect "$(cat "$image/etc/latchkey/servers/0123456789abcdef/boot.key")" "boot key"
	expect "$(cat "$image/etc/latchkey/bound")" "a UUID"
}

where_headers_cannot_be_read_the_image_does_not_say_what_is_bound()
{
	machine
	printf '#!/bin/sh\necho a UUID; exit 1\n' >"$root/usr/bin/latchkey"
	run_hook
	expect "$status" 0
	[ ! -e "$image/etc/latchkey/bound" ] || wrong "the image says what nobody could read"
	[ ! -e "$image/etc/latchkey/optional" ] || wrong "the image says what the boot may go on without, and nobody knows"
}

files_of_volumes_are_for_root_alone()
{
	machine
	mkdir -p "$root/etc/latchkey/envelopes" "$root/etc/keys"
	echo envelope >"$root/etc/latchkey/envelopes/words and more.json"
	echo header >"$root/etc/keys/data.header"
	mkdir -p "$image$root/etc/keys"
	echo old >"$image$root/etc/keys/data.header"
	chmod 0644 "$image$root/etc/keys/data.header"
	cat >"$root/usr/bin/latchkey" <<-END
		#!/bin/sh
		[ "\$1" = image-files ] || exit 0
		echo '$root/etc/latchkey/envelopes/words and more.json'
		echo '$root/etc/keys/data.header'
		echo '$server/host.key'
		echo relative
	END
	run_hook
	expect "$status" 0
	expect "$(cd "$image$root" && find . -type f -printf '%m %p\n' | sort)" "\
600 ./etc/keys/data.header
600 ./etc/latchkey/envelopes/words and more.json"
	expect "$(cat "$image$root/etc/keys/data.header")" header
	expect_output "is no file of a volume"
}

a_file_of_a_volume_that_cannot_be_copied_is_no_reason_to_fail()
{
	machine
	mkdir -p "$root/etc/latchkey/envelopes" "$root/etc/keys"
	echo envelope >"$root/etc/latchkey/envelopes/words.json"
	cat >"$root/usr/bin/latchkey" <<-END
		#!/bin/sh
		[ "\$1" = image-files ] || exit 0
		echo "latchkey: warning: a header is not there" >&2
		echo '$root/etc/keys'
		echo '$root/etc/keys/gone.header'
		echo '$root/etc/latchkey/envelopes/words.json'
	END
	run_hook
	expect "$status" 0
	[ ! -e "$image$root/etc/keys/gone.header" ] || wrong "an empty header in the image"
	[ -s "$image$root/etc/latchkey/envelopes/words.json" ] || wrong "the envelope after it is left out"
	expect_output "a header is not there"
	expect_output "'$root/etc/keys/gone.header' is not in the image"
}

the_image_of_a_crash_kernel_is_left_alone()
{
	machine
	run_hook CONFDIR=/var/lib/kdump/initramfs-tools
	expect "$status" 0
	[ ! -e "$image/etc/latchkey" ] || wrong "a boot key in the image of a crash kernel"
}

a_half_removed_latchkey_is_no_reason_to_fail()
{
	for part in image boot-functions; do
		machine
		rm "$root/$part"
		run_hook
		expect "$status" 0
		[ ! -e "$image/etc/latchkey" ] || wrong "without '$part' something in the image"
		expect_output "is missing"
	done
}

the_image_says_when_it_was_built()
{
	machine
	before="$(date +%s)"
	run_hook
	built="$(sed -n 's/^built = //p' "$image/etc/latchkey/image.toml")"
	if [ "$built" -lt "$before" ] || [ "$built" -gt "$(date +%s)" ]; then wrong "built = '$built'"; fi
	expect "$(sed -n 2p "$image/etc/latchkey/image.toml")" 'init = "/sbin/init"'
}

each_image_has_a_build_id_that_the_machine_remembers()
{
	machine
	ids=""
	for build in 1 2 3 4 5 6 7 8 9 10; do
		run_hook
		expect "$status" 0
		id="$(sed -n 's/^build-id = "\([0-9a-f]\{64\}\)"$/\1/p' "$image/etc/latchkey/image.toml")"
		[ -n "$id" ] || wrong "no build id in image $build"
		case "$ids" in *"$id"*) wrong "the build id of image $build came before" ;; esac
		ids="$id
$ids"
		rm -r "$image/etc/latchkey"
	done
	expect "$(cat "$root/var/lib/latchkey/images")" "$(echo "$ids" | head -n 8)"
	expect "$(stat -c %a "$root/var/lib/latchkey/images")" 600
}

where_nothing_can_be_noted_there_is_an_image_all_the_same()
{
	machine
	mkdir -p "$root/var/lib"
	echo "in the way" >"$root/var/lib/latchkey"
	run_hook
	expect "$status" 0
	expect_output "failed to note the build id"
	grep -q '^build-id = ' "$image/etc/latchkey/image.toml" || wrong "no build id in the image"
}

modules_for_the_network()
{
	machine
	run_hook MODULES=most
	expect "$modules" "af_packet dm_mod dm_crypt"
	run_hook MODULES=dep
	expect "${modules%% virtio_pci*}" "af_packet dm_mod dm_crypt"
	case "$modules" in *"virtio_pci virtio_net"*) ;; *) wrong "no virtio for MODULES=dep: $modules" ;; esac
}

modules_for_volumes_with_integrity()
{
	machine
	cat >"$root/usr/bin/latchkey" <<-'END'
		#!/bin/sh
		[ "$1" = image-modules ] || exit 0
		printf '%s\n' crypto-authenc crypto-sha256 dm_integrity '../evil' '-a' ''
	END
	run_hook MODULES=most
	expect "$status" 0
	expect "$modules" "af_packet dm_mod dm_crypt crypto-authenc crypto-sha256 dm_integrity"
	expect_output "'../evil' is no module"
	expect_output "'-a' is no module"
	run_hook MODULES=dep
	case "$modules" in
	"af_packet dm_mod dm_crypt crypto-authenc crypto-sha256 dm_integrity virtio_pci virtio_net"*) ;;
	*) wrong "MODULES=dep: $modules" ;;
	esac
}

a_volume_whose_modules_are_not_known_is_no_reason_to_fail()
{
	machine
	printf '#!/bin/sh\n[ "$1" != image-modules ] || { echo "no such device" >&2; exit 1; }\n' >"$root/usr/bin/latchkey"
	run_hook
	expect "$status" 0
	expect "$modules" "af_packet dm_mod dm_crypt"
}

an_incomplete_server_is_left_out()
{
	machine
	mkdir "$root/etc/latchkey/servers/fedcba9876543210"
	echo x >"$root/etc/latchkey/servers/fedcba9876543210/boot.key"
	run_hook
	expect "$status" 0
	expect "$(ls "$image/etc/latchkey/servers")" 0123456789abcdef
	expect_output "incomplete and left out"
}

a_join_that_was_not_finished_stays_out()
{
	machine
	cp -r "$server" "$root/etc/latchkey/servers/fedcba9876543210.joining"
	run_hook
	expect "$status" 0
	expect "$(ls "$image/etc/latchkey/servers")" 0123456789abcdef
	rm -r "$server"
	rm -r "$image/etc/latchkey"
	run_hook
	expect "$status" 0
	[ ! -e "$image/etc/latchkey" ] || wrong "a machine that has not joined has something in its image"
	cp "$root/etc/latchkey/servers/fedcba9876543210.joining/host.key" "$image/copied"
	run_hook
	expect "$status" 1
}

a_missing_binary_is_no_reason_to_fail()
{
	machine
	rm "$root/usr/bin/latchkey"
	run_hook
	expect "$status" 0
	[ ! -e "$image/etc/latchkey" ] || wrong "a boot key without an agent"
	expect_output "is missing"
}

host_key_by_its_name_is_refused()
{
	machine
	mkdir -p "$image/etc/latchkey/servers/0123456789abcdef"
	cp "$root/etc/latchkey/servers/0123456789abcdef/host.key" "$image/etc/latchkey/servers/0123456789abcdef/"
	run_hook
	expect "$status" 1
	expect_output "would get into the initramfs"
	expect_output "in the image: /etc/latchkey/servers/0123456789abcdef/host.key"
}

host_key_by_its_content_is_refused()
{
	machine
	mkdir -p "$image/some/where"
	printf 'junk \0 %s\n' "$host_key_body" >"$image/some/where/else"
	run_hook
	expect "$status" 1
	expect_output "in the image: /some/where/else"
	case "$output" in *"$host_key_body"*) wrong "the message repeats the key" ;; esac
}

a_late_hook_is_searched_too()
{
	machine
	run_hook
	expect "$status" 0
	cp "$root/etc/latchkey/servers/0123456789abcdef/host.key" "$image/copied"
	run_hook_again check
	expect "$status" 1
	rm "$image/copied"
	run_hook_again check
	expect "$status" 0
}

the_search_is_repeated_only_after_other_hooks()
{
	machine
	mkdir "$root/hooks"
	printf '#!/bin/sh\necho "searched: $1"\n' >"$root/usr/bin/search"
	chmod +x "$root/usr/bin/search"
	sed "s|/usr/share/initramfs-tools/hooks/latchkey|$root/usr/bin/search|" "$here/etc-hooks/latchkey-check" \
		>"$root/hooks/latchkey-check"
	chmod +x "$root/hooks/latchkey-check"
	expect "$("$root/hooks/latchkey-check" prereqs)" ""
	expect "$("$root/hooks/latchkey-check")" ""
	# Nor does mkinitramfs run these, as long as nobody names them.
	true >"$root/hooks/README"
	true >"$root/hooks/own~"
	echo 'if' >"$root/hooks/broken"
	chmod +x "$root/hooks/own~" "$root/hooks/broken"
	cp "$here/hooks/latchkey" "$root/hooks/latchkey"
	chmod -x "$root/hooks/latchkey"
	expect "$("$root/hooks/latchkey-check" prereqs)" ""
	expect "$("$root/hooks/latchkey-check")" ""
	expect "$(sh "$root/hooks/latchkey" prereqs)" latchkey-check
	true >"$root/hooks/own"
	chmod +x "$root/hooks/own"
	expect "$("$root/hooks/latchkey-check" prereqs)" own
	expect "$("$root/hooks/latchkey-check")" "searched: check"
}

an_open_boot_key_is_refused()
{
	machine
	run_hook
	chmod 0640 "$image/etc/latchkey/servers/0123456789abcdef/boot.key"
	run_hook_again check
	expect "$status" 1
	expect_output "may be read by others"
}

an_open_image_is_refused()
{
	machine
	mask=0022
	run_hook
	expect "$status" 1
	expect_output "the umask is 0022"
}

umask_only_when_joined()
{
	machine
	expect "$(UMASK=0022; . "$root/conf"; echo "$UMASK")" 0077
	rm "$root/etc/latchkey/servers/0123456789abcdef/boot.key"
	expect "$(UMASK=0022; . "$root/conf"; echo "$UMASK")" 0022
}

# For each volume: one that is held does not keep the others waiting.
native_prompt_is_guarded()
{
	machine
	run_hook
	sed "s|/scripts/latchkey-holds|$root/holds|" "$image/scripts/local-top/cryptroot" >"$root/native"
	chmod +x "$root/native"
	expect "$("$root/native" 2>/dev/null | sed 's/.*://' | tr -d '\n')" " root root data data" # no such program: prompt
	printf '#!/bin/sh\necho "$1" >>%s/asked\n[ "$1" = data ]\n' "$root" >"$root/holds"
	chmod +x "$root/holds"
	expect "$("$root/native" | sed 's/.*://' | tr -d '\n')" " root root"
	# At first, and before each attempt.
	expect "$(tr '\n' ' ' <"$root/asked")" "root root root data "
}

an_unknown_native_prompt_is_left_alone()
{
	machine
	printf '#!/usr/bin/perl\nprint "native prompt"\n' >"$image/scripts/local-top/cryptroot"
	cp "$image/scripts/local-top/cryptroot" "$root/cryptroot"
	run_hook
	expect "$status" 0
	expect_output "is not what this version knows"
	expect "$(cat "$image/scripts/local-top/cryptroot")" "$(cat "$root/cryptroot")"
}

every_script_is_good_shell()
{
	for script in "$here"/hooks/* "$here"/etc-hooks/* "$here"/conf-hooks.d/* "$here"/scripts/latchkey-* \
		"$here"/scripts/*/latchkey; do
		sh -n "$script" || wrong "$script"
		case "$script" in
		*/conf-hooks.d/* | *-functions) ;;
		*) [ -x "$script" ] || wrong "not executable: $script" ;;
		esac
	done
}

# initramfs-tools sorts by tsort: local-top/cryptroot asks to come after all others.
latchkey_comes_before_the_native_prompt()
{
	mkdir -p "$top/local-top"
	cp "$here/scripts/local-top/latchkey" "$top/local-top/"
	for other in iscsi zfs cryptroot; do : >"$top/local-top/$other"; done
	order="$({
		for script in latchkey iscsi zfs cryptroot; do echo "$script $script"; done
		for before in $("$top/local-top/latchkey" prereqs); do echo "$before latchkey"; done
		for before in latchkey iscsi zfs; do echo "$before cryptroot"; done
	} | tsort | tail -n 2 | tr '\n' ' ')"
	expect "$order" "latchkey cryptroot "
}

# A machine that has joined one key server, and the image as mkinitramfs hands it to the hooks.
machine()
{
	rm -rf "$top/root" "$top/image"
	root="$top/root" image="$top/image" mask=0077
	server="$root/etc/latchkey/servers/0123456789abcdef"
	mkdir -p "$server" "$root/usr/bin" "$root/lib" "$image/etc" "$image/usr/bin" "$image/scripts/local-top"
	echo network >"$root/etc/latchkey/network.json"
	echo config >"$root/etc/latchkey/config.toml"
	echo "192.0.2.1 keys" >"$root/etc/hosts"
	echo never >"$root/etc/latchkey/other-secret"
	for file in server.toml ca.pem boot.pem host.pem; do echo "$file" >"$server/$file"; done
	echo "boot key" >"$server/boot.key"
	printf -- '-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n' "$host_key_body" >"$server/host.key"
	printf '#!/bin/sh\n[ "$1" = image-modules ] || echo a UUID\n' >"$root/usr/bin/latchkey"
	chmod 0755 "$root/usr/bin/latchkey"
	cat >"$root/cryptroot" <<-'END'
		#!/bin/sh
		setup_mapping() {
		    local count=0 maxtries=2
		    while [ $maxtries -le 0 ] || [ $count -lt $maxtries ]; do
		        echo "native prompt: $CRYPTTAB_NAME"
		        count=$(( $count + 1 ))
		    done
		}
		for CRYPTTAB_NAME in root data; do setup_mapping; done
	END
	cp "$root/cryptroot" "$image/scripts/local-top/cryptroot"
	with_paths "$here/hooks/latchkey" >"$root/hook"
	with_paths "$here/../image/image" >"$root/image"
	chmod 0755 "$root/image"
	cp "$here/../image/boot-functions" "$root/"
	with_paths "$here/conf-hooks.d/latchkey" >"$root/conf"
	hook_functions >"$root/hook-functions"
}

with_paths()
{
	sed -e "s|/usr/share/initramfs-tools/hook-functions|$root/hook-functions|" \
		-e "s|/var/lib/latchkey|$root/var/lib/latchkey|" \
		-e "s|^binary=.*|binary=$root/usr/bin/latchkey|" \
		-e "s|copy_exec \"\$binary\" \"\$binary\"|copy_exec \"\$binary\" /usr/bin/latchkey|" \
		-e "s|^config=.*|config=$root/etc/latchkey|" \
		-e "s|^hosts=.*|hosts=$root/etc/hosts|" \
		-e "s|^functions=.*|functions=$root/boot-functions|" \
		-e "s|\\\$tree\\\$functions|\$tree/usr/lib/latchkey/boot-functions|; s|\\\$tree\\\${functions%/\\*}|\$tree/usr/lib/latchkey|" \
		-e "s|^image=.*|image=$root/image|" \
		-e "s| /etc/latchkey/servers| $root/etc/latchkey/servers|" "$1"
}

hook_functions()
{
	if [ -f "$tools/hook-functions" ]; then
		echo ". '$tools/hook-functions'"
	else
		cat <<-'END'
			copy_exec() { mkdir -p "$DESTDIR/${2%/*}" && cp -p "$1" "$DESTDIR/$2"; }
			sys_walk_mod_add() { :; }
		END
	fi
	echo "manual_add_modules() { echo \"\$*\" >>'$root/modules'; }"
}

# run_hook [NAME=VALUE…]: as mkinitramfs calls it.
run_hook()
{
	rm -f "$root/modules"
	run_hook_again "" "$@"
}

run_hook_again()
{
	argument="$1"
	[ $# -eq 0 ] || shift
	status=0
	# shellcheck disable=SC2086 # an argument that may be missing
	output="$(umask "$mask"; env DESTDIR="$image" verbose=n version=6.1 MODULES=most "$@" \
		sh "$root/hook" $argument 2>&1)" || status=$?
	modules=""
	[ ! -e "$root/modules" ] || modules="$(tr '\n' ' ' <"$root/modules" | sed 's/ $//')"
}

expect()
{
	[ "$1" = "$2" ] || wrong "$(printf "expected '%s'\n     found '%s'" "$2" "$1")"
}

expect_output()
{
	case "$output" in *"$1"*) ;; *) wrong "no '$1' in: $output" ;; esac
}

wrong()
{
	failures=$((failures + 1))
	echo "FAILED: $1" >&2
}

main
