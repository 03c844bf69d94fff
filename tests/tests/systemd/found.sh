# Founds a cluster of this one host, as an operator does it by hand, and starts it.
export DAGGER_API=unix:/run/dagger/api/api.sock
keys=/root/keys

# wait_until SECONDS COMMAND...: repeats a quick look until it holds.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "never came true: $*"; systemctl --no-pager --failed; return 1; }
    sleep 0.05
  done
}
property() { systemctl show --value --property "$2" "$1"; }

units() { systemctl list-units --all --plain --no-legend 'dagger-vm@*' | cut -d' ' -f1; }
# What this host sees of a VM.
seen() { daggerctl vm show "$1" --key "$keys/developer" | grep -q "^seen here *$2$"; }

# What runs machines here, unless a script says otherwise.
hypervisor() { sed -i 's|qemu:///system|test:///default|' /etc/dagger/agent.toml; }

found() {
  systemd-sysusers dagger.conf
  systemd-tmpfiles --create dagger.conf
  mkdir -p "$keys"
  for key in operator developer ledger agent; do
    ssh-keygen -q -t ed25519 -N '' -C "$key" -f "$keys/$key"
  done
  install -m 600 "$keys/ledger" /etc/dagger/keys/ledger_key
  install -m 600 "$keys/agent" /etc/dagger/keys/agent_key
  cp /usr/share/dagger/{agent,ledger,processor}.toml /etc/dagger/
  hypervisor
  # As udev leaves it, which a container has not.
  chmod 666 /dev/net/tun
  daggerctl genesis make --name one --operator "op1=$keys/operator.pub" \
    --host "host1=op1,$keys/ledger.pub,127.0.0.1:7400" >/etc/dagger/genesis.json
  daggerctl genesis sign /etc/dagger/genesis.json --key "$keys/operator"
  for daemon in processor ledger agent; do
    CREDENTIALS_DIRECTORY=/etc/dagger/keys "dagger-$daemon" --check
  done
  systemctl enable --now dagger.target
  wait_until 30 daggerctl ledger status
  daggerctl host join host1 --region eu-1 --cpus 8 --memory 16GiB --disk 100GiB \
    --guest-subnet 10.77.1.0/24 --forward-ports-first 20000 --ledger-key "$keys/ledger.pub" --agent-key "$keys/agent.pub" \
    --key "$keys/operator"
  daggerctl account grant "$keys/developer.pub" --cpus 4 --memory 4GiB --disk 50GiB \
    --key "$keys/operator"
}
