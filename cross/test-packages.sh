#!/usr/bin/env bash
# Holds the packages against what they promise, in a fresh Debian root: cross/test-packages.sh
# Needs root, for chroot. What a booted system does with them is tested by the machine tests.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ "$(id -u)" -eq 0 ] || die "needs root: packages are installed in a chroot"
"$root/cross/setup.sh" package test
machine=$(dpkg --print-architecture)
agent=$packages/holdfast-agent_${version}_$machine.deb
api=$packages/holdfast-api_${version}_$machine.deb
for deb in "$agent" "$api"; do
  [ -f "$deb" ] || die "$deb is not there: run make package"
done

work=$(mktemp -d "$packages/.test.XXXXXX")
cleanup() {
  umount -q "$work/root/proc" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
. "$root/cross/check.sh"

# --- the root: made once, kept as an archive
archive=$target_dir/test-root-bookworm-$machine.tar
if [ ! -f "$archive" ]; then
  echo "making a Debian root …" >&2
  debootstrap --variant=minbase --include=ca-certificates,systemd bookworm "$work/new" >"$work/debootstrap" 2>&1 ||
    { tail -n 20 "$work/debootstrap" >&2; die "debootstrap failed"; }
  tar -C "$work/new" --exclude=./var/cache/apt/archives/*.deb --exclude=./var/lib/apt/lists/* -cf "$archive.new" .
  mv "$archive.new" "$archive"
  rm -rf --one-file-system "$work/new"
fi
fresh() {
  umount -q "$work/root/proc" 2>/dev/null || true
  rm -rf --one-file-system "$work/root"
  mkdir "$work/root"
  tar -C "$work/root" -xf "$archive"
  mount -t proc proc "$work/root/proc"
  # The package manager's own records change with every installation, and belong to nobody's package.
  touch "$work/root/etc/"{passwd,group,shadow,gshadow,subuid,subgid}-
}
inside() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$work/root" "$@" </dev/null
}
# Installs without asking anything: a question would end it, since nobody answers.
install_deb() {
  local deb
  for deb in "$@"; do
    cp "$deb" "$work/root/new.deb"
    inside dpkg -i /new.deb || return 1
    rm "$work/root/new.deb"
  done
}
# Every path of the root with what it is and holds, and every user.
look() {
  (cd "$work/root" && find . -xdev \( -path ./proc -o -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache \) -prune \
    -o -printf '%y %m %u:%g %p %l\n' | LC_ALL=C sort
  cat etc/passwd etc/group)
}
# newer DEB VERSION FILE: the same package with another version and another default configuration.
newer() {
  rm -rf "$work/newer"
  dpkg-deb -R "$1" "$work/newer"
  sed -i "s/^Version: .*/Version: $2/" "$work/newer/DEBIAN/control"
  local conffile
  while read -r conffile; do
    echo "# a comment of the newer version" >>"$work/newer$conffile"
  done <"$work/newer/DEBIAN/conffiles"
  dpkg-deb --root-owner-group --build "$work/newer" "$3" >/dev/null
}

