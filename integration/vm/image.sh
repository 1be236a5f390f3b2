#!/usr/bin/env bash
# Makes the guest's disk, kernel and initrd in the folder $1 (root, debootstrap, mkfs.ext4): image.sh OUT
#
# With VM_POLICY=selinux the guest has Debian's SELinux policy, and every file has its label: it can enforce the policy from
# its first boot on, if its kernel is told to (security=selinux enforcing=1).
#
# The tree is made on a tmpfs of a private mount namespace, where sync costs nothing and whose mounts end with this
# script. The kernel's package is unpacked, not installed: its scripts would make an initrd of a hundred megabytes, and
# initrd/init, busybox and six modules are all that this guest needs to find its disk.
set -euo pipefail
[ "${1:-}" != --inside ] || { shift; inside=1; }
here=$(cd "$(dirname "$0")" && pwd)
out=$1
if [ -z "${inside:-}" ]; then
  mkdir -p "$out"
  exec unshare --mount --propagation private "$0" --inside "$out"
fi

RELEASE=${VM_RELEASE:-trixie}
MIRROR=${VM_MIRROR:-http://deb.debian.org/debian}
DISK_SIZE=8G
policy=${VM_POLICY:-}
begun=$SECONDS
phase() { echo "image: $1 after $((SECONDS - begun)) s"; }

work=$out/work
mkdir -p "$work"
mount -t tmpfs -o size=4G,mode=0755 vm-image "$work"
tree=$work/tree
debootstrap --variant=minbase "$RELEASE" "$tree" "$MIRROR" >"$out/debootstrap.log" 2>&1 ||
  { tail -n 30 "$out/debootstrap.log" >&2; exit 1; }
phase "debootstrap is done"

inside() { chroot "$tree" env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
mount -t proc proc "$tree/proc"
mount --rbind --make-rslave /dev "$tree/dev"
# Services start when the guest boots, not in this chroot; manuals and translations are read by nobody.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod 0755 "$tree/usr/sbin/policy-rc.d"
printf 'path-exclude=/usr/share/%s/*\n' doc man info locale lintian >"$tree/etc/dpkg/dpkg.cfg.d/vm"
printf 'force-unsafe-io\n' >>"$tree/etc/dpkg/dpkg.cfg.d/vm"
printf 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' >"$tree/etc/apt/apt.conf.d/vm"
inside apt-get -qq update
kernel=$(inside apt-cache depends linux-image-cloud-amd64 | awk '/^ *Depends:/ { print $2; exit }')
lists=("$here/packages")
[ -z "$policy" ] || lists+=("$here/packages.$policy")
inside apt-get -qq -y install $(grep -hv '^#' "${lists[@]}") >"$out/apt.log" 2>&1 ||
  { tail -n 30 "$out/apt.log" >&2; exit 1; }
phase "the packages are installed"

inside sh -c "cd /tmp && apt-get -qq download $kernel" 2>>"$out/apt.log"
dpkg-deb -x "$tree"/tmp/linux-image-*.deb "$work/kernel"
# Moved from there: a package with /lib as a folder would replace the tree's symlink.
for modules in "$work"/kernel/{lib,usr/lib}/modules; do
  [ ! -d "$modules" ] || mv "$modules" "$tree/usr/lib/"
done
# A package that a test installs is installed whole, as on any Debian.
rm -f "$tree"/tmp/*.deb "$tree/usr/sbin/policy-rc.d" "$tree/etc/dpkg/dpkg.cfg.d/vm"
version=$(basename "$tree"/usr/lib/modules/*)
inside depmod "$version"
inside apt-get -qq clean
rm -rf "$tree"/var/lib/apt/lists/* "$tree"/usr/share/{doc,man,info,locale}/*
umount -R "$tree/proc" "$tree/dev"
phase "kernel $version is unpacked"

"$here/configure.sh" "$here" "$tree"
"$here/initrd.sh" "$here" "$tree" "$version" "$work/initrd"
[ "$policy" != selinux ] || { "$here/label.sh" "$tree"; phase "the files are labelled"; }
cp "$work/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
mv "$work/initrd" "$out/initrd"
truncate -s "$DISK_SIZE" "$out/disk.new"
mkfs.ext4 -q -F -L vm-root -O ^has_journal -E lazy_itable_init=1,nodiscard -m 0 -d "$tree" "$out/disk.new"
mv "$out/disk.new" "$out/disk"
umount "$work"
rmdir "$work"
phase "the disk is made"
