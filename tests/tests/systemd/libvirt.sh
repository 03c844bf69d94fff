# A guest by libvirt's own daemon and QEMU, which run as other users than the agent: what is promised where everything is
# one user's has to hold here too.
hypervisor() {
  # Nothing may be written to control groups in a container.
  echo 'cgroup_controllers = [ ]' >>/etc/libvirt/qemu.conf
  systemctl restart libvirtd.service
}
found
daggerctl image register /srv/small.qcow2 --name op1/small --key "$keys/operator"
export DAGGER_KEY=$keys/developer
owners() { stat -c '%U %a' "$@"; }

echo "== a guest is logged in to, by the key that it told on its console"
daggerctl vm create web-1 --image op1/small --cpus 1 --memory 256MiB --disk 2GiB \
  --ssh-key "$keys/developer.pub" --wait ssh --timeout 120s
daggerctl vm console web-1 --log | grep -F 'dagger-guest: ssh=ready'
daggerctl vm show web-1 | grep -F 'ssh-ed25519'
said=$(daggerctl ssh web-1 -- uname -n 2>&1)
[[ $said == web-1 ]]

echo "== its disk is QEMU's while it runs, and the agent's again when it is off"
disks=/var/lib/dagger-storage/disks
[[ $(owners "$disks"/*.qcow2) == 'libvirt-qemu 600' ]]
daggerctl volume create data --size 1GiB --vm web-1 --wait applied
daggerctl volume attach data web-1 --wait applied
daggerctl volume snapshot data before --wait applied
[[ $(owners "$disks"/*.volume "$disks"/*.snapshot) == $'libvirt-qemu 600\ndagger-agent 600' ]]
daggerctl volume detach data --wait applied
daggerctl volume restore data before --wait applied
daggerctl vm stop web-1 --wait applied
[[ $(owners "$disks"/*.volume "$disks"/*.qcow2) == $'dagger-agent 600\ndagger-agent 600' ]]
daggerctl vm export web-1 /srv/web-1.vm

echo "== the agent comes again and touches nothing"
daggerctl vm start web-1 --wait applied
pid=$(pidof qemu-system-x86_64)
systemctl restart dagger-agent.service
wait_until 30 seen web-1 running
[[ $(pidof qemu-system-x86_64) == "$pid" ]]

echo "== what is deleted is kept, and nothing else is left"
daggerctl vm delete web-1 --wait applied
[[ $(ls "$disks"/quarantine/*.qcow2.*) ]]
daggerctl host fsck
[[ -z $(systemctl --failed --no-legend) ]]
