#!/usr/bin/env bash
# Installs the Debian packages that a purpose needs and that are missing: `prerequisites.sh build|demo|demo-membership|test`.
# Asks apt only when something is missing, as root or by sudo; starts no service.
set -euo pipefail

purpose=${1:?usage: prerequisites.sh build|demo|demo-membership|test}

packages=(gcc make pkg-config libvirt-dev)
demo_packages=(
  iproute2 iptables kmod libvirt-clients libvirt-daemon-system mount nftables openssh-client
  qemu-system-x86 qemu-utils util-linux
)
test_packages=(btrfs-progs curl debootstrap e2fsprogs nftables openssl python3 systemd-container xfsprogs)

case $purpose in
  build) ;;
  demo-membership) packages+=(openssh-client qemu-utils) ;;
  demo) packages+=("${demo_packages[@]}") ;;
  test) packages+=("${demo_packages[@]}" "${test_packages[@]}") ;;
  *) echo "prerequisites.sh: unknown purpose '$purpose'" >&2; exit 2 ;;
esac

if ! command -v cargo >/dev/null; then
  echo "prerequisites.sh: no cargo; install Rust with rustup (https://rustup.rs) and try again" >&2
  exit 1
fi

if ! command -v dpkg-query >/dev/null; then
  echo "prerequisites.sh: this is no Debian; it takes what there is called: ${packages[*]}"
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ $status == "install ok installed" ]] || missing+=("$package")
done

if ((${#missing[@]})); then
  as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || {
      echo "prerequisites.sh: missing Debian packages: ${missing[*]}" >&2
      echo "prerequisites.sh: install them as root, or install sudo, and try again" >&2
      exit 1
    }
    as_root=(sudo)
  fi
  echo "installing Debian packages: ${missing[*]}"
  # A service that a package would start is none of ours: the cluster brings its own libvirt where none runs.
  policy=/usr/sbin/policy-rc.d
  made_policy=
  if [[ ! -e $policy && ! -d /run/systemd/system ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    made_policy=yes
  fi
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q
           --no-install-recommends "${missing[@]}")
  # The list of packages may be missing or old on a fresh machine.
  "${install[@]}" || { "${as_root[@]}" apt-get update -q && "${install[@]}"; }
  [[ -z $made_policy ]] || "${as_root[@]}" rm -f "$policy"
fi

if [[ $purpose == test ]] && ! cargo nextest --version >/dev/null 2>&1; then
  echo "installing cargo-nextest"
  cargo install cargo-nextest --locked
fi
