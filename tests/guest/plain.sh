#!/bin/sh
# Makes a machine with its root in plain dm-crypt of the one that essential.sh and customize.sh leave in the tree ($1). Runs
# on the host after each of them.
# Environment: MAPPING, FRAMEWORK (initramfs-tools or dracut).
set -eu
tree=$1

# The second partition of the disk that disk.rs makes.
line="$MAPPING PARTUUID=59454b4c-02 none plain,cipher=aes-xts-plain64,hash=sha512,size=512"
if [ ! -e "$tree/boot/grub/grub.cfg" ]; then
    # As in essential.sh: a chroot has no such device.
    echo "$line,initramfs" > "$tree/etc/crypttab"
    exit
fi
if [ "$FRAMEWORK" = initramfs-tools ]; then
    echo "$line" > "$tree/etc/crypttab"
else
    echo "$line,x-initrd.attach" > "$tree/etc/crypttab"
    version=$(ls "$tree/lib/modules")
    chroot "$tree" dracut --force --no-hostonly --install /etc/crypttab --compress 'zstd -1 -q' \
        "/boot/initrd.img-$version" "$version"
fi
