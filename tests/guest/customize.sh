#!/bin/sh
# Runs on the host when all packages are in the tree ($1): boot loader, the rig's init and command channel.
# Environment: ROOT_UUID, MAPPING, FRAMEWORK (initramfs-tools or dracut), RECIPE (the folder with the files beside this
# script), and mmdebstrap's own.
set -eu
tree=$1

echo "$MAPPING UUID=$ROOT_UUID none luks,discard" > "$tree/etc/crypttab"

if [ "$FRAMEWORK" = initramfs-tools ]; then
    # dropbear-initramfs would change the boot of every machine, so its packages only lie ready.
    mkdir -p "$tree/opt/rig/dropbear/partial"
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes --download-only --no-install-recommends \
        -o Dir::Cache::Archives="$tree/opt/rig/dropbear/" install dropbear-initramfs
    rm -rf "$tree/opt/rig/dropbear/partial" "$tree/opt/rig/dropbear/lock"
fi

install -D -m 0755 "$RECIPE/channel" "$tree/usr/lib/rig/channel"
install -D -m 0644 "$RECIPE/rig-channel.service" "$tree/etc/systemd/system/rig-channel.service"
install -D -m 0644 "$RECIPE/rig-bare.target" "$tree/etc/systemd/system/rig-bare.target"
install -D -m 0644 "$RECIPE/rig-bare.service" "$tree/etc/systemd/system/rig-bare.service"
install -D -m 0755 "$RECIPE/generator" "$tree/etc/systemd/system-generators/rig"
chroot "$tree" systemctl enable rig-channel.service
chroot "$tree" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer
chroot "$tree" dpkg-divert --local --rename --divert /sbin/init.systemd /sbin/init
install -m 0755 "$RECIPE/init" "$tree/sbin/init"

# The kernel's files keep Debian's names; update-initramfs in the guest replaces them in place.
version=$(ls "$tree/lib/modules")
if [ "$FRAMEWORK" = dracut ]; then
    # The first image is for any machine, as a chroot's must be; the guest builds those that follow for itself.
    chroot "$tree" dracut --force --no-hostonly --install /etc/crypttab --compress 'zstd -1 -q' \
        "/boot/initrd.img-$version" "$version"
    printf '%s\n' 'hostonly=yes' 'compress="zstd -1 -q"' > "$tree/etc/dracut.conf.d/rig.conf"
fi
mkdir -p "$tree/boot/grub"
sed -e "s/@VERSION@/$version/g" -e "s/@MAPPING@/$MAPPING/g" "$RECIPE/grub.cfg" > "$tree/boot/grub/grub.cfg"
cp "$tree/usr/lib/grub/i386-pc/boot.img" "$tree/boot/grub/boot.img"
chroot "$tree" grub-mkimage -O i386-pc -o /boot/grub/core.img -p '(hd0,msdos1)/grub' \
    biosdisk part_msdos ext2 normal linux serial terminal smbios echo test

echo 6c617463686b65790000000000000001 > "$tree/etc/machine-id"
rm -f "$tree/etc/resolv.conf"
