# Sourced by the scripts of this folder: where things are, and how cross/targets is read.
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
# Tools that no Debian package brings are kept from one clone to the next.
tools=${HOLDFAST_CROSS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast-cross}
packages=${HOLDFAST_PACKAGES:-$target_dir/packages}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml")

# Every time stamp in what is made: that of the commit, so that tomorrow's build is the same.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null) || SOURCE_DATE_EPOCH=0
fi
export SOURCE_DATE_EPOCH

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

targets() {
  awk '!/^#/ && NF { print $1 }' "$root/cross/targets"
}

# One column of a target's line: glibc, deb or runs.
target_says() {
  awk -v target="$1" -v column="$2" '
    $1 != target { next }
    column == "glibc" { print $2 }
    column == "deb" { print $3 }
    column == "runs" && $4 != "-" { $1 = $2 = $3 = ""; sub(/^ +/, ""); print }
  ' "$root/cross/targets"
}

known_target() {
  targets | grep -qxF -- "$1" || die "$1 is no target of cross/targets: $(targets | tr '\n' ' ')"
}

# Where cross/build.sh leaves a program.
built() {
  echo "$target_dir/cross/$1/holdfast-$2"
}
