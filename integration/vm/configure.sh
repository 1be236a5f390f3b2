#!/usr/bin/env bash
# Configures the tree of the guest: configure.sh HERE TREE
set -euo pipefail
here=$1 tree=$2

echo guest >"$tree/etc/hostname"
printf '127.0.0.1 localhost guest\n::1 localhost\n' >"$tree/etc/hosts"
echo 'nameserver 192.0.2.53' >"$tree/etc/resolv.conf"
echo '/dev/vda / ext4 defaults,noatime 0 0' >"$tree/etc/fstab"
# A fixed id: without one, the first boot would set up every unit anew.
echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
chroot "$tree" passwd --quiet --delete root

install -m 0755 "$here/guest/run" "$tree/usr/local/sbin/vm-run"
install -m 0644 "$here/guest/vm-run.service" "$here/guest/vm-network.service" "$tree/etc/systemd/system/"
install -m 0644 "$here/guest/modules" "$tree/etc/modules-load.d/vm.conf"
units=$tree/etc/systemd/system
mkdir -p "$units/multi-user.target.wants" "$units/serial-getty@ttyS0.service.d"
ln -s ../vm-run.service ../vm-network.service "$units/multi-user.target.wants/"
printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear %%I vt220\n' \
  >"$units/serial-getty@ttyS0.service.d/autologin.conf"

# Nothing may run beside a test that the test did not start.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer systemd-tmpfiles-clean.timer nginx.service docker-registry.service tinyproxy.service containerd.service \
  getty@tty1.service systemd-timesyncd.service; do
  ln -sf /dev/null "$units/$unit"
done
# Modules that nothing here has a use for, and profiles of programs that are not here, take half of the boot.
for unit in modprobe@configfs.service modprobe@efi_pstore.service modprobe@drm.service sys-kernel-config.mount; do
  ln -sf /dev/null "$units/$unit"
done
find "$tree/etc/apparmor.d" -maxdepth 1 -type f -delete
# Nothing has to be updated at the first boot.
touch -r "$tree/usr" "$tree/etc/.updated" "$tree/var/.updated"
mkdir -p "$tree/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$tree/etc/systemd/journald.conf.d/vm.conf"
