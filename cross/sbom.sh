#!/usr/bin/env bash
# Writes what a program is made of to standard output, as CycloneDX: cross/sbom.sh TARGET agent|api
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -eq 2 ] || die "usage: sbom.sh TARGET agent|api"
target=$1 program=$2
known_target "$target"
"$root/cross/setup.sh" build sbom

# The tool writes beside each manifest, so it gets manifests of its own; of sources it reads the names alone.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git -C "$root" ls-files --cached --others --exclude-standard -z -- '*.toml' Cargo.lock '*.rs' |
  (cd "$root" && xargs -0 cp --parents -t "$work")
case $program in
agent) folder=agent ;;
api) folder=control-api ;;
*) die "$program is no program: agent or api" ;;
esac
PATH="$tools/bin:$PATH" CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc cargo-cyclonedx cyclonedx --quiet --quiet \
  --manifest-path "$work/Cargo.toml" --format json --spec-version 1.5 --target "$target" --override-filename bom \
  >&2
# The folder's name is this machine's, and so are the number that the tool draws and the order in which it looked.
sed "s|$work|/holdfast|g" "$work/$folder/bom.json" |
  jq -S 'del(.serialNumber) | .components |= sort_by(.purl) | .dependencies |= sort_by(.ref)
    | .dependencies |= map(if .dependsOn then .dependsOn |= sort else . end)'
