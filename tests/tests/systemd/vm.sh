found
systemd-analyze verify --man=no dagger.target
echo "== nobody listens for guests that ask before one is connected"
[[ $(property dagger-dhcp.socket ActiveState) == inactive ]]
qemu-img create -q -f qcow2 /srv/disk.qcow2 1G
daggerctl image register /srv/disk.qcow2 --name op1/disk --key "$keys/operator"
daggerctl vm create web-1 --image op1/disk --cpus 2 --memory 512MiB --disk 2GiB \
  --ssh-key "$keys/developer.pub" --key "$keys/developer" --wait running --timeout 60s
daggerctl vm ls --key "$keys/developer"
daggerctl vm history web-1 --key "$keys/developer"
curl -sS --fail http://127.0.0.1:7480/v1/health

echo "== the one helper with a capability has connected it, behind filters, and is gone"
tap=$(ip -brief link | grep -o '^dgr-[0-9a-f]*')
ip route show dev "$tap" | grep -F '10.77.1.2 scope link src 10.77.1.1'
nft list ruleset | grep -F "hook ingress device \"$tap\" priority -500; policy drop"
connected() { [[ -z $(systemctl list-units --no-legend 'dagger-net@*.service') ]]; }
wait_until 10 connected
daggerctl vm network web-1 --forward tcp:22 --key "$keys/developer" --wait applied --timeout 60s
nft list ruleset | grep -F 'tcp dport 20000 dnat to 10.77.1.2:22'
daggerctl vm show web-1 --key "$keys/developer" | grep -F 'host1:20000 to tcp:22'
daggerctl host fsck

echo "== a guest that asks is told what its seed says, by a process that can do nothing else"
[[ $(property dagger-dhcp.socket ActiveState) == active ]]
[[ $(property dagger-dhcp.service ActiveState) == inactive ]]
mac=$(nft list ruleset | sed -n 's/.*ether saddr != \(52:54:[0-9a-f:]*\) drop.*/\1/p')
told=$(perl /srv/question.pl "$tap" "$mac")
echo "$told"
[[ $told =~ ^10\.77\.1\.2\ 255\.255\.255\.0\ 10\.77\.1\.1\ (.*\ )?web-1$ ]]
pid=$(property dagger-dhcp.service MainPID)
[[ $(stat -c %U "/proc/$pid") == dagger-dhcp && $(property dagger-dhcp.service Slice) == dagger.slice ]]
for name in CapInh CapPrm CapEff CapBnd CapAmb; do grep -Fx "$name:"$'\t'0000000000000000 "/proc/$pid/status"; done
grep -Fx "NoNewPrivs:"$'\t'1 "/proc/$pid/status" && grep -Fx "Seccomp:"$'\t'2 "/proc/$pid/status"
# Another one is started by the next question, and says the same.
systemctl stop dagger-dhcp.service
[[ $(property dagger-dhcp.socket ActiveState) == active ]]
[[ $(perl /srv/question.pl "$tap" "$mac") == "$told" ]]
echo "$mac $told" >/root/told.before

echo "== three users, one slice, each in its own unit"
for role in agent ledger processor; do
  [[ $(property dagger-$role.service Slice) == dagger.slice ]]
  [[ $(stat -c %U "/proc/$(property dagger-$role.service MainPID)") == "dagger-$role" ]]
done

echo "== nobody else reads state or disks"
[[ $(stat -c %a /var/lib/dagger-ledger /var/lib/dagger-ledger-witness) == $'700\n700' ]]
[[ $(stat -c %a /var/lib/dagger-agent /var/lib/dagger-storage) == $'700\n711' ]]
[[ $(stat -c %a /var/lib/dagger-storage/disks /var/lib/dagger-storage/disks/*.qcow2) == $'711\n600' ]]

echo "== what a guest says is read where libvirt's daemon wrote it as root, and after it began a new file"
id=$(daggerctl vm show web-1 --key "$keys/developer" | sed -n 's/^id *//p')
log=/var/lib/dagger-storage/consoles/$id.log
said() { daggerctl vm console web-1 --log --key "$keys/developer"; }
[[ -z $(said) ]]
say() { install -m 600 /dev/null "$log"; printf '%s\n' "$1" >"$log"; }
say hello
[[ $(said) == hello && $(stat -c %U:%a "$log") == root:600 ]]
shown="ssh-ed25519 $(cut -d' ' -f2 "$keys/ledger.pub")"
has_shown() { daggerctl vm show web-1 --json --key "$keys/developer" | grep -qF "$shown"; }
mv "$log" "$log.0"
say "dagger-guest: ssh=ready host_key=$shown"
[[ $(said) == *"$shown"* ]]
wait_until 30 has_shown
gone() { [[ -z $(systemctl list-units --no-legend 'dagger-console@*.service') ]]; }
wait_until 10 gone

echo "== what could stand for a file elsewhere is not opened for the agent"
is_refused() { { said 2>&1 || true; } | grep -F "console_file_refused: $log: $1"; }
mv "$log" "$log.1"
ln -s /etc/dagger/keys/ledger_key "$log"
is_refused 'it is a link'
ln -f /etc/dagger/keys/ledger_key "$log"
is_refused 'it has another name'
rm "$log"
mkfifo -m 600 "$log"
is_refused 'it is no regular file'
rm "$log"
[[ -z $(said) ]]

echo "== what is not here is asked for by a process of its own, and not at this host's own addresses"
truncate -s 1M /srv/other.img
DAGGER_API=http://127.0.0.1:7480 daggerctl image register /srv/other.img --name op1/other --format raw \
  --source https://127.0.0.1:7480/other --key "$keys/operator"
daggerctl vm create web-2 --image op1/other --cpus 1 --memory 512MiB --disk 2GiB \
  --ssh-key "$keys/developer.pub" --key "$keys/developer" --wait ordered
why() { daggerctl vm why web-2 --key "$keys/developer" | grep -q "$1"; }
wait_until 30 why 'image_refused: address_refused: https://127.0.0.1:7480/other: it leads to an address that is not public'
daggerctl vm delete web-2 --key "$keys/developer" --wait applied

echo "== nothing failed"
[[ -z $(systemctl --failed --no-legend) ]]
