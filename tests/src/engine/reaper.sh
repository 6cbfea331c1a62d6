#!/bin/sh
# Ends one private engine of the lab when its last user is gone, and leaves nothing of it behind.
#   reaper.sh watch DIR SECONDS   wait until nobody holds DIR/users, linger, then sweep
#   reaper.sh sweep DIR           end and remove whatever is left of the engine in DIR
#   reaper.sh cut DIR             kill the engine and its containers at once; keep what is on the disk
# It touches only processes whose command line names DIR/exec, the control group and the bridge
# named in DIR, and mounts below DIR.
what=$1
dir=$2

engine() {
    # Prints the ids of this engine's dockerd, containerd and shims.
    for file in $(grep -slF "$dir/exec" /proc/[0-9]*/cmdline); do
        id=${file#/proc/}
        id=${id%/cmdline}
        read -r name < "/proc/$id/comm" || continue
        case $name in dockerd | containerd | containerd-shim*) echo "$id" ;; esac
    done 2> /dev/null
}

members() {
    find /sys/fs/cgroup -path "*/$(cat "$dir/cgroup")/*" -name cgroup.procs -exec cat {} + 2> /dev/null | sort -u
}

unmount() {
    awk -v below="$1" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r |
        while read -r mount; do umount -l "$mount"; done
}

bridges() {
    # The engine keeps its networks in a database of its own; each has a bridge named after it.
    grep -aohE 'bridge/[0-9a-f]{64}' "$dir/data/network/files/local-kv.db" 2> /dev/null | sort -u |
        while read -r network; do
            id=${network#bridge/}
            id=${id%"${id#????????????}"}
            ip link del "br-$id" 2> /dev/null
        done
}

cut() {
    # Again until nobody is left: a shim may have been starting another process.
    while ids="$(engine) $(members)" && [ -n "${ids# }" ]; do
        kill -KILL $ids 2> /dev/null
        sleep 0.02
    done
    unmount "$dir/exec/"
    unmount "$dir/data/"
    bridges
    rm -rf "$dir/exec" "$dir/docker.sock" "$dir/docker.pid"
}

sweep() {
    socket=unix://$dir/docker.sock
    if timeout 2 docker -H "$socket" version > /dev/null 2>&1; then
        timeout 30 docker -H "$socket" ps -aq | xargs -r timeout 30 docker -H "$socket" rm -fv
        timeout 10 docker -H "$socket" network prune -f
    fi
    for id in $(engine); do kill -TERM "$id"; done
    tries=0
    while [ -n "$(engine)" ] && [ $tries -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    for id in $(engine); do kill -KILL "$id"; done
    if [ -s "$dir/cgroup" ]; then
        for id in $(members); do kill -KILL "$id"; done
        find /sys/fs/cgroup -depth -type d \
            \( -path "*/$(cat "$dir/cgroup")" -o -path "*/$(cat "$dir/cgroup")/*" \) \
            -exec rmdir {} + 2> /dev/null
    fi
    # First: what names them may lie on a disk of the engine's own.
    bridges
    unmount "$dir/"
    [ -s "$dir/bridge" ] && ip link del "$(cat "$dir/bridge")"
    rm -rf "$dir/data" "$dir/exec" "$dir/docker.sock" "$dir/docker.pid" "$dir/bridge" "$dir/cgroup"
}

case $what in
    sweep) sweep ;;
    cut) cut ;;
    watch)
        linger=$3
        exec 8>> "$dir/reaper" 9>> "$dir/users"
        flock -n 8 || exit 0
        while :; do
            flock -x 9
            flock -u 9
            sleep "$linger"
            flock -n -x 9 && break
        done
        # No file of ours may be held open by what the sweep starts.
        sweep 8>&- 9>&-
        case $dir in */p-*) rm -rf "$dir" ;; esac
        ;;
esac
