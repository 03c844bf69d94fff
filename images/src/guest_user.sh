#cloud-boothook
#!/bin/sh
# Makes the user through whom the owner of this VM gets in, once per instance, whatever user-data says of other users.
set -eu
user=@USER@
done=/var/lib/cloud/instance/dagger-user
[ ! -e "$done" ] || exit 0

shell=/bin/bash
[ -x "$shell" ] || shell=/bin/sh
id "$user" >/dev/null 2>&1 ||
    if command -v useradd >/dev/null; then
        useradd --create-home --shell "$shell" "$user"
    else
        adduser -D -s "$shell" "$user"
    fi
home=$(eval echo "~$user")
umask 077
mkdir -p "$home/.ssh"
cat >"$home/.ssh/authorized_keys" <<'END_OF_KEYS'
@KEYS@
END_OF_KEYS
chown -R "$user:" "$home/.ssh"
! command -v restorecon >/dev/null || restorecon -R "$home/.ssh"
if [ -d /etc/sudoers.d ]; then
    echo "$user ALL=(ALL) NOPASSWD:ALL" >/etc/sudoers.d/90-dagger
    chmod 440 /etc/sudoers.d/90-dagger
fi
touch "$done"
