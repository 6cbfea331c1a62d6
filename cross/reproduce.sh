#!/usr/bin/env bash
# Builds a program in two clones that lie in different folders and compares them: cross/reproduce.sh TARGET [agent|api]
# Of the commit, not of what is not committed. Both clones build from nothing, so it takes twice as long as a build.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -ge 1 ] || die "which target? one of: $(targets | tr '\n' ' ')"
target=$1 program=${2:-agent}
known_target "$target"
commit=$(git -C "$root" rev-parse HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sums=()
# Names of different lengths, so that a path which stays would move what follows it.
for folder in "$work/one" "$work/another/with a longer name"; do
  folder=${folder// /-}
  mkdir -p "$(dirname "$folder")"
  git clone --quiet --no-checkout "$root" "$folder"
  git -C "$folder" checkout --quiet "$commit"
  env -u CARGO_TARGET_DIR -u SOURCE_DATE_EPOCH HOLDFAST_BUILD=debian "$folder/cross/build.sh" "$target" "$program"
  sum=$(sha256sum <"$folder/target/cross/$target/holdfast-$program")
  echo "${sum%% *}  $folder"
  sums+=("$sum")
  cp "$folder/target/cross/$target/holdfast-$program" "$work/${#sums[@]}"
  rm -rf "$folder"
done
if [ "${sums[0]}" != "${sums[1]}" ]; then
  cmp "$work/1" "$work/2" || true
  die "$target holdfast-$program: two builds of $commit differ"
fi
echo "$target holdfast-$program: two builds of $commit are the same"
