#!/bin/sh
# Builds a Vagrant box (libvirt) from Debian packages, with all dependencies of the live tests.
#
# usage: vagrant/mkbox.sh NAME USERLAND SUITE PACKAGE BOX [EXTRA PACKAGE...]
#   NAME      name of the machine
#   USERLAND  Debian release of the box
#   SUITE     Debian suite of the kernel; any combination with USERLAND works
#   PACKAGE   name or pattern of the kernel's package
#   BOX       output file
#
# Needs root, but no loop device or mount: mkfs populates the file system from a directory, and GRUB
# is written directly into the image. MIRROR names a Debian mirror; default: that of the host's apt.
set -eu
umask 022

NAME=$1 USERLAND=$2 SUITE=$3 PACKAGE=$4 BOX=$5
shift 5
PROJECT=$(cd "$(dirname "$0")/.." && pwd)
DISK_GB=8
ROOT_UUID=6e657462-7066-4c61-8000-000000000001
# The well-known key for the first login; Vagrant then replaces it.
KEY=${VAGRANT_KEY:-$(find / -xdev -path '*/vagrant-*/keys/vagrant.pub' 2>/dev/null | head -n 1)}

[ "$(id -u)" = 0 ] || { echo "mkbox: error: needs root" >&2; exit 77; }
if [ -z "${MIRROR:-}" ]; then
    # shellcheck disable=SC2016 # a placeholder of apt
    MIRROR=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        grep -m 1 '/debian/*$') || {
        echo "mkbox: error: this machine's apt has no Debian mirror" >&2
        echo "hint: set MIRROR=http://HOST/debian" >&2
        exit 1
    }
    MIRROR=${MIRROR%/}
