#!/bin/sh
# Runs on the host after Debian's essential packages are in the tree ($1) and before all others, so that the
# kernel's first initramfs already knows the encrypted root.
# Environment: ROOT_UUID, BOOT_UUID, MAPPING, FRAMEWORK (initramfs-tools or dracut).
set -eu
tree=$1

echo debian-rig > "$tree/etc/hostname"
printf '127.0.0.1\tlocalhost\n127.0.1.1\tdebian-rig\n' > "$tree/etc/hosts"

# A chroot has no device of that UUID; the option 'initramfs' makes initramfs-tools' hook take the entry all the same.
# customize.sh then leaves the line as Debian's installer writes it.
echo "$MAPPING UUID=$ROOT_UUID none luks,discard,initramfs" > "$tree/etc/crypttab"
cat > "$tree/etc/fstab" <<TABLE
/dev/mapper/$MAPPING / ext4 errors=remount-ro 0 1
UUID=$BOOT_UUID /boot ext4 defaults 0 2
TABLE

mkdir -p "$tree/etc/network"
cat > "$tree/etc/network/interfaces" <<TABLE
# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug ens3
iface ens3 inet dhcp
TABLE
