#!/usr/bin/env bash
# The demo of what the cluster may decide: `demo-membership.sh BINARIES_DIR CACHE_DIR`. What is refused and why; an operator and his host who
# join while others order; a dead host's VM; one bill, computed by two hosts and by a stranger. Machines are on paper: it needs neither root nor QEMU.
# Each step is checked; the first that does not hold ends it with 1. KEEP=1 leaves everything running and says how to go on.
set -euo pipefail

binaries=$(realpath "${1:?usage: demo-membership.sh BINARIES_DIR CACHE_DIR}")
cache=$(realpath -m "${2:?usage: demo-membership.sh BINARIES_DIR CACHE_DIR}")
directory=${DAGGER_DEMO_DIRECTORY:-$cache/demo-membership}
export PATH=$binaries:$PATH
started=$SECONDS
client=

say() { printf '\n\033[1m== %s\033[0m  (%d s)\n' "$*" $((SECONDS - started)); }
run() { printf '$ %s\n' "$*"; "$@"; }
fail() { echo "demo-membership: $*" >&2; exit 1; }
# `shows TEXT COMMAND...` prints what the command prints, and insists on the text.
shows() {
  local text=$1 said
  shift
  printf '$ %s\n' "$*"
  said=$("$@") || fail "this was to succeed: $*"
  printf '%s\n' "$said"
  [[ $said == *"$text"* ]] || fail "this was to be shown: $text"
}
# `refuses CODE COMMAND...` insists that the command is refused with this code, and that the rule is named.
refuses() {
  local code=$1 said status=0
  shift
  printf '$ %s\n' "$*"
  said=$("$@" 2>&1) || status=$?
  printf '%s\n' "$said"
  ((status == 1)) || fail "exit code 1 was to say 'refused', not $status"
  [[ $said == *"[$code]"* && $said == *"the rule: "* ]] || fail "[$code] and its rule were to be named"
}
# `until_true SECONDS WHAT COMMAND...` looks until the command succeeds.
until_true() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "waited in vain until $what"
    sleep 0.2
  done
}
# The API of one host alone: none answers in its place.
api() { tr ',' '\n' <<<"$DAGGER_API" | grep "/$1/"; }
is_running() { daggerctl --api "$(api "$2")" vm show "$1" --json | grep -q '"state": "running"'; }
position() { daggerctl ledger status --json | sed -n 's/^  "position": \([0-9]*\).*/\1/p'; }

