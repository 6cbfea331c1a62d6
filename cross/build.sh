#!/usr/bin/env bash
# Builds the programs of one target as they are shipped: cross/build.sh TARGET [agent] [api]
#
# With what it builds: HOLDFAST_BUILD=debian, rustup or cross; without it, rustup where it has the target and
# cargo-zigbuild is there, then `cross` with a container engine, then Debian's own compiler, which it can install.
# Only Debian's compiler builds the standard library anew for size, so only its programs are as small as
# docs/footprint.md says, and only two of its builds can be compared byte by byte: packages are made with it.
# HOLDFAST_SYMBOLS=1 leaves the agent its symbols, for a profiler; nothing else of it changes.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -ge 1 ] || die "which target? one of: $(targets | tr '\n' ' ')"
target=$1
shift
known_target "$target"
[ $# -gt 0 ] || set -- agent
for program in "$@"; do
  case $program in
  agent | api) ;;
  *) die "$program is no program: agent or api" ;;
  esac
done

have() {
  command -v "$1" >/dev/null 2>&1
}

how() {
  if have rustup && have cargo-zigbuild && rustup target list --installed 2>/dev/null | grep -qxF "$target"; then
    echo rustup
  elif have cross && { have docker || have podman; }; then
    echo cross
  else
    echo debian
  fi
}

# The agent is built for size, the API for speed; see their profiles in Cargo.toml.
profile_of() {
  [ "$1" = agent ] && echo release || echo server
}

glibc=$(target_says "$target" glibc)
zig_target=$target
[ "$glibc" = - ] || zig_target=$target.$glibc

# No path of this machine may reach a program: sources, crates and the standard library get names of their own.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rust_source=/usr/lib/rustlib/src/rust
remap="--remap-path-prefix=$root=/holdfast --remap-path-prefix=$cargo_home=/cargo"
remap+=" --remap-path-prefix=$rust_source=/rust --remap-path-prefix=$target_dir=/target"
export CARGO_INCREMENTAL=0
# The C sources are SQLite, ring and libyaml; the same for their paths, and no tables for unwinding through them.
export CFLAGS="-g0 -ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$target_dir=/target"

build_with_debian() {
  local program=$1 profile std flags=$remap link=("-Clink-arg=-Wl,--build-id=none")
  profile=$(profile_of "$program")
  "$root/cross/setup.sh" build
  if [ "$program" = agent ]; then
    # A panic ends the agent at once, with a signal and no words, and systemd starts it again: words for every place
    # that cannot happen are a tenth of the program. Then nothing ever unwinds, and nobody asks where a place is.
    export CARGO_PROFILE_RELEASE_PANIC=immediate-abort
    flags+=" -Cforce-unwind-tables=no -Zlocation-detail=none"
    CFLAGS+=" -fno-unwind-tables -fno-asynchronous-unwind-tables"
    std=(-Zpanic-immediate-abort "-Zbuild-std=std,panic_abort" -Zbuild-std-features=optimize_for_size)
    # What other processors' code generators do by themselves when size counts: instructions that stand in many places
    # become a function.
    [[ $target != x86_64-* ]] || link+=(-Cllvm-args=-enable-machine-outliner=always)
    # The journal needs a few pages at a time: none are set aside, where SQLite takes twenty for each file, and 48 kB.
    LIBSQLITE3_FLAGS="$(sed -n 's/^LIBSQLITE3_FLAGS = "\(.*\)"$/\1/p' "$root/.cargo/config.toml") -DSQLITE_DEFAULT_PCACHE_INITSZ=0 -DSQLITE_DEFAULT_LOOKASIDE=0,0"
    export LIBSQLITE3_FLAGS
    # What runs at rest lies together: see `make order`, which needs this very program with its symbols. So the linker
    # leaves them out, not the profile: another profile is other crates, and other code.
    link+=("-Clink-arg=-Wl,-T,$root/cross/order.ld")
    export CARGO_PROFILE_RELEASE_STRIP=none
    [ -n "${HOLDFAST_SYMBOLS:-}" ] || link+=(-Clink-arg=-Wl,--strip-all)
  else
    # A panic in one request must not end the others.
    std=("-Zbuild-std=std,panic_unwind")
  fi
  # Debian ships no start objects for musl; zig has its own.
  [ "$glibc" != - ] || link+=(-Clink-self-contained=no)
  # RUSTC_BOOTSTRAP: Debian's compiler is a stable one, and building the standard library is not stable yet.
  env PATH="$tools/zig/bin:$tools/bin:$PATH" CARGO_ZIGBUILD_PYTHON_PATH="$tools/zig/bin/python3" \
    CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" \
    cargo-zigbuild rustc --quiet --locked --manifest-path "$root/Cargo.toml" --profile "$profile" \
    --target "$zig_target" "${std[@]}" \
    --package "holdfast-$program" --bin "holdfast-$program" -- \
    "${link[@]}"
  [ "$program" != agent ] || lies_in_order "$target_dir/$target/$profile/holdfast-agent"
}

# A linker that passes the list by, or a list of other names, would cost every device a megabyte and look like nothing.
lies_in_order() {
  local sizes rest others
  sizes=$(readelf -SW "$1" | sed 's/^ *\[ *[0-9]*\] //' | awk '$1 ~ /^\.text(\.rest)?$/ { print $1, $5 }')
  rest=$((16#$(awk '$1 == ".text.rest" { print $2 }' <<<"$sizes" | grep . || echo 0)))
  others=$((16#$(awk '$1 == ".text" { print $2 }' <<<"$sizes")))
  [ "$rest" -gt $((others / 2)) ] || die "cross/order.ld places $rest bytes of functions, not $others more: make order"
}

build_with_rustup() {
  RUSTFLAGS="$remap" cargo zigbuild --quiet --locked --manifest-path "$root/Cargo.toml" \
    --profile "$(profile_of "$1")" --target "$zig_target" --package "holdfast-$1" --bin "holdfast-$1"
}

build_with_cross() {
  # `cross` mounts the sources at a place of its own, so there is nothing of this machine to take out.
  (cd "$root" && unset CFLAGS && CROSS_CONFIG=cross/Cross.toml cross build --quiet --locked \
    --profile "$(profile_of "$1")" --target "$target" --package "holdfast-$1" --bin "holdfast-$1")
}

how=${HOLDFAST_BUILD:-$(how)}
case $how in
debian | rustup | cross) ;;
*) die "HOLDFAST_BUILD=$how: debian, rustup or cross" ;;
esac
for program in "$@"; do
  ("build_with_$how" "$program")
  place=$(built "$target" "$program")
  mkdir -p "$(dirname "$place")"
  # Its time is the commit's, as everything's that is packed.
  cp "$target_dir/$target/$(profile_of "$program")/holdfast-$program" "$place.new"
  touch -d "@$SOURCE_DATE_EPOCH" "$place.new"
  mv "$place.new" "$place"
  echo "$target holdfast-$program $(stat -c %s "$place") bytes ($how)"
done
