#!/usr/bin/env bash
# Makes an initrd of busybox, switch_root, guest/init and the modules of the root disk: initrd.sh HERE TREE VERSION OUT
set -euo pipefail
here=$1 tree=$2 version=$3 out=$4
folder=$out.d
mkdir -p "$folder"/{bin,dev,proc,sys,root,modules}
cp "$tree/usr/bin/busybox" "$folder/bin/busybox"
install -m 0755 "$here/guest/init" "$folder/init"
cp "$tree/usr/sbin/switch_root" "$folder/bin/switch_root"
chroot "$tree" ldd /usr/sbin/switch_root | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "$folder$(dirname "$library")"
  cp -L "$tree$library" "$folder$library"
done
# In the order in which they are loaded: modprobe resolves what each needs; a name that is built in has no file.
chroot "$tree" modprobe --set-version "$version" --show-depends --all virtio_pci virtio_blk ext4 |
  awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$folder/order"
while read -r path; do
  name=$(basename "$path")
  case $name in
    *.xz) xz -dc "$tree$path" >"$folder/modules/${name%.xz}" ;;
    *.zst) zstd -qdc "$tree$path" >"$folder/modules/${name%.zst}" ;;
    *) cp "$tree$path" "$folder/modules/$name" ;;
  esac
done <"$folder/order"
sed -e 's:.*/::' -e 's:\.\(xz\|zst\)$::' -i "$folder/order"
busybox=$(realpath "$tree/usr/bin/busybox")
(cd "$folder" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$out"
rm -rf "$folder"