fi
[ -r "$KEY" ] || { echo "mkbox: error: Vagrant's public key was not found" >&2; exit 1; }
mkdir -p "$(dirname "$BOX")"
BOX=$(cd "$(dirname "$BOX")" && pwd)/$(basename "$BOX")
WORK=$(mktemp -d "$BOX.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' HUP INT TERM

notice() {
    echo "mkbox: $NAME: $*"
}

# --- the kernel: downloaded and unpacked, never installed --------------------------------------

# A separate apt configuration, independent of the host's lists, keys and packages.
private_apt() { # private_apt COMMAND ARGUMENT...
    command=$1
    shift
    "$command" -q -o "Dir=$WORK/apt" -o "Dir::State::status=$WORK/apt/status" \
        -o Dir::Etc::trustedparts=/usr/share/keyrings \
        -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root \
        -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none "$@"
}

# The kernel packages that PACKAGE depends on: since 6.19 an image is split into several.
kernel_parts() { # kernel_parts PACKAGE
    echo "$1"
    for part in $(private_apt apt-cache depends "$1" |
        sed -n 's/^ *|\{0,1\}Depends: \(linux-\(image\|binary\|modules\|base\)-[0-9].*\)$/\1/p'); do
        kernel_parts "$part"
    done
}

fetch_kernel() {
    mkdir -p "$WORK/apt/etc/apt/preferences.d" "$WORK/apt/etc/apt/apt.conf.d" \
        "$WORK/apt/var/lib/apt/lists/partial" "$WORK/apt/var/cache/apt/archives/partial" \
        "$WORK/debs" "$WORK/kernel"
    : >"$WORK/apt/status"
    echo "deb $MIRROR $SUITE main" >"$WORK/apt/etc/apt/sources.list"
    private_apt apt-get update
    newest=$(private_apt apt-cache pkgnames linux-image- | while read -r name; do
        # shellcheck disable=SC2254 # a pattern on purpose
        case $name in *cloud* | *-rt-* | *dbg | *unsigned) ;; $PACKAGE) echo "$name" ;; esac
    done | sort -V | tail -n 1)
    [ -n "$newest" ] || { notice "error: $SUITE has no package $PACKAGE" >&2; exit 1; }
    # shellcheck disable=SC2046 # a list of names
    (cd "$WORK/debs" && private_apt apt-get download $(kernel_parts "$newest" | sort -u))
    for deb in "$WORK"/debs/*.deb; do
        dpkg-deb -x "$deb" "$WORK/kernel"
    done
    # Newer packages use /usr/lib and store the kernel image among its modules.
    if [ -d "$WORK/kernel/usr/lib/modules" ]; then
        mkdir -p "$WORK/kernel/lib"
        mv "$WORK/kernel/usr/lib/modules" "$WORK/kernel/lib/"
    fi
    RELEASE=$(ls "$WORK/kernel/lib/modules")
    mkdir -p "$WORK/kernel/boot"
    for part in vmlinuz config System.map; do
        if [ -e "$WORK/kernel/lib/modules/$RELEASE/$part" ]; then
            mv "$WORK/kernel/lib/modules/$RELEASE/$part" "$WORK/kernel/boot/$part-$RELEASE"
        fi
    done
    # No test needs these modules, which take most of the space.
    (cd "$WORK/kernel/lib/modules/$RELEASE/kernel" && rm -rf sound drivers/gpu drivers/media \
        drivers/infiniband drivers/scsi drivers/iio drivers/staging drivers/usb drivers/hid \
        drivers/net/wireless/[a-uw-z]* drivers/net/ethernet drivers/md drivers/mtd drivers/video \
        drivers/comedi drivers/input drivers/isdn drivers/ata drivers/leds fs/xfs fs/btrfs \
        fs/ocfs2 fs/ceph fs/gfs2 fs/nfs fs/nfsd fs/smb fs/cifs fs/f2fs fs/jfs fs/bcachefs)
}

# --- the userland --------------------------------------------------------------------------------

write_hook() {
    cat >"$WORK/hook.sh" <<'HOOK'
#!/bin/sh
set -eu
root=$1
inside() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root "$@"; }

cp -a "$WORK/kernel/lib/modules/." "$root/lib/modules/"
cp -a "$WORK/kernel/boot/." "$root/boot/"

inside useradd -m -s /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
mkdir -p -m 700 "$root/home/vagrant/.ssh"
cp "$KEY" "$root/home/vagrant/.ssh/authorized_keys"
chmod 600 "$root/home/vagrant/.ssh/authorized_keys"
inside chown -R vagrant: /home/vagrant
printf '%s\n' "$NAME" >"$root/etc/hostname"
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$NAME" >"$root/etc/hosts"
printf 'UUID=%s / ext4 noatime 0 1\n' "$ROOT_UUID" >"$root/etc/fstab"
printf '[Match]\nName=eth*\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=mac\n' \
    >"$root/etc/systemd/network/eth.network"
inside systemctl enable systemd-networkd ssh
# Background jobs would slow down the tests.
inside systemctl mask apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer \
    dpkg-db-backup.timer man-db.timer logrotate.timer systemd-networkd-wait-online.service

# The same script that provisions public boxes; in this box it then finds nothing left to install.
# pip uses the package index of the host.
mkdir -p "$root/project"
(cd "$PROJECT" && cp --parents scripts/setup.sh pyproject.toml setup.cfg README.md LICENSE \
    LICENSES/* vagrant/provision.sh "$root/project/")
# pip needs the packages to exist; a machine gets its own copy when it boots.
cp -r "$PROJECT/netbpf" "$PROJECT/bpf_programs" "$root/project/"
ca=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
if [ -r "$ca" ]; then cp "$ca" "$root/tmp/ca.pem"; fi
if [ -r /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/pip.conf"; fi
inside env -u REQUESTS_CA_BUNDLE -u CURL_CA_BUNDLE -u SSL_CERT_FILE -u SSL_CERT_DIR \
    PIP_CERT=/tmp/ca.pem sh /project/vagrant/provision.sh
rm -rf "$root/tmp/ca.pem" "$root/etc/pip.conf" "$root/root/.cache"

# Only the drivers that a virtual machine needs to boot.
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 >>"$root/etc/initramfs-tools/modules"
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
release=$(ls "$WORK/kernel/lib/modules")
inside depmod "$release"
inside update-initramfs -c -k "$release"

mkdir -p "$root/boot/grub"
cat >"$root/boot/grub/grub.cfg" <<GRUB
set timeout=0
menuentry netbpf {
    linux /boot/vmlinuz-$release root=UUID=$ROOT_UUID ro net.ifnames=0 console=tty0 console=ttyS0 mitigations=off random.trust_cpu=on
    initrd /boot/initrd.img-$release
}
GRUB
inside apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root/etc/machine-id" \
    "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
# Each machine generates its host keys at the first boot.
printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' |
    { mkdir -p "$root/etc/systemd/system/ssh.service.d" &&
        cat >"$root/etc/systemd/system/ssh.service.d/keys.conf"; }
dpkg-query --admindir="$root/var/lib/dpkg" -W >"$root/project/packages.txt"
HOOK
    chmod +x "$WORK/hook.sh"
}

build_tree() { # build_tree EXTRA...
    write_hook
    # Without libpam-systemd, ssh sessions survive a shutdown and Vagrant's reboot hangs.
    base=systemd,systemd-sysv,dbus,libpam-systemd,udev,openssh-server,sudo,rsync,ca-certificates
    # Up to Debian 13 these are installed by default; ssh-keygen is in openssh-client.
    base=$base,passwd,login,mount,openssh-client,e2fsprogs
    base=$base,initramfs-tools,kmod,iproute2,procps,iputils-ping,ethtool,less
    for name; do base=$base,$name; done
    sources="deb $MIRROR $USERLAND main"
    export WORK KEY NAME ROOT_UUID PROJECT
    mmdebstrap --mode=root --variant=apt --architectures=amd64 --include="$base" \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt=force-unsafe-io \
        --customize-hook="$WORK/hook.sh" "$USERLAND" "$WORK/tree" "$sources"
}

# --- the image and the box -----------------------------------------------------------------------

make_image() {
    truncate -s "${DISK_GB}G" "$WORK/disk.raw"
    # Disable features of newer mkfs that GRUB 2.06 or an older e2fsck does not support.
    mkfs.ext4 -q -F -U "$ROOT_UUID" -O ^metadata_csum_seed,^orphan_file -d "$WORK/tree" \
        -E offset=1048576,lazy_itable_init=0 "$WORK/disk.raw" "$((DISK_GB * 1024 - 1))M"
    rm -rf "$WORK/tree"
    echo '2048,,L,*' | sfdisk -q "$WORK/disk.raw"
    grub-mkimage -O i386-pc -o "$WORK/core.img" -p '(hd0,msdos1)/boot/grub' \
        biosdisk part_msdos ext2 normal linux configfile
    # boot.img loads the core image from sector 1.
    dd if=/usr/lib/grub/i386-pc/boot.img of="$WORK/disk.raw" bs=440 count=1 conv=notrunc status=none
    dd if="$WORK/core.img" of="$WORK/disk.raw" bs=512 seek=1 conv=notrunc status=none
    qemu-img convert -f raw -O qcow2 "$WORK/disk.raw" "$WORK/box.img"
    rm "$WORK/disk.raw"
}

make_box() {
    printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}\n' "$DISK_GB" \
        >"$WORK/metadata.json"
    echo 'Vagrant.configure("2") { |config| config.vm.base_mac = nil }' >"$WORK/Vagrantfile"
    tar -C "$WORK" -cf - metadata.json Vagrantfile box.img | pigz -1 >"$WORK/box"
    # lab/boxes.py boots the kernel alone to check whether KVM works.
    cp "$WORK/kernel/boot/vmlinuz-$RELEASE" "$BOX.vmlinuz"
    mv "$WORK/box" "$BOX"
}

notice "kernel $PACKAGE of $SUITE"
fetch_kernel
notice "userland $USERLAND for kernel $RELEASE"
build_tree "$@"
notice "image"
make_image
make_box
notice "built $(basename "$BOX"), $(($(stat -c %s "$BOX") / 1000000)) MB"
