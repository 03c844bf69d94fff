echo "== after a reboot those that ran run again, each in a unit of its own over its own disk, and who was off stays off"
# As udev leaves it, which a container has not; the agent tries again.
chmod 666 /dev/net/tun
wait_until 30 daggerctl ledger status
for vm in web-1 web-2; do wait_until 60 seen "$vm" running; done
wait_until 30 seen web-3 stopped
[[ $(units | wc -l) == 2 ]]
for unit in $(units); do
  id=${unit#dagger-vm@}; id=${id%.service}
  pid=$(property "$unit" MainPID)
  [[ $(property "$unit" ActiveState) == active && $(stat -c %U "/proc/$pid") == dagger-vm ]]
  disks=/var/lib/dagger-storage/disks
  [[ $(ls "$disks/attached/$id" | wc -l) == 2 && $(stat -c %h "$disks"/*"$id".qcow2) == 2 ]]
done
stat -c '%i %n' /var/lib/dagger-storage/disks/*.qcow2 | sort | diff /root/disks.before -
daggerctl host fsck
daggerctl vm start web-3 --key "$keys/developer" --wait applied --timeout 60s
[[ $(units | wc -l) == 3 ]]
unit=$(units | head -1)

echo "== deleted, even just after a death, they leave nothing"
kill -KILL "$(property "$unit" MainPID)"
for vm in web-1 web-2 web-3; do
  daggerctl vm delete "$vm" --key "$keys/developer" --wait applied --timeout 60s
done
[[ -z $(units) ]]
[[ -z $(ls -A /run/dagger/vm) && -z $(ls -A /var/lib/dagger-storage/disks/attached) ]]
[[ -z $(find /proc -maxdepth 1 -user dagger-vm) ]]
[[ -z $(systemctl --failed --no-legend) ]]
