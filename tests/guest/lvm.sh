#!/bin/sh
# Makes a machine with LVM in its LUKS2 volume of the one that essential.sh and customize.sh leave in the tree ($1), as
# Debian's installer would. Runs on the host after each of them.
# Environment: MAPPING, FRAMEWORK (initramfs-tools or dracut), KERNEL_WORDS.
set -eu
tree=$1

if [ ! -e "$tree/boot/grub/grub.cfg" ]; then
    sed -i "s,^/dev/mapper/$MAPPING ,/dev/mapper/vg-root ," "$tree/etc/fstab"
    echo '/dev/mapper/vg-swap none swap sw 0 0' >> "$tree/etc/fstab"
    if [ "$FRAMEWORK" = initramfs-tools ]; then
        mkdir -p "$tree/etc/initramfs-tools/conf.d"
        echo 'RESUME=/dev/mapper/vg-swap' > "$tree/etc/initramfs-tools/conf.d/resume"
    fi
else
    sed -i "s,root=/dev/mapper/$MAPPING ,$KERNEL_WORDS ," "$tree/boot/grub/grub.cfg"
fi
