#!/bin/bash
# Makes a full Debian 12 cloud image: one qcow2 file with systemd, cloud-init, the QEMU guest agent, OpenSSH and apt,
# which boots by BIOS and by UEFI and grows to the disk that it is given.
#
#   build.sh [--cache DIRECTORY] [--output FILE]
#
# Prints the path of the finished image as its last line. The image is kept in the cache under the digest of
# everything it is made from (this folder, package versions, tool versions), so a second run only prints the path; the
# packages are kept beside it, so that the next image downloads only what is new. The cache is $DAGGER_CACHE, or .cache
# at the top of the source tree, unless named.
# Packages run their own scripts when they are installed, in a tree of their own: that needs root, or sudo. No loop
# device is needed. No key, password or machine id is in the image. Everybody who builds it on the same day gets the
# same files; bytes may differ where packages write what differs.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SUITE=bookworm
# Tools of this script, as command:package.
TOOLS=(mmdebstrap:mmdebstrap mcopy:mtools mke2fs:e2fsprogs debugfs:e2fsprogs qemu-img:qemu-utils sfdisk:fdisk
    flock:util-linux)
# Layout, in sectors of 512 bytes: a place for GRUB where the machine has a BIOS, a FAT file system for UEFI, and the
# system's ext4 up to the table's copy at the end, so that it can grow. Numbers of partitions as Debian's own images
# have them.
DISK_SECTORS=$((2 * 1024 * 2048))
BIOS_START=2048
BIOS_SECTORS=2048
EFI_START=$((BIOS_START + BIOS_SECTORS))
EFI_SECTORS=$((32 * 2048))
ROOT_START=$((EFI_START + EFI_SECTORS))
ROOT_SECTORS=$((DISK_SECTORS - ROOT_START - 2048))
DISK_UUID=6461676e-6572-4d00-8000-646562313200
ROOT_UUID=6461676e-6572-4d01-8000-646562313201
FAT_SERIAL=DA66E212
# Fixed time of every file in the image (2026-01-01).
export SOURCE_DATE_EPOCH=1767225600

say() { printf 'debian-12 image: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --preserve-env=SOURCE_DATE_EPOCH,LC_ALL,TZ "$@"
    else
        fail "needs root or sudo for: $*"
    fi
}

cache='' output=''
while [ $# -gt 0 ]; do
    case $1 in
    --cache) cache=${2:?--cache needs a directory} && shift 2 ;;
    --output) output=${2:?--output needs a file} && shift 2 ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) fail "unknown argument $1; see --help" ;;
    esac
done
[ -n "$cache" ] || cache=${DAGGER_CACHE:-$RECIPE/../../../.cache}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
export PATH=$PATH:/usr/sbin:/sbin

update_package_lists() {
    say "reading package lists"
    as_root apt-get update -qq >&2
}

install_tools() {
    local missing=() tool
    for tool in "${TOOLS[@]}"; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
    as_root "${install[@]}" >&2 || { update_package_lists && as_root "${install[@]}" >&2; } ||
        fail "apt could not install ${missing[*]}"
}

names() { sed 's/#.*//' "$RECIPE/packages.list" | xargs; }

# What apt would install on an empty machine, one line "name=version" each: from Debian's own archives only, whatever
# else this machine uses.
candidate_versions() {
    local pins
    pins=$(mktemp)
    printf 'Package: *\nPin: release o=Debian,n=%s*\nPin-Priority: 500\n\nPackage: *\nPin: release o=*\nPin-Priority: -1\n' \
        "$SUITE" >"$pins"
    # shellcheck disable=SC2046 # one word each
    apt-get --simulate -qq -o Dir::State::status=/dev/null -o Dir::Etc::preferences="$pins" \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Install-Recommends=0 \
        install '?essential' '?priority(required)' $(names) 2>&1 |
        awk '$1 == "Inst" { print $2 "=" substr($3, 2) }' | sort
    rm -f "$pins"
}

# What apt's answer depends on. It takes seconds, so it is remembered under this.
apt_fingerprint() {
    find /var/lib/apt/lists /etc/apt -type f -printf '%p %s %T@\n' 2>/dev/null |
        sort | cat - "$RECIPE/packages.list" | sha256sum | cut -c 1-32
}

