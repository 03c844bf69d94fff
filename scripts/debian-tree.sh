#!/usr/bin/env bash
# Makes a small Debian 12 tree with systemd for the tests of the units: `debian-tree.sh CACHE_DIR [libvirt]`, the second
# with libvirt's daemon and QEMU in it. Prints its path.
# A tree is kept under the digest of this script; debootstrap needs root.
set -euo pipefail

cache=${1:?usage: debian-tree.sh CACHE_DIR [libvirt]}
kind=${2:-plain}
packages=systemd,systemd-sysv,dbus,libvirt0,openssh-client,qemu-utils,curl,ca-certificates,iproute2,nftables,libpam-systemd,polkitd
case $kind in
  plain) ;;
  libvirt) packages+=,libvirt-daemon-system,qemu-system-x86 ;;
  *) echo "unknown kind of tree: $kind" >&2; exit 2 ;;
esac
key=$(sha256sum "$0" | cut -c1-16)
tree=$cache/tree-$kind-$key
mkdir -p "$cache"
if [[ ! -e $tree/.complete ]]; then
  as_root=()
  ((EUID == 0)) || as_root=(sudo)
  "${as_root[@]}" rm -rf "$cache/tree-$kind"-*
  # The mirror that this machine itself uses.
  mirror=$( (grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/ 2>/dev/null || true) |
    head -n 1 | tr -d ' ')
  log=$cache/debootstrap-$kind.log
  "${as_root[@]}" debootstrap --variant=minbase --include="$packages" bookworm "$tree" \
    "${mirror:-http://deb.debian.org/debian}" >"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }
  "${as_root[@]}" rm -rf "$tree/var/cache/apt/archives" "$tree/var/lib/apt/lists"
  "${as_root[@]}" touch "$tree/.complete"
fi
echo "$tree"
