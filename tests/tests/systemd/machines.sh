# Machines of Cloud Hypervisor as instances of dagger-vm@.service, which the agent asks for over D-Bus.
hypervisor() {
  sed -i -e 's|^uri = .*|kind = "cloud_hypervisor"|' -e 's|^accelerator = .*|firmware = "/srv/firmware"|' \
    /etc/dagger/agent.toml
}
found
qemu-img create -q -f qcow2 /srv/disk.qcow2 1G
daggerctl image register /srv/disk.qcow2 --name op1/disk --key "$keys/operator"
create() {
  daggerctl vm create "$1" --image op1/disk --cpus 1 --memory 64MiB --disk 2GiB \
    --ssh-key "$keys/developer.pub" --key "$keys/developer" --wait running --timeout 60s
}
refused() { if "$@" 2>/dev/null; then echo "went through: $*"; return 1; fi; }
inside() { nsenter --mount --target "$pid" -- "$@"; } # the machine's view of files

echo "== a machine is a unit of its own, under its own user, beside the agent and not below it"
create web-1
unit=$(units)
[[ $unit =~ ^dagger-vm@[0-9a-f]{32}\.service$ ]]
id=${unit#dagger-vm@}; id=${id%.service}
[[ $(property "$unit" ActiveState) == active && $(property "$unit" Slice) == dagger.slice ]]
pid=$(property "$unit" MainPID)
[[ $(stat -c %U:%G "/proc/$pid") == dagger-vm:dagger-vm ]]
grep -q "$unit" "/proc/$pid/cgroup"
# Its sockets and its events are the agent's too, whatever the program means to keep to itself.
[[ $(stat -c %a "/run/dagger/vm/$id/"{api.sock,serial.sock,events}) == $'770\n770\n660' ]]
said() { grep -q UP "/var/lib/dagger-storage/consoles/$id.log"; }
wait_until 30 said

echo "== its walls"
status() { awk -v name="$1:" '$1 == name {print $2}' "/proc/$pid/status"; }
[[ $(status NoNewPrivs) == 1 && $(status Seccomp) == 2 ]]
[[ $(status CapEff) == 0000000000000000 && $(status CapBnd) == 0000000000000000 ]]
create web-2
[[ $(units | wc -l) == 2 && $(find /run/dagger/vm -mindepth 1 -maxdepth 1 -type d | wc -l) == 2 ]]
[[ $(inside ls /run/dagger) == vm && $(inside ls /run/dagger/vm) == "$id" ]]
# What all of them may write there is bounded, and what the agent writes there is its own.
[[ $(findmnt --noheadings --output FSTYPE,SIZE --raw /run/dagger/vm) == 'tmpfs 256M' ]]
[[ $(stat -c %U:%G:%a /run/dagger/vm "/run/dagger/vm/$id.json") == $'dagger-agent:dagger-vm:2750\ndagger-agent:dagger-vm:600' ]]
[[ $(ls "/run/dagger/vm/$id") == $'api.sock\napi.sock.lock\nevents\nserial.sock' ]]
[[ $(inside ls /var/lib/dagger-storage) == $'disks\nimages' ]]
# Of the disks it sees its own, by links that it cannot change.
disks=/var/lib/dagger-storage/disks
[[ $(inside ls "$disks") == attached && $(inside ls "$disks/attached") == "$id" ]]
[[ $(inside ls "$disks/attached/$id" | wc -l) == 2 ]]
[[ $(stat -c %U:%G:%a "$disks/attached" "$disks/attached/$id") == $'dagger-agent:dagger-agent:711\ndagger-agent:dagger-vm:710' ]]
refused inside setpriv --reuid dagger-vm --regid dagger-vm --clear-groups ls "$disks/attached/$id"
refused inside setpriv --reuid dagger-vm --regid dagger-vm --clear-groups touch "$disks/attached/$id/look"
for path in /etc/look /usr/look /var/lib/look /run/dagger/look /var/lib/dagger-storage/images/look; do
  refused inside touch "$path"
done
inside touch "/run/dagger/vm/$id/look" && inside rm "/run/dagger/vm/$id/look"
# Nor does it reach into another machine, whose user is the same.
other=$(property "$(units | grep -v "$id")" MainPID)
as_machine() {
  nsenter --mount --user --target "$pid" --setuid "$(id -u dagger-vm)" --setgid "$(id -g dagger-vm)" -- "$@"
}
as_machine ls "/proc/$pid/root/run/dagger/vm" | grep -Fx "$id"
refused as_machine ls "/proc/$other/root/run/dagger/vm"
# Nobody but the agent and the machine itself speaks to it.
[[ $(stat -c %U:%G:%a "/run/dagger/vm/$id") == dagger-agent:dagger-vm:*770 ]]

echo "== the agent may start and end such units, and no other"
as_agent() { runuser -u dagger-agent -- "$@"; }
as_agent systemctl --no-ask-password start "$unit"
refused as_agent systemctl --no-ask-password stop dagger-ledger.service
refused as_agent systemctl --no-ask-password start dagger-vm@other.service
refused as_agent systemd-run --no-ask-password --unit "dagger-vm@$(printf '0%.0s' {1..32})" true
[[ $(property dagger-ledger.service ActiveState) == active ]]

echo "== a process that is killed is started again, as its owner wants it to run"
kill -KILL "$pid"
is_another() {
  local now; now=$(property "$unit" MainPID)
  [[ $now != 0 && $now != "$pid" && $(property "$unit" ActiveState) == active ]]
}
wait_until 30 is_another

echo "== the agent comes again, finds its machines, and touches none"
before=$(for each in $(units); do property "$each" MainPID; done)
systemctl restart dagger-agent.service
wait_until 30 seen web-1 running
wait_until 30 seen web-2 running
[[ $(for each in $(units); do property "$each" MainPID; done) == "$before" ]]

echo "== what it found it can stop and start"
daggerctl vm stop web-1 --force --key "$keys/developer" --wait applied --timeout 60s
[[ $(units | wc -l) == 1 && $(units) != "$unit" ]]
daggerctl vm start web-1 --key "$keys/developer" --wait applied --timeout 60s
[[ $(property "$unit" ActiveState) == active ]]

echo "== what is left of a failed unit is found"
stray=$(printf '9%.0s' {1..32})
mkdir -p "/run/systemd/system/dagger-vm@$stray.service.d"
cat >"/run/systemd/system/dagger-vm@$stray.service.d/left.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=/bin/sh -c 'setsid sleep 1000 & exit 1'
BindPaths=
Type=oneshot
KillMode=process
UNIT
systemctl daemon-reload
refused systemctl start "dagger-vm@$stray.service"
[[ $(property "dagger-vm@$stray.service" ActiveState) == failed ]]
fsck() { daggerctl host fsck || [[ $? == 4 ]]; }
fsck | grep "a process of VM $stray has no directory any more"
systemctl kill --signal KILL --kill-whom all "dagger-vm@$stray.service"
systemctl reset-failed "dagger-vm@$stray.service"
nothing_left() { ! fsck | grep -q "$stray"; }
wait_until 30 nothing_left
rm -r "/run/systemd/system/dagger-vm@$stray.service.d"
systemctl daemon-reload

echo "== before the reboot"
create web-3
daggerctl vm stop web-3 --force --key "$keys/developer" --wait applied --timeout 60s
stat -c '%i %n' /var/lib/dagger-storage/disks/*.qcow2 | sort >/root/disks.before
