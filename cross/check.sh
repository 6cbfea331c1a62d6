# Sourced by the scripts that test: counts what held. They make a folder $work first, and end with `checked`.
# shellcheck shell=bash disable=SC2154

passed=0 failed=0

# check WHAT COMMAND…: the command's output is shown when it fails.
check() {
  local what=$1 code
  shift
  # Not in an `if`, where a failing step in the middle would not end the check.
  set +e
  (set -e; "$@") >"$work/said" 2>&1
  code=$?
  set -e
  if [ "$code" -eq 0 ]; then
    passed=$((passed + 1))
    echo "ok      $what"
  else
    failed=$((failed + 1))
    echo "FAILED  $what"
    sed 's/^/        /' "$work/said" | head -n 30
  fi
}

checked() {
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}
