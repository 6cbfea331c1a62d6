#!/usr/bin/env bash
# Completes the folder of packages: what each program is made of, install.sh, SHA256SUMS, and the signature where
# HOLDFAST_RELEASE_SECRET_KEY names a key.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ -d "$packages" ] || die "$packages is not there: run cross/package.sh"
"$root/cross/setup.sh" package sbom

# One list for each program and target that is packed here.
for tarball in "$packages"/holdfast-*_"$version"_*.tar.gz; do
  [ -f "$tarball" ] || die "$packages holds no tarball of $version"
  name=$(basename "$tarball" .tar.gz)
  program=${name%%_*}
  "$root/cross/sbom.sh" "${name##*_"$version"_}" "${program#holdfast-}" >"$packages/.sbom"
  mv "$packages/.sbom" "$packages/sbom-$name.cdx.json"
done

# install.sh trusts the key that it was released with. HOLDFAST_RELEASE_KEY is the public key's text, the same that agents
# and the API are built with; without it, the one that lies beside the secret key.
public=${HOLDFAST_RELEASE_KEY:-}
secret=${HOLDFAST_RELEASE_SECRET_KEY:-}
if [ -z "$public" ] && [ -n "$secret" ] && [ -f "${secret%.key}.pub" ]; then
  public=$(tail -n 1 "${secret%.key}.pub")
fi
case $public in
*[!A-Za-z0-9+/=]*) die "HOLDFAST_RELEASE_KEY is no key: it is the second line of a minisign public key" ;;
esac
if [ -n "$public" ]; then
  sed "s|@RELEASE_KEY@|$public|" "$root/systemd/install.sh" >"$packages/.install.sh"
else
  cp "$root/systemd/install.sh" "$packages/.install.sh"
fi
chmod 755 "$packages/.install.sh"
mv "$packages/.install.sh" "$packages/install.sh"

cd "$packages"
find . -maxdepth 1 -type f ! -name '.*' ! -name 'SHA256SUMS*' -printf '%f\n' | LC_ALL=C sort |
  xargs -d '\n' sha256sum >.sums
mv .sums SHA256SUMS
# A signature of other sums is none.
rm -f SHA256SUMS.minisig
if [ -n "${HOLDFAST_RELEASE_SECRET_KEY:-}" ]; then
  "$root/cross/sign.sh" "$packages"
else
  echo "not signed: HOLDFAST_RELEASE_SECRET_KEY names no key" >&2
fi
echo "$packages/SHA256SUMS: $(wc -l <SHA256SUMS) files"
