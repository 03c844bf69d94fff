#!/usr/bin/env bash
# Installs built binaries, systemd units, users and directories: `install.sh BUILT_DIR DESTDIR PREFIX SYSCONFDIR`.
# Overwrites its own binaries and units by renaming whole new files into place; never touches a configuration or a key.
set -euo pipefail

built=${1:?}; destination=${2-}; prefix=${3:?}; sysconfdir=${4:?}
here=$(cd "$(dirname "$0")/.." && pwd)

put() { # MODE FILE TARGET
  mkdir -p "$(dirname "$3")"
  install -m "$1" "$2" "$3.new"
  mv -f "$3.new" "$3"
}

for binary in dagger-agent dagger-console dagger-dhcp dagger-fetch dagger-ledger dagger-net dagger-processor daggerctl; do
  [[ -x $built/$binary ]] || { echo "install.sh: $built/$binary is missing; run make release" >&2; exit 1; }
  put 755 "$built/$binary" "$destination$prefix/bin/$binary"
done
for unit in "$here"/systemd/*.{service,socket,mount,slice,target}; do
  put 644 "$unit" "$destination$prefix/lib/systemd/system/$(basename "$unit")"
done
put 644 "$here/systemd/sysusers.conf" "$destination$prefix/lib/sysusers.d/dagger.conf"
put 644 "$here/systemd/tmpfiles.conf" "$destination$prefix/lib/tmpfiles.d/dagger.conf"
put 644 "$here/systemd/50-dagger.rules" "$destination$prefix/share/polkit-1/rules.d/50-dagger.rules"
mkdir -p "$destination$sysconfdir/dagger"
for example in agent ledger processor; do
  put 644 "$here/systemd/$example.toml" "$destination$prefix/share/dagger/$example.toml"
done
if [[ -z $destination ]]; then
  systemd-sysusers dagger.conf
  systemd-tmpfiles --create dagger.conf
  systemctl daemon-reload
fi
echo "installed into ${destination:-/}; next: put the genesis, keys and configurations into $sysconfdir/dagger"
echo "(examples stand in $prefix/share/dagger), then: systemctl enable --now dagger.target; all steps are in OPERATING.md"