remembered_versions() {
    local memory
    memory=$cache/debian-12-versions-$(apt_fingerprint)
    [ -s "$memory" ] || {
        rm -f "$cache"/debian-12-versions-*
        candidate_versions >"$memory.$$"
        grep -q '^linux-image-[0-9].*cloud-amd64=' "$memory.$$" || {
            rm -f "$memory.$$"
            return 1
        }
        mv "$memory.$$" "$memory"
    }
    cat "$memory"
}

tool_versions() {
    local tool
    for tool in "${TOOLS[@]}"; do echo "${tool##*:}"; done | sort -u |
        xargs dpkg-query -W -f '${Package}=${Version}\n'
}

# Finds versions, and the name under which their image is kept.
find_image() {
    versions=$(remembered_versions) || return 1
    local recipe
    recipe=$(cd "$RECIPE" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    image=$cache/debian-12-$( (echo "$recipe" && echo "$versions" && tool_versions) |
        sha256sum | cut -c 1-32).qcow2
}

finish() {
    if [ -n "$output" ]; then
        cp "$image" "$output.new" && mv "$output.new" "$output"
        image=$output
    fi
    echo "$image"
    exit 0
}

install_tools
find_image || {
    update_package_lists
    find_image || fail "apt offers no linux-image-cloud-amd64 of $SUITE; is this Debian 12 on amd64?"
}
[ ! -f "$image" ] || finish
exec 9>"$cache/debian-12.lock"
flock 9 # two runs at once build once
[ ! -f "$image" ] || finish

work=$(mktemp -d "$cache/debian-12-work.XXXXXX")
tree=$work/tree
trap 'as_root rm -rf --one-file-system "$work"' EXIT
touch "$work/begun"

# The archives as this machine reaches them.
mirror() { # last part of the address
    local found
    found=$( (grep -rhoE "https?://[^ ]+/$1/?( |\$)" /etc/apt/ 2>/dev/null || true) | head -n 1 | tr -d ' ')
    echo "${found:-http://deb.debian.org/$1}"
}

install_packages() {
    local packages=$cache/debian-12-packages
    mkdir -p "$packages"
    say "installing $(wc -w <<<"$versions") packages into a tree"
    local archive security
    archive=$(mirror debian) security=$(mirror debian-security)
    # shellcheck disable=SC2016 # mmdebstrap expands $1
    # Nobody needs the tree after a crash, so dpkg need not wait for the disk.
    as_root mmdebstrap --mode=root --variant=required --include="$(names | tr ' ' ,)" \
        --dpkgopt=force-unsafe-io \
        --skip=download/empty,essential/unlink,cleanup/apt/cache \
        --setup-hook='mkdir -p "$1/var/cache/apt/archives"' \
        --setup-hook="find '$packages' -name '*.deb' -exec cp -t \"\$1/var/cache/apt/archives\" {} +" \
        --customize-hook="cp -u \"\$1\"/var/cache/apt/archives/*.deb '$packages/'" \
        --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb' \
        "$SUITE" "$tree" "deb $archive $SUITE main" "deb $archive $SUITE-updates main" \
        "deb $security $SUITE-security main" >"$work/mmdebstrap.log" 2>&1 || {
        tail -n 30 "$work/mmdebstrap.log" >&2
        fail "the packages could not be installed"
    }
    # Older versions are of no use any more.
    find "$packages" -name '*.deb' -mtime +60 -delete
    local there
    there=$(chroot_query)
    [ "$there" = "$versions" ] || {
        diff <(echo "$versions") <(echo "$there") >&2 || true
        fail "the archives and this machine's package lists differ; run apt-get update, and this again"
    }
}

# As apt names them in its simulation: without the architecture.
chroot_query() {
    as_root chroot "$tree" dpkg-query -W -f '${Package}=${Version}\n' | sort
}

