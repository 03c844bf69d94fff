# Looks out from inside each daemon's own unit: the installed unit with another command.
found
from_inside() { # ROLE, and lines on standard input: `can` or `cannot`, and a command
  cat >/run/look.lines
  cat >/run/look.sh <<'LOOK'
failures=0
while read -r expected command; do
  if (eval "$command") </dev/null >/dev/null 2>&1; then found=can; else found=cannot; fi
  [[ $found == "$expected" ]] || { echo "$found: $command"; failures=$((failures + 1)); }
done </run/look.lines
exit $((failures > 0))
LOOK
  sed -e 's|^ExecStart=.*|ExecStart=/usr/bin/bash /run/look.sh\nBindReadOnlyPaths=/run/look.sh /run/look.lines|' -e 's/^Type=.*/Type=oneshot/' \
    -e '/^Sockets=/d; /^Standard/d; /^NoExecPaths=/d; /^ExecPaths=/d; /^Requires=/d; /^Restart/d; /^WatchdogSec=/d; /^NotifyAccess=/d' \
    "/lib/systemd/system/dagger-$1.service" >/run/systemd/system/look.service
  systemctl daemon-reload
  systemctl start look.service || { journalctl --no-pager --unit look.service; return 1; }
}
# Whether a Unix socket can be connected to: curl ends with 7 when it cannot.
connect() { echo "curl -s -m 1 --unix-socket $1 http://any/; ((\$? != 7))"; }

ledger=/run/dagger/agent-ledger/ledger.sock
processor=/run/dagger/ledger-processor/processor.sock
seal=/run/dagger/processor-agent/seal.sock
api=/run/dagger/api/api.sock
console=/run/dagger/agent-console/console.sock
everyone="cannot cat /etc/dagger/keys/ledger_key
cannot cat /etc/dagger/keys/agent_key
cannot head -c 1 /dev/kmsg
cannot touch /etc/dagger/genesis.json
cannot touch /var/lib/look
cannot unshare --user true
cannot cat /proc/1/environ
can cat /etc/dagger/genesis.json"

echo "== the agent reaches what it works with, and no network"
from_inside agent <<LINES
$everyone
can $(connect $ledger)
can $(connect $seal)
can $(connect $console)
cannot $(connect $processor)
cannot exec 3<>/dev/tcp/127.0.0.1/7400
can touch /var/lib/dagger-agent/look; rm /var/lib/dagger-agent/look
can touch /var/lib/dagger-storage/look; rm /var/lib/dagger-storage/look
cannot ls /var/lib/dagger-ledger
cannot ls /var/lib/dagger-ledger-witness
LINES

echo "== the ledger reaches its processor and the network"
from_inside ledger <<LINES
$everyone
can $(connect $processor)
cannot $(connect $console)
cannot $(connect $seal)
cannot $(connect $ledger)
cannot $(connect $api)
can exec 3<>/dev/tcp/127.0.0.1/7400
can touch /var/lib/dagger-ledger/look; rm /var/lib/dagger-ledger/look
cannot ls /var/lib/dagger-agent
cannot ls /var/lib/dagger-storage
LINES

echo "== a download reaches the network, and nothing of ours"
from_inside fetch@ <<LINES
can exec 3<>/dev/tcp/127.0.0.1/7400
can cat /etc/ssl/certs/ca-certificates.crt
cannot ls /etc/dagger
cannot ls /var/lib/dagger-agent
cannot ls /var/lib/dagger-storage/images
cannot touch /var/lib/look
cannot touch /srv/look
cannot unshare --user true
cannot cat /proc/1/environ
cannot $(connect $ledger)
cannot $(connect $processor)
cannot $(connect $seal)
cannot $(connect $api)
cannot $(connect $console)
LINES

echo "== who opens consoles' files may read every file, and sees no other"
consoles=/var/lib/dagger-storage/consoles
printf 'login: ' >$consoles/look.log
chmod 600 $consoles/look.log
from_inside console@ <<LINES
can [[ \$(<$consoles/look.log) == 'login: ' ]]
can [[ \$(grep -Ec '^Cap(Prm|Eff|Bnd|Amb):.0000000000000004\$' /proc/self/status) == 4 ]]
can [[ \$(echo /*) == '/dev /etc /lib /lib64 /proc /root /run /sys /tmp /usr /var' ]]
can [[ -z \$(ls -A /etc; ls -A /root; ls -A /tmp; ls -A /var/tmp) ]]
can [[ \$(echo /run/* /var/*) == '/run/look.lines /run/look.sh /run/systemd /var/lib /var/tmp' ]]
can [[ \$(find /run/systemd -type f -o -type s | wc -l) == 0 ]]
can [[ \$(echo /var/lib/* /var/lib/*/*) == '/var/lib/dagger-storage $consoles' ]]
cannot cat /proc/1/environ
cannot ls /proc/1/root
cannot touch $consoles/look.log
cannot touch $consoles/look
cannot rm $consoles/look.log
cannot touch /look
cannot touch /var/look
cannot unshare --user true
cannot exec 3<>/dev/tcp/127.0.0.1/7400
cannot $(connect $console)
cannot $(connect $api)
LINES
rm $consoles/look.log

echo "== the processor reaches nothing"
from_inside processor <<LINES
$everyone
cannot $(connect $processor)
cannot $(connect $seal)
cannot $(connect $ledger)
cannot $(connect $api)
cannot $(connect $console)
cannot exec 3<>/dev/tcp/127.0.0.1/7400
cannot ls /var/lib/dagger-ledger
cannot ls /var/lib/dagger-agent
cannot ls /var/lib/dagger-storage
LINES

echo "== a daemon that hangs is ended and comes back, one that was killed comes back"
mkdir -p /run/systemd/system/dagger-processor.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/dagger-processor.service.d/quick.conf
systemctl daemon-reload
systemctl restart dagger-processor.service
kill -STOP "$(property dagger-processor.service MainPID)"
came_back() { [[ $(property "$1" NRestarts) == 1 && $(property "$1" ActiveState) == active ]]; }
wait_until 20 came_back dagger-processor.service
kill -KILL "$(property dagger-ledger.service MainPID)"
wait_until 20 came_back dagger-ledger.service
ssh-keygen -q -t ed25519 -N '' -C other -f "$keys/other"
wait_until 20 daggerctl account grant "$keys/other.pub" --cpus 1 --memory 1GiB --disk 1GiB \
  --key "$keys/operator"

echo "== a stopped ledger's store is read by its own user, and goes on"
systemctl stop dagger-agent.service dagger-ledger.socket dagger-ledger.service
systemd-run --quiet --pipe --wait --uid dagger-ledger \
  --property LoadCredential=ledger_key:/etc/dagger/keys/ledger_key dagger-ledger --scan all
systemctl start dagger.target
wait_until 20 daggerctl ledger status
[[ -z $(find /var/lib/dagger-ledger ! -user dagger-ledger) ]]

echo "== a refused configuration is not tried again"
echo 'unknown = 1' >>/etc/dagger/ledger.toml
systemctl stop dagger-agent.service dagger-agent.socket dagger-agent-tcp.socket
systemctl restart dagger-ledger.service || true
failed() { [[ $(property "$1" ActiveState) == failed ]]; }
wait_until 20 failed dagger-ledger.service
[[ $(property dagger-ledger.service ExecMainStatus) == 64 ]]
[[ $(property dagger-ledger.service NRestarts) == 0 ]]
