# As udev leaves it, which a container has not; the agent tries again.
chmod 666 /dev/net/tun
wait_until 30 daggerctl ledger status
# The state comes from the ledger and stood there before. What this host sees is its own, and new:
# the reboot took the machine along.
wait_until 30 bash -c "daggerctl vm show web-1 --key $keys/developer | grep -q '^seen here *running$'"
wait_until 30 bash -c "daggerctl vm ls --key $keys/developer | grep -q 'web-1 *running'"
daggerctl vm history web-1 --key "$keys/developer"
wait_until 30 bash -c "ip -brief link | grep -q ^dgr-"
# Its card and its address are the same, and somebody tells it.
tap=$(ip -brief link | grep -o '^dgr-[0-9a-f]*')
filters() { nft list ruleset | sed -n 's/.*ether saddr != \(52:54:[0-9a-f:]*\) drop.*/\1/p'; }
is_told() { [[ "$(filters) $(perl /srv/question.pl "$tap" "$(filters)")" == "$(cat /root/told.before)" ]]; }
wait_until 30 is_told
[[ $(property dagger-dhcp.socket ActiveState) == active ]]
[[ -z $(systemctl --failed --no-legend) ]]
