#!/usr/bin/env bash
# Runs the agents that cross/build.sh built: cross/test.sh TARGET…
# Under qemu-user where they are for another processor, and that the oldest which the target promises.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -gt 0 ] || die "which targets? some of: $(targets | tr '\n' ' ')"
"$root/cross/setup.sh" run
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$root/cross/check.sh"

# A processor that takes more than a minute for one command hangs.
agent() {
  timeout 60 "${runner[@]}" "$binary" --config "$work/agent.yaml" "$@"
}
says_its_version() {
  [ "$(agent --version)" = "holdfast-agent $version" ]
}
reads_its_configuration() {
  agent config check --output json && ! HOLDFAST_POLL__INTERVAL_SECONDS=never agent config check
}
# There is no engine and no server: what it says of them is the point. It looks into the machine, opens its folders,
# makes TLS clients and asks, and comes back with what to do.
examines_the_machine() {
  local code=0
  agent doctor --output json >"$work/doctor" 2>"$work/errors" || code=$?
  cat "$work/doctor" "$work/errors"
  [ "$code" -ne 0 ] && [ "$code" -lt 126 ] && jq -e . "$work/doctor" >/dev/null && grep -qi engine "$work/doctor"
}
shows_what_it_knows() {
  local code=0
  agent status >"$work/status" 2>&1 || code=$?
  cat "$work/status"
  # An error in words, and no signal.
  [ "$code" -lt 126 ] && grep -q "not enrolled" "$work/status"
}
# A program that would need the machine's own libraries is not static, and one of a newer glibc starts nowhere else.
needs_what_it_may() {
  local glibc most
  glibc=$(target_says "$target" glibc)
  if [ "$glibc" = - ]; then
    ! readelf -d "$binary" | grep NEEDED && ! readelf -l "$binary" | grep INTERP
  else
    most=$(readelf -V "$binary" | grep -o 'GLIBC_[0-9.]*' | sed s/GLIBC_// | sort -uV | tail -n 1)
    echo "glibc $most, may be $glibc"
    [ "$(printf '%s\n' "$most" "$glibc" | sort -V | tail -n 1)" = "$glibc" ]
  fi
}
names_no_folder_of_this_machine() {
  ! strings -a "$binary" | grep -F -e "$root" -e "$HOME/" -e "$target_dir" -e /usr/lib/rustlib
}

for target in "$@"; do
  known_target "$target"
  binary=$(built "$target" agent)
  [ -f "$binary" ] || die "$binary is not there: run cross/build.sh $target"
  read -ra runner <<<"$(target_says "$target" runs)"
  mkdir -p "$work/state" "$work/run"
  printf 'api: { url: "https://127.0.0.1:9" }\nstate_dir: %s\nruntime_dir: %s\ndocker: { socket: %s }\n' \
    "$work/state" "$work/run" "$work/no-engine.sock" >"$work/agent.yaml"
  check "$target: says its version" says_its_version
  check "$target: reads its configuration" reads_its_configuration
  check "$target: examines the machine" examines_the_machine
  check "$target: says what it knows" shows_what_it_knows
  check "$target: needs no library that it may not" needs_what_it_may
  check "$target: names no folder of this machine" names_no_folder_of_this_machine
  rm -rf "$work/state" "$work/run"
done
checked
