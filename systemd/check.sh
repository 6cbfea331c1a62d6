#!/bin/sh
# Holds every unit and every drop-in against systemd's own checks: does it parse, and how much may it do.
# Needs systemd-analyze (Debian: systemd) and shellcheck. Touches nothing but a folder of its own.
set -eu

# What `systemd-analyze security` may say at most, in tenths: 10 is "exposed to everything".
MOST_AGENT=15
MOST_API=12

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
bad=0

fail() {
    echo "systemd/check.sh: $*" >&2
    bad=1
}

# A root file system in which the units' programs and neighbours exist.
place() {
    rm -rf "${root:?}/"*
    mkdir -p "$root/usr/bin" "$root/usr/lib/systemd/system" "$root/etc/systemd/system" "$root/etc/holdfast"
    for program in holdfast-agent holdfast-api rm systemctl; do
        printf '#!/bin/sh\n' > "$root/usr/bin/$program"
        chmod 755 "$root/usr/bin/$program"
    done
    cp "$here"/*.service "$root/usr/lib/systemd/system/"
    for unit in sysinit basic shutdown multi-user network-online time-sync sockets; do
        printf '[Unit]\nDescription=%s\n' "$unit" > "$root/usr/lib/systemd/system/$unit.target"
    done
    for unit in docker postgresql user@1000; do
        printf '[Unit]\nDescription=%s\n[Service]\nExecStart=/usr/bin/rm\n' "$unit" \
            > "$root/usr/lib/systemd/system/$unit.service"
    done
    printf '[Unit]\nDescription=podman\n[Service]\nExecStart=/usr/bin/rm\n' > "$root/usr/lib/systemd/system/podman.service"
    for unit in docker podman; do
        printf '[Unit]\nDescription=%s\n[Socket]\nListenStream=/run/%s.sock\n' "$unit" "$unit" \
            > "$root/usr/lib/systemd/system/$unit.socket"
    done
}

# Everything that systemd says about a unit is wrong with it.
verify() {
    said=$(systemd-analyze verify --root="$root" --man=no "$1" 2>&1) || true
    [ -z "$said" ] || fail "$2: $said"
}

score() {
    # "→ Overall exposure level for NAME: 1.5 OK"
    found=$(systemd-analyze security --offline=true --no-pager --root="$root" "$1" |
        sed -n 's/.*exposure level for.*: \([0-9]*\)\.\([0-9]\).*/\1\2/p')
    if [ -z "$found" ]; then
        fail "$1: systemd-analyze gives no score"
    elif [ "$found" -gt "$2" ]; then
        fail "$1: exposure $found tenths, at most $2 are allowed"
    else
        echo "$1: exposure $found tenths of at most $2"
    fi
}

place
for unit in holdfast-agent holdfast-agent-enroll holdfast-api; do
    verify "$unit.service" "$unit.service"
done
score holdfast-agent.service "$MOST_AGENT"
score holdfast-agent-enroll.service "$MOST_AGENT"
score holdfast-api.service "$MOST_API"

for file in "$here"/examples/*.d/*.conf; do
    place
    folder=$(basename "$(dirname "$file")")
    mkdir -p "$root/etc/systemd/system/$folder"
    cp "$file" "$root/etc/systemd/system/$folder/"
    verify "${folder%.d}" "$folder/$(basename "$file")"
done

for script in "$here"/*.sh; do
    shellcheck --shell=sh "$script" || fail "$(basename "$script"): see above"
done

[ "$bad" = 0 ] && echo "units, drop-ins and scripts are good"
exit "$bad"
