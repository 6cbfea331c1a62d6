#!/usr/bin/env bash
# Packs what cross/build.sh has built: cross/package.sh TARGET [agent] [api]
# Into $CARGO_TARGET_DIR/packages, with the same bytes each time for the same commit:
#   holdfast-NAME_VERSION_ARCHITECTURE.deb   for the targets that cross/targets gives an architecture
#   holdfast-NAME_VERSION_TARGET.tar.gz      the same files, as they lie below /
#   holdfast-agent_VERSION_TARGET            the bare program, which agents update themselves to
#   sbom-NAME_VERSION_TARGET.cdx.json        what it is made of (CycloneDX)
# cross/release.sh then adds install.sh and checksums, and signs them.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -ge 1 ] || die "which target? one of: $(targets | tr '\n' ' ')"
target=$1
shift
known_target "$target"
[ $# -gt 0 ] || set -- agent api
"$root/cross/setup.sh" package
mkdir -p "$packages"
work=$(mktemp -d "$packages/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# What a package's scripts have to know of its program.
words_of() {
  case $1 in
  agent)
    units="holdfast-agent.service holdfast-agent-enroll.service"
    made="/var/lib/holdfast /run/holdfast /etc/holdfast/enrolment-key"
    users=holdfast-agent groups="holdfast-agent holdfast"
    # The agent is of use with the first of these, but Podman's socket will do, and so will another's packages.
    recommends="docker.io | docker-ce | podman"
    summary="keeps this machine on the container images its operator chose"
    text=" The agent asks its control API which containers should run here, fetches their
 images by digest, and replaces one service at a time, with a way back."
    ;;
  api)
    units="holdfast-api.service"
    made="/var/lib/holdfast-api"
    users=holdfast-api groups=holdfast-api
    recommends=
    summary="control API of Holdfast: targets, approvals and rollouts for fleets"
    text=" The control API resolves tags to digests, has changes approved, rolls them out
 to fleets of machines in stages, and shows what runs where."
    ;;
  *) die "$1 is no program: agent or api" ;;
  esac
}

make_deb() {
  local program=$1 tree=$2 architecture=$3 name=holdfast-$1 glibc depends
  local deb="$packages/${name}_${version}_$architecture.deb"
  glibc=$(target_says "$target" glibc)
  # Certificates to trust, the makers of users, and the C library it was linked for.
  depends="ca-certificates, passwd"
  [ "$glibc" = - ] || depends+=", libc6 (>= $glibc)"
  cp -a "$tree" "$work/deb-$program"
  tree=$work/deb-$program
  mkdir "$tree/DEBIAN"
  {
    echo "Package: $name"
    echo "Version: $version"
    echo "Architecture: $architecture"
    echo "Maintainer: Holdfast contributors <holdfast@invalid>"
    echo "Installed-Size: $(find "$tree" -path "$tree/DEBIAN" -prune -o -type f -printf '%s\n' |
      awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')"
    echo "Depends: $depends"
    [ -z "$recommends" ] || echo "Recommends: $recommends"
    echo "Section: admin"
    echo "Priority: optional"
    echo "Homepage: https://github.com/holdfast-project/holdfast"
    echo "Description: $summary"
    echo "$text"
  } >"$tree/DEBIAN/control"
  (cd "$tree" && find etc -type f -printf '/%p\n' | LC_ALL=C sort) >"$tree/DEBIAN/conffiles"
  (cd "$tree" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -print | LC_ALL=C sort |
    sed 's|^\./||' | xargs -d '\n' md5sum) >"$tree/DEBIAN/md5sums"
  for script in postinst prerm postrm; do
    sed -e "s|@NAME@|$name|g" -e "s|@UNITS@|$units|g" -e "s|@MADE@|$made|g" \
      -e "s|@USERS@|$users|g" -e "s|@GROUPS@|$groups|g" "$root/cross/package/deb/$script" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
  done
  chmod 644 "$tree/DEBIAN/"{control,conffiles,md5sums}
  find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  # One thread, because the number of them shows in the bytes.
  dpkg-deb --root-owner-group -Zxz -z9 --threads-max=1 --build "$tree" "$work/out.deb" >/dev/null
  mv "$work/out.deb" "$deb"
  echo "$deb $(stat -c %s "$deb") bytes"
}

make_tarball() {
  local program=$1 tree=$2 tarball
  tarball="$packages/holdfast-${program}_${version}_$target.tar.gz"
  tar -C "$tree" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=gnu \
    -cf - etc usr | gzip -9n >"$work/out.tar.gz"
  mv "$work/out.tar.gz" "$tarball"
  echo "$tarball $(stat -c %s "$tarball") bytes"
}

for program in "$@"; do
  words_of "$program"
  tree=$work/$program
  "$root/cross/tree.sh" "$target" "$program" "$tree"
  architecture=$(target_says "$target" deb)
  [ "$architecture" = - ] || make_deb "$program" "$tree" "$architecture"
  make_tarball "$program" "$tree"
  if [ "$program" = agent ]; then
    cp -p "$(built "$target" agent)" "$work/bare"
    mv "$work/bare" "$packages/holdfast-agent_${version}_$target"
  fi
done
