#!/bin/sh
# Makes a machine whose root is not encrypted of the one that essential.sh and customize.sh leave in the tree ($1). Runs on
# the host after each of them.
# Environment: MAPPING, KERNEL_WORDS.
set -eu
tree=$1

rm -f "$tree/etc/crypttab"
if [ ! -e "$tree/boot/grub/grub.cfg" ]; then
    sed -i "s,^/dev/mapper/$MAPPING ,${KERNEL_WORDS#root=} ," "$tree/etc/fstab"
else
    sed -i "s,root=/dev/mapper/$MAPPING ,$KERNEL_WORDS ," "$tree/boot/grub/grub.cfg"
fi
