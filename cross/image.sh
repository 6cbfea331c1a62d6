#!/usr/bin/env bash
# Makes the control API's container image for every platform there is a static program of:
#
#   cross/image.sh [PROGRAMS [OUTPUT]]
#
# PROGRAMS is a folder with TARGET/holdfast-api, as cross/build.sh leaves them; those that are there go
# in. OUTPUT becomes an OCI layout, and OUTPUT.tar the same as an archive:
#
#   skopeo copy --all oci:OUTPUT docker://registry.example/holdfast-api:0.1.0
#   skopeo copy oci-archive:OUTPUT.tar docker-daemon:holdfast-api:0.1.0
#
# Nothing but the program, this machine's list of certificates and a user is in it. The same programs
# and certificates give the same digests: every time stamp is SOURCE_DATE_EPOCH.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
programs=${1:-$target_dir/cross}
output=${2:-$target_dir/packages/holdfast-api.oci}
certificates=${HOLDFAST_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null) || SOURCE_DATE_EPOCH=0
fi
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)

# Rust's target, and what images call its platform. glibc programs do not run in an empty image.
platforms="
x86_64-unknown-linux-musl       amd64 -
aarch64-unknown-linux-musl      arm64 v8
armv7-unknown-linux-musleabihf  arm   v7
arm-unknown-linux-musleabihf    arm   v6
"
# Nobody on the host has this number, and it is the one that such images commonly run as.
user=65532

die() {
  echo "image.sh: $*" >&2
  exit 1
}

[ -f "$certificates" ] || die "$certificates is not there: install ca-certificates"
[ -d "$programs" ] || die "$programs is not there: run cross/build.sh TARGET api"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout
mkdir -p "$layout/blobs/sha256"
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"

# blob FILE: puts it into the layout; says its digest and its size.
blob() {
  local sum
  sum=$(sha256sum "$1" | cut -d' ' -f1)
  cp "$1" "$layout/blobs/sha256/$sum"
  echo "sha256:$sum $(stat -c %s "$1")"
}

# One platform's image; writes its line of the index to $work/manifests.
image() {
  local target=$1 architecture=$2 variant=$3 program=$programs/$1/holdfast-api
  local tree=$work/tree-$target layer=$work/layer-$target platform layer_digest layer_size diff config
  # A program with an interpreter needs a libc that the image does not have.
  if readelf -lW "$program" | grep -q INTERP; then
    die "$program is not static: nothing in the image could load it"
  fi
  mkdir -p "$tree"/usr/bin "$tree"/etc/ssl/certs "$tree"/var/lib/holdfast-api "$tree"/tmp
  install -m 755 "$program" "$tree/usr/bin/holdfast-api"
  install -m 644 "$certificates" "$tree/etc/ssl/certs/ca-certificates.crt"
  printf 'holdfast:x:%s:%s::/var/lib/holdfast-api:/nonexistent\n' "$user" "$user" >"$tree/etc/passwd"
  printf 'holdfast:x:%s:\n' "$user" >"$tree/etc/group"
  chmod 644 "$tree/etc/passwd" "$tree/etc/group"
  find "$tree" -type d -exec chmod 755 {} +
  chmod 1777 "$tree/tmp"
  chmod 700 "$tree/var/lib/holdfast-api"
  # The state's folder belongs to the user: an engine makes a new volume after it. In two parts, for tar
  # gives all files of one run the same owner.
  local same=(--format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --numeric-owner)
  tar "${same[@]}" --owner=0 --group=0 --exclude=./var/lib/holdfast-api -C "$tree" -cf "$layer" \
    ./etc ./tmp ./usr ./var
  tar "${same[@]}" --owner="$user" --group="$user" -C "$tree" -rf "$layer" ./var/lib/holdfast-api
  diff=$(sha256sum "$layer" | cut -d' ' -f1)
  gzip -9n "$layer"
  read -r layer_digest layer_size < <(blob "$layer.gz")

  platform="\"architecture\":\"$architecture\",\"os\":\"linux\""
  [ "$variant" = - ] || platform+=",\"variant\":\"$variant\""
  printf '{"created":"%s",%s,"config":{"User":"%s:%s","ExposedPorts":{"8080/tcp":{}},"Env":["PATH=/usr/bin","HOLDFAST_API_LISTEN=0.0.0.0:8080"],"Entrypoint":["/usr/bin/holdfast-api"],"Cmd":["serve"],"Volumes":{"/var/lib/holdfast-api":{}},"WorkingDir":"/","Labels":{"org.opencontainers.image.title":"holdfast-api","org.opencontainers.image.version":"%s","org.opencontainers.image.revision":"%s","org.opencontainers.image.licenses":"MIT OR Apache-2.0","org.opencontainers.image.source":"https://github.com/holdfast-project/holdfast"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"cross/image.sh"}]}' \
    "$created" "$platform" "$user" "$user" "$version" "$revision" "$diff" "$created" >"$work/config"
  read -r config config_size < <(blob "$work/config")
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
    "$config" "$config_size" "$layer_digest" "$layer_size" >"$work/manifest"
  read -r manifest manifest_size < <(blob "$work/manifest")
  printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s,"platform":{%s}}\n' \
    "$manifest" "$manifest_size" "$platform" >>"$work/manifests"
  echo "linux/$architecture ${variant#-}: $((layer_size / 1024)) KiB"
}

: >"$work/manifests"
while read -r target architecture variant; do
  if [ -z "$target" ] || [ ! -f "$programs/$target/holdfast-api" ]; then continue; fi
  image "$target" "$architecture" "$variant"
done <<<"$platforms"
[ -s "$work/manifests" ] || die "$programs has no static holdfast-api: run cross/build.sh TARGET api"

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s],"annotations":{"org.opencontainers.image.version":"%s"}}' \
  "$(paste -sd, "$work/manifests")" "$version" >"$work/index"
read -r index index_size < <(blob "$work/index")
# The layout names one image, which is the index: tools copy all platforms by one name.
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' \
  "$index" "$index_size" "$version" >"$layout/index.json"

mkdir -p "$(dirname "$output")"
rm -rf "$output" "$output.tar"
find "$layout" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
tar --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
  -C "$layout" -cf "$work/archive" .
mv "$layout" "$output"
mv "$work/archive" "$output.tar"
echo "$output and $output.tar: $version, $index"
