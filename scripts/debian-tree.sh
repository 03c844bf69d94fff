#!/usr/bin/env bash
# Makes a small Debian 12 tree with systemd for the tests of the units: `debian-tree.sh CACHE_DIR [libvirt]`, the second
# with libvirt's daemon and QEMU in it. Prints its path.
# A tree is kept under the digest of this script; debootstrap and chroot need root.
set -euo pipefail

cache=${1:?usage: debian-tree.sh CACHE_DIR [libvirt]}
kind=${2:-plain}
packages=systemd,systemd-sysv,dbus,libvirt0,openssh-client,qemu-utils,curl,ca-certificates,iproute2,nftables,libpam-systemd,polkitd
key=$(sha256sum "$0" | cut -c1-16)
tree=$cache/tree-$kind-$key
log=$cache/tree-$kind.log
as_root=()
((EUID == 0)) || as_root=(sudo)
mkdir -p "$cache"

plain() {
  # The mirror that this machine itself uses.
  local mirror
  mirror=$( (grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/ 2>/dev/null || true) |
    head -n 1 | tr -d ' ')
  "${as_root[@]}" debootstrap --variant=minbase --include="$packages" bookworm "$tree" \
    "${mirror:-http://deb.debian.org/debian}"
}

# From the plain one, by apt as this machine is set up to use it: a tenth of the time.
libvirt() {
  "${as_root[@]}" cp -a --reflink=auto "$plain_tree" "$tree"
  "${as_root[@]}" rm "$tree/.complete"
  "${as_root[@]}" cp /etc/resolv.conf /etc/hosts "$tree/etc/"
  "${as_root[@]}" cp -r /etc/apt/apt.conf.d/. "$tree/etc/apt/apt.conf.d/"
  "${as_root[@]}" unshare --mount --pid --fork --mount-proc="$tree/proc" \
    chroot "$tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive bash -euc '
      apt-get update -q
      apt-get install -q -y --no-install-recommends libvirt-daemon-system qemu-system-x86'
}

case $kind in
  plain) ;;
  libvirt) plain_tree=$("$0" "$cache") ;;
  *) echo "unknown kind of tree: $kind" >&2; exit 2 ;;
esac
if [[ ! -e $tree/.complete ]]; then
  "${as_root[@]}" rm -rf "$cache/tree-$kind"-*
  "$kind" >"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }
  "${as_root[@]}" rm -rf "$tree/var/cache/apt/archives" "$tree/var/lib/apt/lists"
  "${as_root[@]}" touch "$tree/.complete"
fi
echo "$tree"
