#!/usr/bin/env bash
# Gives every file of the guest its SELinux label: label.sh TREE
#
# The kernel of this machine need not have SELinux: to it, labels are extended attributes like others. Nothing may be
# mounted in the tree: setfiles(8) leaves out mounts that /proc/mounts does not show as labelled.
set -euo pipefail
tree=$1
etc=$tree/etc/selinux
sed -i 's/^SELINUX=.*/SELINUX=enforcing/' "$etc/config"
type=$(sed -n 's/^SELINUXTYPE=//p' "$etc/config")
chroot "$tree" setfiles -F "/etc/selinux/$type/contexts/files/file_contexts" /
