#!/usr/bin/env bash
# Lays out the files of one program as they are installed: cross/tree.sh TARGET agent|api FOLDER
# The .deb and the tarball of a target are both made of this tree.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# -eq 3 ] || die "usage: tree.sh TARGET agent|api FOLDER"
target=$1 program=$2 tree=$3
known_target "$target"
name=holdfast-$program
binary=$(built "$target" "$program")
[ -f "$binary" ] || die "$binary is not there: run cross/build.sh $target $program"
[ ! -e "$tree" ] || die "$tree is already there"

# put MODE FILE PLACE
put() {
  install -D -m "$1" "$2" "$tree/$3"
}

# Smaller, and the same each time.
put_compressed() {
  mkdir -p "$tree/$(dirname "$2")"
  gzip -9n <"$1" >"$tree/$2"
  chmod 644 "$tree/$2"
}

put 755 "$binary" "usr/bin/$name"
put 644 "$root/cross/package/$program.yaml" "etc/holdfast/$program.yaml"
for unit in "$root"/systemd/"$name"*.{service,path,timer,socket}; do
  [ -f "$unit" ] && put 644 "$unit" "usr/lib/systemd/system/$(basename "$unit")"
done
for kind in sysusers.d tmpfiles.d; do
  put 644 "$root/systemd/$kind/$name.conf" "usr/lib/$kind/$name.conf"
done

doc=usr/share/doc/$name
put 644 "$root/cross/package/copyright" "$doc/copyright"
put 644 "$root/LICENSE-MIT" "$doc/LICENSE-MIT"
put 644 "$root/LICENSE-APACHE" "$doc/LICENSE-APACHE"
put_compressed "$root/CHANGELOG.md" "$doc/changelog.gz"
# Drop-ins for Podman and the page about all of them go with the agent.
for example in "$root/systemd/examples/"*; do
  case $program:$(basename "$example") in
  "$program:$name.service.d") ;;
  *:holdfast-* | api:*) continue ;;
  esac
  mkdir -p "$tree/$doc/examples"
  cp -r "$example" "$tree/$doc/examples/"
done
if [ "$program" = agent ]; then
  put 644 "$root/systemd/policy.example.yaml" "$doc/examples/policy.yaml"
  man=$target_dir/man
  [ -f "$man/holdfast-agent.1" ] || die "$man has no man pages: run make man"
  for page in "$man"/*.1; do
    put_compressed "$page" "usr/share/man/man1/$(basename "$page").gz"
  done
  put 644 "$man/holdfast-agent.bash" usr/share/bash-completion/completions/holdfast-agent
  put 644 "$man/_holdfast-agent" usr/share/zsh/vendor-completions/_holdfast-agent
  put 644 "$man/holdfast-agent.fish" usr/share/fish/vendor_completions.d/holdfast-agent.fish
fi

# The umask and the clock of this machine are nobody's business.
find "$tree" -type d -exec chmod 755 {} +
find "$tree" -type f ! -perm -u+x -exec chmod 644 {} +
find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