# What the packages cannot know: that this is a machine of dagger, and where it boots from.
configure() {
    as_root cp -r --no-preserve=mode,ownership "$RECIPE/guest/." "$tree/"
    printf 'UUID=%s / ext4 rw,discard,errors=remount-ro 0 1\nUUID=%s /boot/efi vfat defaults,umask=0077 0 0\n' \
        "$ROOT_UUID" "${FAT_SERIAL:0:4}-${FAT_SERIAL:4}" | as_root tee "$tree/etc/fstab" >/dev/null
    as_root mkdir -p "$tree/boot/efi" "$tree/boot/grub/i386-pc"
    as_root systemctl --root="$tree" enable --quiet systemd-networkd systemd-resolved systemd-timesyncd ssh 2>/dev/null ||
        as_root chroot "$tree" systemctl enable --quiet systemd-networkd systemd-resolved systemd-timesyncd ssh
    as_root ln -sf ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
    # From now on an upgrade of GRUB installs itself where this recipe put it.
    as_root touch "$tree/etc/grub.d/enable_cloud"
    as_root cp "$tree"/usr/lib/grub/i386-pc/*.{mod,lst,o} "$tree/boot/grub/i386-pc/"
    grub_menu | as_root tee "$tree/boot/grub/grub.cfg" >/dev/null
    echo debian | as_root tee "$tree/etc/hostname" >/dev/null
}

# As update-grub would write it, which needs the disk that is only made from it. The links name the newest kernel.
grub_menu() {
    local GRUB_TIMEOUT GRUB_CMDLINE_LINUX
    # shellcheck source=guest/etc/default/grub.d/dagger.cfg
    . "$RECIPE/guest/etc/default/grub.d/dagger.cfg"
    cat <<MENU
# Written with the image; update-grub replaces it.
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=$GRUB_TIMEOUT
menuentry 'Debian GNU/Linux' {
    search --no-floppy --fs-uuid --set=root $ROOT_UUID
    linux /vmlinuz root=UUID=$ROOT_UUID ro $GRUB_CMDLINE_LINUX
    initrd /initrd.img
}
MENU
}

# Nothing that two guests must not share, and nothing that only this building knows.
forget() {
    as_root rm -rf "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$tree"/etc/apt/apt.conf.d/99mmdebstrap
    as_root rm -rf "$tree"/etc/ssh/ssh_host_* "$tree"/var/lib/systemd/random-seed "$tree"/var/lib/dbus/machine-id \
        "$tree"/var/log/* "$tree"/var/cache/{debconf/*-old,ldconfig/aux-cache,apt/*.bin,man/*} \
        "$tree"/var/lib/{apt/lists/*,dpkg/*-old} "$tree"/etc/{passwd-,group-,shadow-,gshadow-,.pwd.lock} \
        "$tree"/{tmp,run,var/tmp}/* "$tree"/dev/*
    as_root mkdir -p "$tree"/var/log/journal "$tree"/var/lib/apt/lists/partial
    as_root truncate -s 0 "$tree/etc/machine-id"
    as_root ln -s /etc/machine-id "$tree/var/lib/dbus/machine-id"
    # What came in packages has its packages' times, on which Python's compiled files rest.
    as_root find "$tree" -xdev -newer "$work/begun" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

little_endian() { # value, bytes
    local value=$1 count
    for ((count = $2; count > 0; count--)); do
        printf '%b' "$(printf '\\x%02x' $((value & 255)))"
        value=$((value >> 8))
    done
}
write_at() { dd of="$disk" bs=1 seek="$1" conv=notrunc status=none; }

# GRUB for the BIOS: the first sector knows where the rest begins, and the rest's first sector knows where it goes on;
# both say so at places that GRUB's own installer fills in.
write_grub() {
    printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$ROOT_UUID" | as_root tee "$tree/tmp/early" >/dev/null
    as_root chroot "$tree" grub-mkimage -O i386-pc -p /boot/grub -c /tmp/early -o /tmp/core.img \
        biosdisk part_gpt ext2 search_fs_uuid
    as_root cp "$tree/tmp/core.img" "$work/core.img"
    as_root rm -f "$tree"/tmp/*
    [ "$(stat -c %s "$work/core.img")" -le $((BIOS_SECTORS * 512)) ] || fail "GRUB does not fit"
    head -c 440 "$tree/usr/lib/grub/i386-pc/boot.img" | write_at 0
    little_endian $BIOS_START 8 | write_at $((0x5c))
    dd if="$work/core.img" of="$disk" bs=512 seek=$BIOS_START conv=notrunc status=none
    little_endian $((BIOS_START + 1)) 8 | write_at $((BIOS_START * 512 + 0x1f4))
}

# GRUB for UEFI: Debian's signed loaders, where firmware looks and where Debian's packages look.
write_efi() {
    local efi=$disk@@$((EFI_START * 512)) signed=$tree/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed
    printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' "$ROOT_UUID" \
        >"$work/grub.cfg"
    cp "$tree/usr/lib/shim/shimx64.efi.signed" "$work/shimx64.efi"
    cp "$signed" "$work/grubx64.efi"
    cp "$work/shimx64.efi" "$work/BOOTX64.EFI"
    touch -d "@$SOURCE_DATE_EPOCH" "$work"/{grub.cfg,shimx64.efi,grubx64.efi,BOOTX64.EFI}
    mformat -i "$efi" -T $EFI_SECTORS -h 16 -s 63 -H $EFI_START -N $FAT_SERIAL -v EFI ::
    # What mformat leaves there would be read as a table of partitions.
    head -c 64 /dev/zero | write_at $((EFI_START * 512 + 446))
    mmd -i "$efi" ::/EFI ::/EFI/BOOT ::/EFI/debian
    mcopy -m -i "$efi" "$work/BOOTX64.EFI" "$work/grubx64.efi" ::/EFI/BOOT/
    mcopy -m -i "$efi" "$work/shimx64.efi" "$work/grubx64.efi" "$work/grub.cfg" ::/EFI/debian/
}

# Commands for debugfs: times that mke2fs takes from this machine's own file system.
fixed_times() {
    as_root find "$tree" -xdev -printf '/%P\n' | sort | while IFS= read -r path; do
        printf 'set_inode_field "%s" ctime @%s\nset_inode_field "%s" crtime @%s\n' \
            "$path" "$SOURCE_DATE_EPOCH" "$path" "$SOURCE_DATE_EPOCH"
    done
}

make_root_filesystem() {
    as_root env E2FSPROGS_FAKE_TIME="$SOURCE_DATE_EPOCH" mke2fs -q -F -t ext4 -b 4096 -m 1 -L root -U "$ROOT_UUID" \
        -E "hash_seed=$ROOT_UUID,root_owner=0:0" -O '^metadata_csum_seed,^orphan_file' \
        -d "$tree" "$work/root.ext4" "$((ROOT_SECTORS / 2))k" >&2
    fixed_times >"$work/times.debugfs"
    as_root env E2FSPROGS_FAKE_TIME="$SOURCE_DATE_EPOCH" debugfs -w -f "$work/times.debugfs" "$work/root.ext4" \
        >/dev/null 2>"$work/debugfs.log"
    ! grep -v '^debugfs ' "$work/debugfs.log" >&2 || fail "debugfs complains"
}

make_disk() {
    disk=$work/disk.raw
    truncate -s $((DISK_SECTORS * 512)) "$disk"
    sfdisk --quiet "$disk" <<TABLE
label: gpt
label-id: $DISK_UUID
p1: start=$ROOT_START, size=$ROOT_SECTORS, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=${DISK_UUID%?}1
p14: start=$BIOS_START, size=$BIOS_SECTORS, type=21686148-6449-6E6F-744E-656564454649, uuid=${DISK_UUID%?}e
p15: start=$EFI_START, size=$EFI_SECTORS, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=${DISK_UUID%?}f
TABLE
    write_grub
    write_efi
    make_root_filesystem
    dd if="$work/root.ext4" of="$disk" bs=1M seek=$((ROOT_START / 2048)) conv=notrunc,sparse status=none
}

update_package_lists
find_image || fail "apt offers no linux-image-cloud-amd64 of $SUITE"
[ ! -f "$image" ] || finish
install_packages
say "building"
configure
forget
make_disk
qemu-img convert -f raw -O qcow2 -c -m 8 -o compat=1.1,lazy_refcounts=off "$disk" "$work/image.qcow2"
sync "$work/image.qcow2"
mv "$work/image.qcow2" "$image"
# What an older recipe or older packages made is of no use any more.
find "$cache" -maxdepth 1 -name 'debian-12-*.qcow2' ! -path "$image" -mtime +1 -delete
say "$(stat -c %s "$image") bytes"
finish
