#!/bin/bash
# Makes the small guest image: one qcow2 file with a Debian 12 cloud kernel, busybox and dropbear, booted by the
# firmware. Tests and the demo boot it; `guest/root/usr/lib/dagger/boot` says what it does when it boots.
#
#   build.sh [--cache DIRECTORY] [--output FILE]
#
# Prints the path of the finished image as its last line. The image is kept in the cache under the digest of
# everything it is made from (this folder, package versions, tool versions), so a second run only prints the path. The
# cache is $DAGGER_CACHE, or .cache at the top of the source tree, unless named. Beside it, under the same name, stands
# what its boot loader starts, for machines that boot it directly: .kernel, .initrd and .command-line.
# Missing Debian packages are installed through apt (as root, or with sudo); what goes into the guest is downloaded and
# unpacked, never installed. No root, loop device or mount is needed to build. Same inputs, same bytes.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
KERNEL_META=linux-image-cloud-amd64
# Tools of this script, as command:package.
TOOLS=(cpio:cpio syslinux:syslinux mcopy:mtools mke2fs:e2fsprogs debugfs:e2fsprogs qemu-img:qemu-utils
    xz:xz-utils lz4:lz4 flock:util-linux)
# Layout, in sectors of 512 bytes: the table, a FAT partition to boot from, an ext4 partition for the system.
BOOT_START=2048
BOOT_SECTORS=45056
ROOT_START=$((BOOT_START + BOOT_SECTORS))
ROOT_SECTORS=57344
# The root file system may grow with its disk up to the end that a partition table of this kind can name.
ROOT_GROWTH_MAX=2T
ROOT_UUID=4d616b65-7321-4f6e-8000-646167676572
FAT_SERIAL=da66e201
# Fixed time of every file in the image (2026-01-01).
export SOURCE_DATE_EPOCH=1767225600
# quiet: the serial port is slow. The rest keeps the kernel from probing for machines that no hypervisor offers.
COMMAND_LINE="console=ttyS0 quiet loglevel=3 rdinit=/init panic=10 apparmor=0 audit=0 \
8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp no_timer_check cryptomgr.notests nowatchdog"

