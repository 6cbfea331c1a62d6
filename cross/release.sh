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

if [ -f "$root/systemd/install.sh" ]; then
  install -m 755 "$root/systemd/install.sh" "$packages/install.sh"
fi

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
