#!/usr/bin/env bash
# Installs what demo and tests need and the machine lacks: Debian packages by name, nothing else.
set -euo pipefail

# Packages by the command they bring; without libc6-dev a compiler links nothing.
declare -A packages=(
  [dockerd]="docker.io" [iptables]="iptables" [ip]="iproute2" [docker-registry]="docker-registry"
  [cc]="gcc libc6-dev" [curl]="curl ca-certificates" [git]="git"
  [strace]="strace" [sqlite3]="sqlite3"
  [minisign]="minisign" [openssl]="openssl" [shellcheck]="shellcheck" [systemd-analyze]="systemd"
  [busybox]="busybox" [wget]="wget" [skopeo]="skopeo"
)
missing=()
PATH="$PATH:/usr/sbin:/sbin"
for command in "${!packages[@]}"; do
  if ! command -v "$command" >/dev/null 2>&1; then
    read -ra names <<<"${packages[$command]}"
    missing+=("${names[@]}")
  fi
done
# Every installed PostgreSQL keeps its server programs in a folder of its own.
if ! command -v initdb >/dev/null 2>&1 && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
  missing+=(postgresql)
fi
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "missing: ${missing[*]}; install them, or run this as root" >&2
  exit 1
fi
echo "installing ${missing[*]} …" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A package's own start of its service is not wanted: the lab starts what it needs itself.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$log" "$policy"' EXIT
fi
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