say() { printf 'small image: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
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

apt_updated=no
update_package_lists() {
    [ $apt_updated = no ] || return 0
    apt_updated=yes
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
    update_package_lists
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >&2 || fail "apt could not install ${missing[*]}"
}

# One line "name=version" for each package that goes into the guest, the kernel's last.
candidate_versions() {
    local names kernel
    names=$(sed 's/#.*//' "$RECIPE/packages.list")
    kernel=$(apt-cache depends "$KERNEL_META" 2>/dev/null | sed -n 's/^ *Depends: //p' | head -n 1)
    [ -n "$kernel" ] || return 1
    # shellcheck disable=SC2086 # one word each
    apt-cache policy $names "$kernel" | awk '
        /^[^ ]/ { name = $1; sub(/:$/, "", name) }
        /^  Candidate:/ { if ($2 == "(none)") exit 1; print name "=" $2; count++ }
        END { if (count < 14) exit 1 }'
}

tool_versions() {
    local tool
    for tool in "${TOOLS[@]}"; do echo "${tool##*:}"; done | sort -u |
        xargs dpkg-query -W -f '${Package}=${Version}\n'
}

recipe_digest() {
    (cd "$RECIPE" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

# What apt's answer depends on. Reading its lists takes a second, so the answer is remembered under this.
apt_fingerprint() {
    find /var/lib/apt/lists /etc/apt /var/lib/dpkg/status -type f -printf '%p %s %T@\n' 2>/dev/null |
        sort | cat - "$RECIPE/packages.list" | sha256sum | cut -c 1-32
}

remembered_versions() {
    local memory
    memory=$cache/small-versions-$(apt_fingerprint)
    [ -s "$memory" ] || {
        rm -f "$cache"/small-versions-*
        candidate_versions >"$memory.$$" || {
            rm -f "$memory.$$"
            return 1
        }
        mv "$memory.$$" "$memory"
    }
    cat "$memory"
}

install_tools
versions=$(remembered_versions) || {
    update_package_lists
    versions=$(remembered_versions) || fail "apt offers no $KERNEL_META; is this Debian 12 on amd64?"
}
key=$( (recipe_digest && echo "$versions" && tool_versions) | sha256sum | cut -c 1-32)
image=$cache/small-$key.qcow2
# The image comes last: where it is, they are.
beside=(kernel initrd command-line)

finish() {
    if [ -n "$output" ]; then
        local part
        for part in "${beside[@]}"; do cp "${image%.qcow2}.$part" "${output%.qcow2}.$part"; done
        cp "$image" "$output.new" && mv "$output.new" "$output"
        image=$output
    fi
    echo "$image"
    exit 0
}

[ ! -f "$image" ] || finish
exec 9>"$cache/small.lock"
flock 9 # two runs at once build once
[ ! -f "$image" ] || finish

work=$(mktemp -d "$cache/small-work.XXXXXX")
trap 'rm -rf "$work"' EXIT

download() {
    say "downloading $(wc -w <<<"$versions") packages"
    mkdir -p "$work/packages" "$work/debian"
    # shellcheck disable=SC2086 # one word each
    (cd "$work/packages" && apt-get download -qq $versions >&2 2>"$work/download.log") || {
        cat "$work/download.log" >&2
        fail "apt could not download the packages"
    }
    local package
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/debian"; done
}

# Copies the modules of one stage, and their names in order of loading on one line. The order carries the dependencies,
# so the dependency file names none.
copy_modules() { # stage, root of the tree
    local release source target module name
    release=$(basename "$work"/debian/lib/modules/*)
    source=$work/debian/lib/modules/$release/kernel
    target=$2/lib/modules/$release
    mkdir -p "$target"
    for module in $(awk -v stage="$1" '$1 == stage { print $2 }' "$RECIPE/guest/modules.list"); do
        name=$(basename "$module")
        cp "$source/$module" "$target/"
        echo "$name:" >>"$target/modules.dep"
        echo "${name%.ko}"
    done | paste -sd ' ' >"$2/lib/modules/order"
}

link_busybox() { # root of the tree, directory of the links within it
    local applet
    for applet in $("$work/debian/bin/busybox" --list); do
        [ -e "$1/$2/$applet" ] || ln -s /bin/busybox "$1/$2/$applet"
    done
}

make_initramfs() {
    local tree=$work/initramfs
    mkdir -p "$tree"/{bin,dev,proc,sys,root}
    cp "$work/debian/bin/busybox" "$tree/bin/busybox"
    local applet
    for applet in sh mount mkdir modprobe findfs dd blockdev sleep switch_root; do
        ln -s busybox "$tree/bin/$applet"
    done
    copy_modules early "$tree"
    mkdir "$tree/etc"
    grep -E '^(proc|sys|dev) ' "$RECIPE/guest/root/etc/fstab" >"$tree/etc/fstab"
    install -m 755 "$RECIPE/guest/initramfs-init" "$tree/init"
    find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    (cd "$tree" && find . -print0 | sort -z |
        cpio --quiet -0 -o -H newc -R 0:0 --reproducible) | lz4 -q -l -9 >"$work/initrd"
}

# The shared libraries that a program names, and theirs, from the unpacked packages only.
copy_program() { # path within the packages, directory in the tree
    local tree=$work/root library
    install -D -m 755 "$work/debian/$1" "$tree/$2/$(basename "$1")"
    needed_libraries "$work/debian/$1" | while read -r library; do
        [ ! -e "$tree/lib/x86_64-linux-gnu/$library" ] || continue
        local found
        found=$(find "$work/debian" -name "$library" | head -n 1)
        [ -n "$found" ] || fail "$1 needs $library, which packages.list does not bring"
        copy_program "$(realpath --relative-to "$work/debian" "$found")" lib/x86_64-linux-gnu
        [ -e "$tree/lib/x86_64-linux-gnu/$library" ] ||
            ln -s "$(basename "$(realpath "$found")")" "$tree/lib/x86_64-linux-gnu/$library"
    done
}

# The libraries, as the packages' own loader lists them; it runs nothing of the program itself.
needed_libraries() {
    "$work/debian/lib64/ld-linux-x86-64.so.2" --inhibit-cache \
        --library-path "$work/debian/lib/x86_64-linux-gnu:$work/debian/usr/lib/x86_64-linux-gnu" \
        --list "$1" | awk '$2 == "=>" && $1 !~ /ld-linux/ { print $1 }'
}

make_root() {
    local tree=$work/root
    mkdir -p "$tree"/{bin,sbin,dev,proc,sys,run,tmp,root,home/dagger,var/lib/dagger,lib64}
    mkdir -p "$tree"/{usr/bin,usr/sbin,lib/x86_64-linux-gnu}
    cp -r "$RECIPE/guest/root/." "$tree/"
    chmod 755 "$tree"/usr/lib/dagger/{boot,shutdown,udhcpc} "$tree/etc/acpi/power-button" "$tree/usr/bin/lsblk"
    copy_program usr/sbin/dropbear usr/sbin
    copy_program usr/bin/dropbearkey usr/bin
    copy_program sbin/resize2fs sbin
    install -m 755 "$(realpath "$work/debian/lib64/ld-linux-x86-64.so.2")" "$tree/lib64/ld-linux-x86-64.so.2"
    copy_modules late "$tree"
    install -m 755 "$work/debian/bin/busybox" "$tree/bin/busybox"
    ln -s /bin/busybox "$tree/sbin/init"
    link_busybox "$tree" bin
    ln -s /bin/busybox "$tree/sbin/poweroff"
    ln -s /bin/busybox "$tree/sbin/acpid"
    chmod 700 "$tree/root" "$tree/var/lib/dagger"
    find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# Commands for debugfs: every inode belongs to root and carries the fixed time, whoever builds.
own_by_root() {
    (cd "$work/root" && find . -printf '/%P\n' | sort) | while read -r path; do
        local field
        for field in uid gid; do echo "set_inode_field \"$path\" $field 0"; done
        for field in atime ctime mtime crtime; do
            echo "set_inode_field \"$path\" $field @$SOURCE_DATE_EPOCH"
        done
    done
}

make_root_filesystem() {
    local options='^64bit,^metadata_csum_seed,^orphan_file'
    # No reserved blocks (-m 0): nobody but root and one user lives here.
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -J size=4 -L dagger-root \
        -U "$ROOT_UUID" -E "hash_seed=$ROOT_UUID,resize=$ROOT_GROWTH_MAX,root_owner=0:0" -O "$options" \
        -d "$work/root" "$work/root.ext4" "$((ROOT_SECTORS / 2))k" >&2
    own_by_root >"$work/own.debugfs"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH debugfs -w -f "$work/own.debugfs" "$work/root.ext4" \
        >/dev/null 2>"$work/debugfs.log"
    ! grep -v '^debugfs ' "$work/debugfs.log" >&2 || fail "debugfs complains"
}

# One entry of the partition table: flag, type, start, length; cylinders are not used (all ones).
partition_entry() { # flag, type, start, length
    printf '%b' "\\x$1\\xfe\\xff\\xff\\x$2\\xfe\\xff\\xff"
    local value
    for value in "$3" "$4"; do
        printf '%b' "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $((value & 255)) $((value >> 8 & 255)) \
            $((value >> 16 & 255)) $((value >> 24 & 255)))"
    done
}

make_disk() {
    local disk=$work/disk.raw boot
    truncate -s $(((ROOT_START + ROOT_SECTORS) * 512)) "$disk"
    {
        head -c 440 /usr/lib/SYSLINUX/mbr.bin
        printf 'dggr\0\0'
    } | dd of="$disk" conv=notrunc status=none
    { partition_entry 80 0e $BOOT_START $BOOT_SECTORS && partition_entry 00 83 $ROOT_START $ROOT_SECTORS; } |
        dd of="$disk" bs=1 seek=446 conv=notrunc status=none
    printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none

    boot=$disk@@$((BOOT_START * 512))
    printf 'DEFAULT dagger\nPROMPT 0\nLABEL dagger\nLINUX /kernel\nINITRD /initrd\nAPPEND %s\n' \
        "$COMMAND_LINE" >"$work/syslinux.cfg"
    cp "$work"/debian/boot/vmlinuz-* "$work/kernel"
    touch -d "@$SOURCE_DATE_EPOCH" "$work"/{kernel,initrd,syslinux.cfg}
    mformat -i "$boot" -T $BOOT_SECTORS -h 16 -s 63 -H $BOOT_START -c 16 -N $FAT_SERIAL -v BOOT ::
    mcopy -m -i "$boot" "$work/kernel" "$work/initrd" "$work/syslinux.cfg" ::
    syslinux --install --offset $((BOOT_START * 512)) "$disk"
    dd if="$work/root.ext4" of="$disk" bs=512 seek=$ROOT_START conv=notrunc,sparse status=none
}

download
say "building"
make_initramfs
make_root
make_root_filesystem
make_disk
qemu-img convert -f raw -O qcow2 -c -o compat=1.1,lazy_refcounts=off "$work/disk.raw" "$work/image.qcow2"
printf '%s\n' "$COMMAND_LINE" >"$work/command-line"
sync "$work"/{image.qcow2,kernel,initrd,command-line}
for part in "${beside[@]}"; do mv "$work/$part" "${image%.qcow2}.$part"; done
mv "$work/image.qcow2" "$image"
say "$(stat -c %s "$image") bytes"
finish
