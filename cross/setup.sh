#!/usr/bin/env bash
# Installs what cross builds need and the machine lacks: cross/setup.sh build|package|sbom|test|image|run …
# Debian packages by name; zig from PyPI and cargo-zigbuild from crates.io, which Debian does not have.
set -euo pipefail
. "$(dirname "$0")/common.sh"

missing=()
need() {
  local command=$1
  shift
  [ -e "$command" ] || PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 || missing+=("$@")
}

for what in "$@"; do
  case $what in
  build)
    need /usr/bin/cargo cargo-web
    need /usr/bin/rustc rustc-web
    need /usr/lib/rustlib/src/rust rust-web-src
    need cc gcc libc6-dev
    need python3 python3
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    ;;
  package)
    need dpkg-deb dpkg
    need xz xz-utils
    need minisign minisign
    need jq jq
    ;;
  sbom)
    need /usr/bin/cargo cargo-web
    need /usr/bin/rustc rustc-web
    need cc gcc libc6-dev
    need jq jq
    ;;
  test)
    need debootstrap debootstrap
    need openssl openssl
    ;;
  image)
    need docker docker.io
    need docker-compose docker-compose
    need skopeo skopeo
    need curl curl
    need jq jq
    ;;
  run)
    need qemu-arm-static qemu-user-static
    need readelf binutils
    need jq jq
    need /usr/aarch64-linux-gnu/lib/libc.so.6 libc6-arm64-cross
    need /usr/arm-linux-gnueabihf/lib/libc.so.6 libc6-armhf-cross
    ;;
  *) die "$what: build, package, sbom, test, image or run" ;;
  esac
done

if [ "${#missing[@]}" -gt 0 ]; then
  [ "$(id -u)" -eq 0 ] || die "missing: ${missing[*]}; install them, or run this as root"
  echo "installing ${missing[*]} …" >&2
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # Another installation may be under way; five minutes is longer than any of ours.
  if ! { apt-get update -qq &&
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
  fi
fi

mkdir -p "$tools"
# Two builds at once must not install into the same folder.
exec 9>"$tools/.lock"
flock 9

# Debian's compiler, because it is there on every machine that builds packages.
from_crates_io() {
  local crate=$1 crate_version=$2
  shift 2
  [ ! -x "$tools/bin/$crate" ] || return 0
  echo "installing $crate …" >&2
  CARGO_TARGET_DIR="$tools/build" RUSTC=/usr/bin/rustc /usr/bin/cargo install --quiet --locked "$@" \
    --version "$crate_version" --root "$tools" "$crate"
  rm -rf "$tools/build"
}

for what in "$@"; do
  case $what in
  build)
    if ! "$tools/zig/bin/python3" -m ziglang version >/dev/null 2>&1; then
      echo "installing zig …" >&2
      rm -rf "$tools/zig"
      python3 -m venv "$tools/zig"
      # Of exactly these contents, because it links every program that is shipped.
      "$tools/zig/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$root/cross/zig.txt"
    fi
    from_crates_io cargo-zigbuild 0.24.1 --no-default-features
    ;;
  sbom) from_crates_io cargo-cyclonedx 0.5.9 ;;
  esac
done