# --- what is in them
owned_by_root() {
  local deb wrong
  for deb in "$packages"/*_"$version"_*.deb; do
    wrong=$(dpkg-deb -c "$deb" | awk '$2 != "root/root" || $1 ~ /s|^.....w|^........w/')
    [ -z "$wrong" ] || { echo "$deb: $wrong"; return 1; }
  done
}
is_for_its_machine() {
  local target architecture expected deb seen
  for target in $(targets); do
    architecture=$(target_says "$target" deb)
    [ "$architecture" != - ] || continue
    for program in agent api; do
      deb=$packages/holdfast-${program}_${version}_$architecture.deb
      [ -f "$deb" ] || continue
      [ "$(dpkg-deb -f "$deb" Architecture Version Package | tr '\n' ' ')" = \
        "Architecture: $architecture Version: $version Package: holdfast-$program " ] || { dpkg-deb -f "$deb"; return 1; }
      # The machine's number in the header of an ELF file.
      case $architecture in amd64) expected=3e00 ;; arm64) expected=b700 ;; armhf) expected=2800 ;; esac
      dpkg-deb --fsys-tarfile "$deb" | tar -xOf - "./usr/bin/holdfast-$program" >"$work/program"
      seen=$(od -An -tx1 -j18 -N2 "$work/program" | tr -d ' \n')
      [ "$seen" = "$expected" ] || { echo "$deb: $seen, not $expected"; return 1; }
    done
  done
}
is_the_same_again() {
  local target again
  for target in $(targets); do
    [ "$(target_says "$target" deb)" = "$machine" ] || continue
    for again in first second; do
      HOLDFAST_PACKAGES=$work/$again "$root/cross/package.sh" "$target" agent api >/dev/null
    done
  done
  [ -f "$work/first/$(basename "$agent")" ] && diff -r "$work/first" "$work/second" && rm -r "$work/first" "$work/second"
}
sums_are_true() {
  cd "$packages" && sha256sum --check --strict --quiet SHA256SUMS &&
    grep -qE "^[0-9a-f]{64}  holdfast-agent_${version}_x86_64-unknown-linux-gnu\$" SHA256SUMS &&
    # Nothing of this version lies there without a line.
    for file in *_"$version"_*; do grep -qF "  $file" SHA256SUMS || { echo "no sum of $file"; return 1; }; done
}
signature_holds() {
  local folder=$work/signed pub
  mkdir "$folder"
  cp "$packages/SHA256SUMS" "$folder/"
  HOLDFAST_KEY_WITHOUT_PASSWORD=1 "$root/cross/sign.sh" --new-key "$work/key"
  HOLDFAST_RELEASE_SECRET_KEY=$work/key/holdfast.key "$root/cross/sign.sh" "$folder"
  cp "$folder/SHA256SUMS.minisig" "$work/first.minisig"
  HOLDFAST_RELEASE_SECRET_KEY=$work/key/holdfast.key "$root/cross/sign.sh" "$folder"
  cmp "$work/first.minisig" "$folder/SHA256SUMS.minisig"
  minisign -V -q -p "$work/key/holdfast.pub" -m "$folder/SHA256SUMS"
  # The same by Ed25519 alone: two letters, eight bytes of the key's name, then the key or the signature.
  pub=$(tail -n 1 "$work/key/holdfast.pub")
  [ "$(sed -n 2p "$folder/SHA256SUMS.minisig" | base64 -d | head -c 2)" = Ed ]
  { printf '\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00'; echo "$pub" | base64 -d | tail -c 32; } >"$work/pub.der"
  sed -n 2p "$folder/SHA256SUMS.minisig" | base64 -d | tail -c 64 >"$work/signature"
  openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/pub.der" -rawin -in "$folder/SHA256SUMS" -sigfile "$work/signature"
  echo >>"$folder/SHA256SUMS"
  ! minisign -V -q -p "$work/key/holdfast.pub" -m "$folder/SHA256SUMS"
}
tarball_is_the_deb() {
  diff <(dpkg-deb --fsys-tarfile "$1" | tar -tvf - | awk '$1 !~ /^d/ { print $1, $3, $6 }' | sed 's| \./| |' | LC_ALL=C sort) \
    <(tar -tvzf "$2" | awk '$1 !~ /^d/ { print $1, $3, $6 }' | LC_ALL=C sort)
}
scripts_are_sh() {
  local script
  for script in postinst prerm postrm; do
    dpkg-deb -I "$1" "$script" >"$work/script"
    dash -n "$work/script" || return 1
    ! grep -n '@[A-Z]*@' "$work/script" || return 1
  done
}
check "every file belongs to root, and to nobody else's pen" owned_by_root
check "each package is for its architecture" is_for_its_machine
check "packing again gives the same bytes" is_the_same_again
check "SHA256SUMS is true and lists the bare agents" sums_are_true
check "a signature holds for minisign and for Ed25519 alone, and for nothing else" signature_holds
check "the agent's tarball holds the files of its package" \
  tarball_is_the_deb "$agent" "$packages/holdfast-agent_${version}_x86_64-unknown-linux-gnu.tar.gz"
check "the API's tarball holds the files of its package" \
  tarball_is_the_deb "$api" "$packages/holdfast-api_${version}_x86_64-unknown-linux-gnu.tar.gz"
check "the agent's scripts are plain sh" scripts_are_sh "$agent"
check "the API's scripts are plain sh" scripts_are_sh "$api"

# --- the agent: install
fresh
look >"$work/before"
check "the agent installs, and nobody is asked" install_deb "$agent"
check "it runs and knows its version" \
  bash -c "[[ \$(chroot '$work/root' holdfast-agent --version) == *'$version'* ]]"
check "what is installed is what was packed" inside dpkg --verify holdfast-agent
has_users() {
  inside getent passwd holdfast-agent && inside getent group holdfast && inside id -nG holdfast-agent | grep -qw holdfast
}
check "its user and the group of its askers are there" has_users
is_enabled() {
  local unit
  for unit in "$@"; do
    [ "$(inside systemctl is-enabled "$unit")" = enabled ] || { echo "$unit"; return 1; }
  done
}
check "its units begin with the machine" is_enabled holdfast-agent.service holdfast-agent-enroll.service
configuration_is_closed() {
  [ "$(inside stat -c '%a %U:%G' /etc/holdfast/agent.yaml)" = "640 root:holdfast" ] &&
    [ "$(inside dpkg-query -W -f '${Conffiles}' holdfast-agent | awk 'NF { print $1 }')" = /etc/holdfast/agent.yaml ] &&
    inside holdfast-agent --config /etc/holdfast/agent.yaml config check
}
check "its configuration is a conffile, closed to strangers, and accepted" configuration_is_closed
has_help() {
  local file
  for file in usr/bin/holdfast-agent usr/lib/systemd/system/holdfast-agent.service usr/share/man/man1/holdfast-agent.1.gz \
    usr/share/bash-completion/completions/holdfast-agent usr/share/zsh/vendor-completions/_holdfast-agent \
    usr/share/fish/vendor_completions.d/holdfast-agent.fish usr/share/doc/holdfast-agent/copyright; do
    inside dpkg -L holdfast-agent | grep -qx "/$file" || { echo "$file"; return 1; }
  done
}
check "it brings its manual, completions and licences" has_help

# --- the agent: upgrade, downgrade
newer "$agent" "$version+newer" "$work/newer.deb"
echo 'api: { url: "https://holdfast.test" }' >"$work/root/etc/holdfast/agent.yaml"
inside install -d -o holdfast-agent -m 700 /var/lib/holdfast
echo journal >"$work/root/var/lib/holdfast/agent.db"
inside systemctl disable --quiet holdfast-agent-enroll.service
keeps_what_is_local() {
  [ "$(cat "$work/root/etc/holdfast/agent.yaml")" = 'api: { url: "https://holdfast.test" }' ] &&
    [ "$(cat "$work/root/var/lib/holdfast/agent.db")" = journal ] &&
    is_enabled holdfast-agent.service &&
    [ "$(inside systemctl is-enabled holdfast-agent-enroll.service)" = disabled ]
}
upgrades_by_default() {
  # Debian's own upgrades keep a changed file with this answer.
  cp "$work/newer.deb" "$work/root/new.deb"
  inside dpkg --force-confdef --force-confold -i /new.deb
  rm "$work/root/new.deb"
  [ "$(inside dpkg-query -W -f '${Version}' holdfast-agent)" = "$version+newer" ]
}
check "a newer one installs over it" upgrades_by_default
check "settings, journal and what was switched off are as before" keeps_what_is_local
check "the older one installs over the newer" bash -c "
  cp '$agent' '$work/root/new.deb' && chroot '$work/root' dpkg --force-confdef --force-confold -i /new.deb </dev/null; rm '$work/root/new.deb'"
check "settings, journal and what was switched off are as before, again" keeps_what_is_local

# --- the agent: remove, purge
removed_is_quiet() {
  inside dpkg -r holdfast-agent && [ ! -e "$work/root/usr/bin/holdfast-agent" ] &&
    [ ! -e "$work/root/usr/lib/systemd/system/holdfast-agent.service" ] &&
    [ -e "$work/root/etc/holdfast/agent.yaml" ] && [ -e "$work/root/var/lib/holdfast/agent.db" ]
}
check "removed, its program and units are gone, its settings and journal stay" removed_is_quiet
touch "$work/root/etc/holdfast/enrolment-key"
mkdir -p "$work/root/run/holdfast"
purge_leaves_nothing() {
  inside dpkg -P holdfast-agent
  look | diff "$work/before" -
}
check "purged, nothing of it is left: files, folders, users, units" purge_leaves_nothing
install_deb "$agent" >/dev/null 2>&1
echo 'version: 1' >"$work/root/etc/holdfast/policy.yaml"
spares_what_people_made() {
  inside dpkg -P holdfast-agent && [ -e "$work/root/etc/holdfast/policy.yaml" ]
}
check "purge spares a policy that its owner wrote" spares_what_people_made

# --- both together, and the API
fresh
look >"$work/before"
check "agent and API install beside each other" install_deb "$agent" "$api"
api_is_whole() {
  [[ $(inside holdfast-api --version) == *"$version"* ]] && is_enabled holdfast-api.service && inside dpkg --verify holdfast-api &&
    [ "$(inside stat -c '%a %U:%G' /etc/holdfast/api.yaml)" = "640 root:holdfast-api" ]
}
check "the API runs, begins with the machine, and its settings are closed to strangers" api_is_whole
mkdir -p "$work/root/var/lib/holdfast-api"
touch "$work/root/var/lib/holdfast-api/api.db"
spares_the_other() {
  inside dpkg -P holdfast-api && [ ! -e "$work/root/var/lib/holdfast-api" ] && ! inside getent passwd holdfast-api &&
    [ -e "$work/root/etc/holdfast/agent.yaml" ] && has_users && inside dpkg --verify holdfast-agent
}
check "the API purged leaves the agent whole" spares_the_other
check "both purged, nothing is left" purge_leaves_nothing

checked
