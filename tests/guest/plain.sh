#!/bin/sh
# Makes a machine with its root in plain dm-crypt of the one that essential.sh and customize.sh leave in the tree ($1). Runs
# on the host after each of them.
# Environment: MAPPING, FRAMEWORK (initramfs-tools or dracut).
set -eu
tree=$1

# The second partition of the disk that disk.rs makes.
line="$MAPPING PARTUUID=59454b4c-02 none plain,cipher=twofish-xts-plain64,hash=sha512,size=512"
if [ ! -e "$tree/boot/grub/grub.cfg" ]; then
    # As in essential.sh: a chroot has no such device.
    echo "$line,initramfs" > "$tree/etc/crypttab"
    # A device would tell which modules the image of a machine that is not bound yet needs.
    mkdir -p "$tree/etc/initramfs-tools/hooks"
    cat > "$tree/etc/initramfs-tools/hooks/rig-twofish" <<'HOOK'
#!/bin/sh
[ "$1" = prereqs ] && exit
. /usr/share/initramfs-tools/hook-functions
manual_add_modules twofish_generic twofish_x86_64
HOOK
    chmod 0755 "$tree/etc/initramfs-tools/hooks/rig-twofish"
    exit
fi
rm "$tree/etc/initramfs-tools/hooks/rig-twofish"
if [ "$FRAMEWORK" = initramfs-tools ]; then
    echo "$line" > "$tree/etc/crypttab"
else
    echo "$line,x-initrd.attach" > "$tree/etc/crypttab"
    version=$(ls "$tree/lib/modules")
    chroot "$tree" dracut --force --no-hostonly --install /etc/crypttab \
        --add-drivers 'twofish_generic twofish_x86_64' --compress 'zstd -1 -q' \
        "/boot/initrd.img-$version" "$version"
fi