# One order after the other, without a rest; one line for each: when it was answered, in microseconds.
order_all_the_time() {
  local what=protect
  while daggerctl vm "$what" steady --json >/dev/null; do
    echo "${EPOCHREALTIME//[.,]/}" >>"$directory/answered"
    if [[ $what == protect ]]; then what=unprotect; else what=protect; fi
  done
  touch "$directory/client-failed"
}
# Says how many orders were answered since the last call, and the longest that one took; more than 20 s is a failure.
client_says() {
  local count longest
  [[ ! -e $directory/client-failed ]] || fail "the client was refused something"
  read -r count longest < <(awk 'NR > 1 && $1 - last > most { most = $1 - last } { last = $1 }
    END { printf "%d %d\n", NR, most / 1000 }' "$directory/answered")
  tail -n 1 "$directory/answered" >"$directory/answered.new"
  mv "$directory/answered.new" "$directory/answered"
  echo "meanwhile a client had $count orders carried out, one after the other; the longest pause was $longest ms"
  ((count > 5 && longest < 20000)) || fail "ordering was to go on"
}

finish() {
  status=$?
  if [[ -n $client ]]; then
    kill "$client" 2>/dev/null || true
    wait "$client" 2>/dev/null || true
  fi
  if [[ ${KEEP-} == 1 && $status == 0 ]]; then
    say "left running; go on with:"
    echo "  source $directory/environment"
    echo "  daggerctl operator ls"
    echo "  daggerctl cluster stop --directory $directory --purge"
    return
  fi
  say "stopping the cluster"
  if ((status == 0)); then
    daggerctl cluster stop --directory "$directory" --purge
  else
    echo "demo-membership: failed; logs are in $directory/logs" >&2
    daggerctl cluster stop --directory "$directory" || true
  fi
  exit "$status"
}
trap finish EXIT

if [[ -e $directory ]]; then
  daggerctl cluster stop --directory "$directory" --purge >/dev/null || true
fi

say "four operators, four hosts; the machines are on paper"
run daggerctl cluster dev --hosts 4 --hypervisor test --directory "$directory" --detach >/dev/null
# shellcheck disable=SC1091
source "$directory/environment"
keys=$directory/keys
daggerctl account grant "$DAGGER_KEY.pub" --operator-key "$DAGGER_OPERATOR_KEYS" \
  --cpus 4 --memory 2GiB --disk 20GiB --vms 8 >/dev/null 2>&1
qemu-img create -q -f qcow2 "$directory/paper.qcow2" 1M
daggerctl image register "$directory/paper.qcow2" --name op1/small --key "$keys/op1" >/dev/null 2>&1
order_vm() {
  run daggerctl vm create "$1" --image op1/small --cpus 1 --memory 256MiB --disk 1GiB \
    --ssh-key "$DAGGER_KEY.pub" --timeout 60s "${@:2}"
}
# host2 stays empty, so that the next VM goes there: the emptiest host is chosen.
order_vm steady --host host1 --wait running >/dev/null 2>&1
order_vm web-3 --host host3 --wait running >/dev/null 2>&1
order_vm web-4 --host host4 --wait running >/dev/null 2>&1
run daggerctl host ls
run daggerctl vm ls

say "refused: with what is wrong, a stable code, and the rule that says so"
before=$(position)
refuses grant_exceeded daggerctl vm create large --image op1/small --cpus 5 --memory 256MiB --disk 1GiB --ssh-key "$DAGGER_KEY.pub"
refuses not_authorized daggerctl host drain host2 --key "$keys/op1"
refuses state_wrong daggerctl host leave host4 --key "$keys/op4"
[[ $(position) == "$before" ]] || fail "nothing of what was refused was to be ordered"

say "from here on a client orders without a rest"
order_all_the_time &
client=$!
until_true 20 "the client orders" test -s "$directory/answered"
founders=$(cd "$directory/pids" && sort -- *)

say "a fifth operator: proposed by the first, approved by two more of the four"
# His keys and his host's; nothing is ordered yet.
daggerctl cluster add-host --name host5 >/dev/null
shows "waits for approvals" daggerctl operator propose add-operator op5 "$keys/op5.pub" --key "$keys/op1"
proposal=$(daggerctl operator ls --json | sed -n 's/^ *"id": "\([0-9a-f]\{64\}\)".*/\1/p' | head -n 1)
shows "waits for approvals" daggerctl operator approve "${proposal:0:12}" --key "$keys/op2"
shows "is done" daggerctl operator approve "${proposal:0:12}" --key "$keys/op4"

say "his host: his word alone lets it follow and verify; its vote takes more than two thirds of all five operators"
shows "host5 follows" daggerctl cluster add-host --name host5
# shellcheck disable=SC1091
source "$directory/environment"
epoch=$(daggerctl ledger status | grep '^epoch')
[[ $epoch != *host5* ]] || fail "host5 was not to vote yet"
echo "$epoch"
run daggerctl operator propose add-voter host5 --key "$keys/op5"
proposal=$(daggerctl operator ls | awk '/host5 to vote/ { print $1; exit }')
shows "is done" daggerctl operator approve "$proposal" \
  --operator-key "$keys/op1,$keys/op2,$keys/op3" --wait applied
shows "host4, host5 vote" daggerctl ledger status
[[ $(cd "$directory/pids" && sort -- *-host[1-4]) == "$founders" ]] || fail "a founder's daemon was started again"
echo "the twelve daemons of the four founders are the same processes as before"
# Before it signs it has two of the others say what they hold of its events.
host5=$(api host5)
signs() { daggerctl --api "$host5" ledger status | grep -q '^changes *possible'; }
until_true 30 "host5 signs" signs
client_says

say "host2 dies, and a VM is ordered that goes there: it is the emptiest"
for role in agent ledger processor; do run kill -9 "$(<"$directory/pids/$role-host2")"; done
order_vm orphan --wait ordered
shows "host2 was chosen" daggerctl vm why orphan
until_true 60 "another host runs it" is_running orphan host1
history=$(daggerctl vm history orphan)
echo "$ daggerctl vm history orphan   (where it went)"
awk -v RS= '/placed on| accepted\n/ { print $0 "\n" }' <<<"$history"
grep -q 'host2 did not accept in time; placed on host[134]' <<<"$history" || fail "it was to go elsewhere"
(($(grep -c ' accepted$' <<<"$history") == 1)) || fail "one host was to accept it, once"
client_says

say "host2 comes back: it reads what happened, and touches nothing"
for role in processor ledger agent; do daggerctl cluster start-daemon "$role" host2 >/dev/null; done
until_true 60 "host2 sees where it is" is_running orphan host2
host2=$(api host2)
shows "orphan" daggerctl --api "$host2" vm ls
run daggerctl --api "$host2" host fsck || fail "host2 was to have nothing that it should not have"
(($(daggerctl --api "$host2" vm history orphan | grep -c ' accepted$') == 1)) || fail "it was to be accepted once"

say "a bill, written by one host and computed again by another"
kill "$client"
wait "$client" 2>/dev/null || true
client=
host1=$(api host1)
run daggerctl --api "$host1" account usage
commit=$(daggerctl --api "$host1" account usage --json | sed -n 's/^  "commit": \([0-9]*\).*/\1/p')
echo "$ daggerctl --api $host1 account usage --commit $commit --json > bill.json"
daggerctl --api "$host1" account usage --commit "$commit" --json >"$directory/bill.json"
until_true 20 "host5 has judged that commit" daggerctl --api "$host5" account usage --commit "$commit"
daggerctl --api "$host5" account usage --commit "$commit" --json | cmp - "$directory/bill.json"
shows "byte for byte" daggerctl --api "$host5" account usage --check "$directory/bill.json"
# One more millisecond of one processor.
awk '!done && /"cpu_ms"/ { match($0, /[0-9]+/); n = substr($0, RSTART, RLENGTH); sub(n, n + 1); done = 1 } { print }' \
  "$directory/bill.json" >"$directory/padded.json"
status=0
run daggerctl --api "$host5" account usage --check "$directory/padded.json" || status=$?
((status == 4)) || fail "one millisecond too much was to be found"

say "the same bill, computed by somebody who has files and asks nobody"
echo "$ daggerctl --api $host5 ledger export > history; daggerctl --api $host1 ledger proof order > order.json"
daggerctl --api "$host1" ledger proof order >"$directory/order.json"
daggerctl --api "$host5" ledger export >"$directory/history"
alone=(env -u DAGGER_API -u DAGGER_KEY daggerctl account usage --proof "$directory/order.json" --genesis "$directory/genesis.json")
shows "byte for byte" "${alone[@]}" --from-log "$directory/history" --check "$directory/bill.json"
status=0
run "${alone[@]}" --from-log "$directory/history" --check "$directory/padded.json" || status=$?
((status == 4)) || fail "one millisecond too much was to be found"
# A VM of that history is called something else.
LC_ALL=C sed 's/steady/studio/' "$directory/history" >"$directory/forged"
cmp -s "$directory/history" "$directory/forged" && fail "the forged history was to differ"
status=0
run "${alone[@]}" --from-log "$directory/forged" --check "$directory/bill.json" || status=$?
((status == 1)) || fail "the forged history was to be found"

say "all of it holds"
