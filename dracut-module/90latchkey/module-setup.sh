#!/bin/bash
#
# Puts latchkey into the initramfs of a machine that has joined a key server. /usr/lib/latchkey/image says which files
# go in and refuses an image with a host key in it.
#
# What this needs of others: crypt and dm, for the native prompt that follows the agent. Never network-legacy, where DHCP
# data reaches a shell; the agent brings the network up by itself and takes it away again. Never rd.neednet=1: a boot
# without a network would end in the emergency shell.

latchkey_image=/usr/lib/latchkey/image
latchkey_binary=/usr/bin/latchkey
latchkey_askpass=/lib/cryptsetup/askpass

# called by dracut
check() {
    # A crash kernel unlocks nothing: its image is built with kdumpbase, or by hand under the name that kdump-tools looks for.
    # (In the ordinary image the agent sees /proc/vmcore and does nothing.)
    # shellcheck disable=SC2154 # dracut's
    [[ ${outfile##*/} == *kdump* || $outfile == */kdump/* ]] && return 1
    # shellcheck disable=SC2154 # dracut's: it looks for what single mounts need
    [[ $mount_needs ]] && return 1
    # shellcheck disable=SC2154 # dracut's
    [[ " $add_dracutmodules $force_add_dracutmodules " == *" kdumpbase "* ]] && return 1
    require_binaries "$latchkey_image" "$latchkey_binary" || return 1
    "$latchkey_image" joined || return 1
    return 0
}

# called by dracut
depends() {
    local modules="crypt dm"
    # What else shows systemd's native prompt, where this dracut has it apart.
    if dracut_module_included systemd; then
        for module in systemd-cryptsetup systemd-ask-password; do
            # shellcheck disable=SC2154 # dracut's
            compgen -G "$dracutbasedir/modules.d/[0-9][0-9]$module" >/dev/null && modules+=" $module"
        done
    fi
    echo "$modules"
}

# called by dracut
installkernel() {
    # af_packet is how DHCP is spoken; virtio's card, for an image that was built in a chroot.
    hostonly="" instmods af_packet dm_crypt virtio_pci virtio_net
    # What a volume with integrity protection needs, also where it is not open now.
    local modules
    mapfile -t modules < <("$latchkey_image" modules)
    [[ ${#modules[@]} -eq 0 ]] || hostonly="" instmods "${modules[@]}"
    # The drivers of all cards, or, for an image of this machine alone, of those it has.
    instmods "=drivers/net/ethernet" "=drivers/net/usb" "=drivers/net/phy" "=drivers/net/mdio" vmxnet3 hv_netvsc xen-netfront
}

# called by dracut
install() {
    if ! dracut_module_included systemd && [[ ! -x $latchkey_askpass ]]; then
        dwarning "latchkey: '$latchkey_askpass' is missing, and without it nobody could type a passphrase beside the agent:" \
            "this image is left without latchkey; install the package cryptsetup"
        return
    fi
    inst_simple "$latchkey_binary" || latchkey_stop
    # shellcheck disable=SC2154 # dracut's
    "$latchkey_image" add "$initdir" || latchkey_stop
    if dracut_module_included systemd; then
        latchkey_install_units
    else
        latchkey_install_scripts
    fi
    # shellcheck disable=SC2154 # dracut's
    inst_simple "$moddir/latchkey-lib.sh" /lib/latchkey-lib.sh || latchkey_stop
    inst_hook emergency 00 "$moddir/latchkey-end.sh"
    inst_hook shutdown-emergency 00 "$moddir/latchkey-end.sh"
    inst_multiple -o dd
    latchkey_add_volumes
    latchkey_expect_volumes
    "$latchkey_image" check "$initdir" || latchkey_stop
    latchkey_check_later_items
    dracut_need_initqueue
}

# crypttab's lines with systemd's word for the initramfs. dracut 059 knows its own word `force` alone, and leaves out what is no
# open LUKS device. An image for any machine has no crypttab.
latchkey_add_volumes() {
    local table="${dracutsysrootdir-}/etc/crypttab" name device key options
    [[ $hostonly && -f $table ]] || return 0
    while read -r name device key options _ || [[ $name ]]; do # a comment may follow
        [[ $name && $name != \#* && ,$options, == *,x-initrd.attach,* ]] || continue
        awk -v name="$name" '$1 == name { found = 1 } END { exit !found }' "$initdir/etc/crypttab" 2>/dev/null ||
            echo "$name $(latchkey_device "$name" "$device" "$options") $key $options" >>"$initdir/etc/crypttab"
    done <"$table"
}

# latchkey_device(name, device, options): as in dracut's own lines, udev's link in the place of a tag: of that the boot makes the
# name of a unit, and lifts systemd's limit for the device. Of a volume that the agent waits for; any other's limit stays.
latchkey_device() {
    local value="${2#*=}"
    value="${value#\"}"
    value="${value%\"}"
    if [[ ,$3, == *,nofail,* ]] || ! awk -v name="$1" '!/^\?/ && $2 == name { found = 1 } END { exit !found }' "$initdir/etc/latchkey/bound" 2>/dev/null; then
        echo "$2"
        return
    fi
    case "$2" in
    UUID=*) echo "/dev/disk/by-uuid/${value,,}" ;;
    PARTUUID=*) echo "/dev/disk/by-partuuid/${value,,}" ;;
    *) echo "$2" ;;
    esac
}

# An image for any machine has no crypttab; then the kernel command line must name the volumes, for dracut as for us.
latchkey_expect_volumes() {
    [[ -s $initdir/etc/crypttab ]] && return
    # What dracut copies after all modules may be it.
    # shellcheck disable=SC2154 # dracut's
    [[ " $install_items $install_optional_items " == *" /etc/crypttab "* ]] && return
    grep -qsw -e rd.luks.uuid -e rd.luks.name /proc/cmdline "$initdir"/etc/cmdline.d/*.conf && return
    dwarning "latchkey: this image names no volume to open: set hostonly=yes, or rd.luks.uuid= on the kernel command line"
}

latchkey_install_units() {
    # shellcheck disable=SC2154 # dracut's
    local units="$systemdsystemunitdir" unit
    # By their whole paths, which the installation may have put elsewhere.
    for unit in /usr/lib/systemd/system/latchkey-{unlock.service,gate@.service,check-root.service}; do
        inst_simple "$unit" "$units/${unit##*/}" || latchkey_stop
    done
    # shellcheck disable=SC2154 # dracut's
    inst_script "$moddir/latchkey-generator.sh" "$systemdutildir/system-generators/latchkey-generator"
    inst_hook cmdline 91 "$moddir/latchkey-optional.sh"
    inst_hook pre-pivot 99 "$moddir/latchkey-wipe.sh"
    # Beside the devices' appearing, not after it; and a root that was not looked at is not entered.
    mkdir -p "$initdir$units/sysinit.target.wants" "$initdir$units/initrd-cleanup.service.requires"
    ln_r "$units/latchkey-unlock.service" "$units/sysinit.target.wants/latchkey-unlock.service"
    ln_r "$units/latchkey-check-root.service" "$units/initrd-cleanup.service.requires/latchkey-check-root.service"
    # No credential is in memory when a hibernated system comes back.
    for unit in systemd-hibernate-resume.service systemd-hibernate-resume@.service; do
        inst_simple "$moddir/before-resume.conf" "$units/$unit.d/latchkey.conf"
    done
}

latchkey_install_scripts() {
    # The prompt that runs beside the agent's other work, and answers Plymouth too.
    inst_simple "$latchkey_askpass" || latchkey_stop
    inst_hook pre-trigger 90 "$moddir/latchkey-start.sh"
    # Before all else, but after what starts NetworkManager or ConnMan (99-nm-run, 99-cm-run), whose network the agent may be
    # waiting for; and before cryptroot-ask.
    local priority=00
    if dracut_module_included network-manager || dracut_module_included connman; then
        priority=99z
    fi
    inst_hook initqueue/settled "$priority" "$moddir/latchkey-wait.sh"
    inst_simple "$moddir/latchkey-resume.sh" /lib/latchkey-resume.sh || latchkey_stop
    inst_hook initqueue/finished 00 "$moddir/latchkey-resume.sh"
    inst_hook pre-pivot 99 "$moddir/latchkey-finish.sh"
    latchkey_guard_native_prompt
}

# The native prompt for a volume waits while the agent has it. Where the script is not what we know, it stays as it is:
# two prompts are better than none.
latchkey_guard_native_prompt() {
    local native="$initdir/sbin/cryptroot-ask"
    # shellcheck disable=SC2016 # the boot expands it
    local line='[ -b /dev/mapper/"$luksname" ] && exit 0'
    if grep -qxF "$line" "$native"; then
        # shellcheck disable=SC2016 # the boot expands it
        sed -i '/^\[ -b \/dev\/mapper\/"$luksname" \] && exit 0$/i [ ! -e /lib/latchkey-lib.sh ] || { . /lib/latchkey-lib.sh && latchkey_wait --volume "$luksname"; } # one prompt at a time' \
            "$native"
    else
        dwarning "latchkey: '$native' is not what this version knows; a volume may be prompted for twice"
    fi
}

# What dracut copies after all modules is not in the tree that was searched.
latchkey_check_later_items() {
    local item real
    # shellcheck disable=SC2154 # dracut's
    for item in $install_items $install_optional_items "${include_src[@]}"; do
        real=$(readlink -f -- "$item") || continue
        case "${real%/}/" in
        / | /etc/ | /etc/latchkey/ | /etc/latchkey/servers/*)
            dfatal "latchkey: '$item' would bring a host key into the initramfs; take it out of dracut's configuration"
            latchkey_stop
            ;;
        esac
    done
}

# No image is better than one with a host key in it; the old one stays.
latchkey_stop() {
    dfatal "latchkey: the image is not built"
    exit 1
}
