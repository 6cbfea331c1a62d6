#!/usr/bin/env bash
# Signs a release: cross/sign.sh FOLDER writes SHA256SUMS.minisig beside FOLDER's SHA256SUMS.
#
# The key is the file that HOLDFAST_RELEASE_SECRET_KEY names, made once by `cross/sign.sh --new-key FOLDER`. The form is minisign's
# older one (`Ed`), which signs the file itself and not a BLAKE2b hash of it: then Ed25519 alone verifies it, which
# agents, install.sh and openssl have.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -ge 1 ] || die "which folder?"
command -v minisign >/dev/null ||
  die "minisign is missing: apt-get install minisign, or https://jedisct1.github.io/minisign/"

if [ "$1" = --new-key ]; then
  [ $# -eq 2 ] || die "usage: sign.sh --new-key FOLDER"
  [ ! -e "$2/holdfast.key" ] || die "$2/holdfast.key is already there"
  mkdir -p "$2"
  # With a password from the terminal, unless the caller protects the file in another way.
  password=()
  [ -z "${HOLDFAST_KEY_WITHOUT_PASSWORD:-}" ] || password=(-W)
  (umask 077 && minisign -G "${password[@]}" -p "$2/holdfast.pub" -s "$2/holdfast.key" \
    -c "Holdfast releases, secret key" >/dev/null)
  echo "secret: $2/holdfast.key"
  echo "public: $(tail -n 1 "$2/holdfast.pub")"
  exit 0
fi

folder=$1
key=${HOLDFAST_RELEASE_SECRET_KEY:?names the file of the secret key}
[ -f "$folder/SHA256SUMS" ] || die "$folder/SHA256SUMS is not there: run cross/release.sh"
[ -f "$key" ] || die "$key is not there"
# The comment is signed too. Its time is the commit's, so that signing twice gives the same file.
minisign -S -l -s "$key" -m "$folder/SHA256SUMS" -x "$folder/SHA256SUMS.minisig.new" \
  -c "signature of a Holdfast release" -t "holdfast $version timestamp:$SOURCE_DATE_EPOCH file:SHA256SUMS" >/dev/null
mv "$folder/SHA256SUMS.minisig.new" "$folder/SHA256SUMS.minisig"
echo "$folder/SHA256SUMS.minisig"
