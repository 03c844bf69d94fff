#!/usr/bin/env bash
# The demo: `demo.sh BINARIES_DIR CACHE_DIR`. Four hosts on this machine; a developer's one signed request becomes one VM.
# KEEP=1 leaves everything running and says how to go on. Needs root for guests' network cards (uses sudo if it must).
set -euo pipefail

binaries=$(realpath "${1:?usage: demo.sh BINARIES_DIR CACHE_DIR}")
cache=$(realpath "${2:?usage: demo.sh BINARIES_DIR CACHE_DIR}")
here=$(cd "$(dirname "$0")/.." && pwd)

if ((EUID != 0)); then
  command -v sudo >/dev/null || { echo "demo: run it as root, or install sudo" >&2; exit 1; }
  exec sudo --preserve-env=KEEP,PATH "$0" "$binaries" "$cache"
fi

directory=${DAGGER_DEMO_DIRECTORY:-$here/.cache/demo}
image=$("$here/images/recipes/small/build.sh" --cache "$cache" | tail -n 1)
export PATH=$binaries:$PATH
started=$SECONDS

say() { printf '\n\033[1m== %s\033[0m  (%d s)\n' "$*" $((SECONDS - started)); }
run() { printf '$ %s\n' "$*"; "$@"; }

finish() {
  status=$?
  if [[ ${KEEP-} == 1 && $status == 0 ]]; then
    say "left running; go on with:"
    echo "  source $directory/environment"
    echo "  daggerctl vm ls"
    echo "  daggerctl cluster stop --directory $directory --purge"
    return
  fi
  ((status == 0)) || echo "demo: failed; logs are in $directory/logs" >&2
  say "stopping and removing everything"
  if ((status == 0)); then
    daggerctl cluster stop --directory "$directory" --purge
  else
    daggerctl cluster stop --directory "$directory" || true
  fi
  exit "$status"
}
trap finish EXIT

if [[ -e $directory ]]; then
  daggerctl cluster stop --directory "$directory" --purge || true
fi

say "four operators, four hosts, twelve daemons"
run daggerctl cluster dev --hosts 4 --directory "$directory" --detach
# shellcheck disable=SC1091
source "$directory/environment"

say "each operator grants the developer capacity on his own host"
run daggerctl account grant "$DAGGER_KEY.pub" --operator-key "$DAGGER_OPERATOR_KEYS" \
  --cpus 4 --memory 2GiB --disk 20GiB --vms 4

say "the first operator registers an image: a name for a digest"
run daggerctl image register "$image" --name op1/small --key "$directory/keys/op1"

say "one signed request"
run daggerctl vm create web-1 --image op1/small --cpus 2 --memory 512MiB --disk 3GiB \
  --ssh-key "$DAGGER_KEY.pub" --wait ssh

say "the guest has what was asked for"
# shellcheck disable=SC2016
run daggerctl ssh web-1 -- 'echo "host name: $(hostname)"; echo "CPUs: $(nproc)"; \
  awk "/MemTotal/ {print \"memory: \" int(\$2 / 1024) \" MiB\"}" /proc/meminfo; \
  echo "disk: $(($(cat /sys/block/vda/size) / 2097152)) GiB"' | tee "$directory/guest"
grep -q '^host name: web-1$' "$directory/guest"
grep -q '^CPUs: 2$' "$directory/guest"
grep -q '^disk: 3 GiB$' "$directory/guest"

say "who caused it"
run daggerctl vm history web-1

say "the hosts, and the ledger that they share"
run daggerctl host ls
run daggerctl ledger status

if [[ ${KEEP-} != 1 ]]; then
  say "deleted as it was made: by a signed request"
  run daggerctl vm delete web-1 --wait applied
fi
