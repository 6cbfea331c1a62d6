#!/bin/sh
# Installs the Holdfast agent on this machine, and enrols it when it is given a key.
#
#   curl -fsSL https://holdfast.example/install.sh | sudo sh -s -- --key hfk_…
#   sh install.sh --help
#
# Nothing is installed that was not signed with the release's key. Running it again changes nothing that
# is as it should be. Any POSIX shell will do; curl or wget fetches; openssl 3 or minisign proves.
#
# Everything is in functions, called on the last line: a script that arrived in part does nothing.

set -eu

# Filled in by whoever hands this script out: the control API, or the packaging of a release.
SERVER='@SERVER@'
BASE_URL='@BASE_URL@'
RELEASE_KEY='@RELEASE_KEY@'

RELEASES='https://github.com/holdfast-project/holdfast/releases'
NAME=holdfast-agent
CONFIG=/etc/holdfast/agent.yaml
KEY_FILE=/etc/holdfast/enrolment-key
STATE=/var/lib/holdfast
# What a tarball brought, one path a line: what --uninstall removes.
MANIFEST=/usr/lib/holdfast/agent.files
# Files of a release are smaller; a server that sends more is no release page.
MOST_BYTES=104857600
# Seconds: a server that is silent for so long is away, and no file takes longer over a slow line.
CONNECT_LIMIT=20
FETCH_LIMIT=900
# Seconds that an enrolment is waited for; the service goes on trying after that.
ENROL_LIMIT=45

EXIT_FAILED=1
EXIT_USAGE=2
EXIT_NOT_ENROLLED=4

usage() {
    cat <<'TEXT'
Installs the Holdfast agent on this machine, and enrols it when it is given a key.

  install.sh [--server URL] [--key KEY | --key-file FILE] [options]

  --server URL       the control API that this machine belongs to
  --key KEY          an enrolment key; HOLDFAST_ENROLMENT_KEY in the environment does as well, and shows
                     less: other users of this machine see what stands on a command line
  --key-file FILE    the same, from a file; - is standard input, when the script itself is not
  --version V        this version; the newest when absent
  --base-url URL     where the release is: a page or a folder (file:///media/usb)
  --release-key KEY  the public key that the release must be signed with
  --tarball          take the static program from the tarball, not the Debian package
  --dry-run          say what would be done; changes nothing, needs no root
  --uninstall        remove the agent; containers go on
  --purge            with --uninstall: its settings, its memory and its user, too
  --insecure-skip-signature
                     trust the server for the release; checksums are still compared

Exit codes: 0 done, 1 failed and nothing changed, 2 wrong arguments, 4 installed but not enrolled yet.
TEXT
}

say() {
    printf '%s\n' "$*"
}

die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit "$EXIT_FAILED"
}

wrong() {
    printf 'install.sh: %s (--help says more)\n' "$*" >&2
    exit "$EXIT_USAGE"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# --- arguments ----------------------------------------------------------------------------------------

arguments() {
    case $SERVER in @*) SERVER='' ;; esac
    case $BASE_URL in @*) BASE_URL='' ;; esac
    case $RELEASE_KEY in @*) RELEASE_KEY='' ;; esac
    key=${HOLDFAST_ENROLMENT_KEY-}
    # No child needs it.
    unset HOLDFAST_ENROLMENT_KEY
    version='' action=install purge='' dry='' tarball='' unsigned=''
    while [ $# -gt 0 ]; do
        case $1 in
        --server | --key | --key-file | --version | --base-url | --release-key)
            if [ $# -lt 2 ] || [ -z "$2" ]; then wrong "$1 needs a value"; fi
            case $1 in
            --server) SERVER=$2 ;;
            --key) key=$2 ;;
            --key-file) key=$(read_key "$2") || exit "$EXIT_FAILED" ;;
            --version) version=${2#v} ;;
            --base-url) BASE_URL=$2 ;;
            --release-key) RELEASE_KEY=$2 ;;
            esac
            shift 2
            ;;
        --tarball) tarball=1 && shift ;;
        --dry-run) dry=1 && shift ;;
        --uninstall) action=uninstall && shift ;;
        --purge) purge=1 && shift ;;
        --insecure-skip-signature) unsigned=1 && shift ;;
        --help | -h) usage && exit 0 ;;
        *) wrong "what is $1?" ;;
        esac
    done
    SERVER=${SERVER%/}
    BASE_URL=${BASE_URL%/}
    check_arguments
}

check_arguments() {
    [ -z "$purge" ] || [ "$action" = uninstall ] || wrong "--purge goes with --uninstall"
    # Both end up in files and on command lines: nothing but what addresses are made of.
    case $SERVER in
    '' | http://?* | https://?*) ;;
    *) wrong "--server must begin with https:// or http://" ;;
    esac
    case $SERVER in *[!A-Za-z0-9.:/_~%\[\]-]*) wrong "--server has a character that no address has" ;; esac
    case $BASE_URL in
    '' | http://?* | https://?* | file:///?* | /?*) ;;
    *) wrong "--base-url must begin with https://, http:// or file:///" ;;
    esac
    case $version in *[!A-Za-z0-9.+~-]*) wrong "--version must be a version such as 0.1.0" ;; esac
    case $RELEASE_KEY in *[!A-Za-z0-9+/=]*) wrong "--release-key must be a key as minisign writes it: RW…" ;; esac
    case $key in *[!A-Za-z0-9._-]*) wrong "the enrolment key has a character that no key has" ;; esac
}

# The first line of a file, or of standard input.
read_key() {
    line=''
    if [ "$1" = - ]; then
        IFS= read -r line || [ -n "$line" ] || die "--key-file -: standard input is empty"
    else
        [ -r "$1" ] || die "--key-file: $1 cannot be read"
        IFS= read -r line <"$1" || [ -n "$line" ] || die "--key-file: $1 is empty"
    fi
    printf '%s' "$line" | tr -d '\r'
}

# --- this machine -------------------------------------------------------------------------------------

# Sets `deb`, the architecture of Debian's packages or nothing, and `target`, the tarball's.
platform() {
    [ "$(uname -s)" = Linux ] || die "this is $(uname -s): the agent runs on Linux"
    machine=$(uname -m)
    deb='' target=''
    # Other systems have the program without its books.
    if has dpkg && [ -s /var/lib/dpkg/status ]; then
        # Not the kernel's: a 64-bit kernel under a 32-bit system is common on a Raspberry Pi.
        deb=$(dpkg --print-architecture)
        case $deb in
        amd64) machine=x86_64 ;;
        arm64) machine=aarch64 ;;
        # Raspberry Pi OS calls a Pi Zero armhf, too; the program there is the one for ARMv6.
        armhf) case $machine in armv6*) ;; *) machine=armv7l ;; esac ;;
        *) die "there is no agent for Debian's $deb: amd64, arm64 and armhf are built" ;;
        esac
    elif [ "$machine" = aarch64 ] && [ "$(getconf LONG_BIT 2>/dev/null || echo 64)" = 32 ]; then
        machine=armv7l
    fi
    case $machine in
    x86_64 | amd64) target=x86_64-unknown-linux-musl ;;
    aarch64 | arm64) target=aarch64-unknown-linux-musl ;;
    armv7* | armv8*) target=armv7-unknown-linux-musleabihf ;;
    armv6*) target=arm-unknown-linux-musleabihf ;;
    *) die "there is no agent for $machine: x86_64, aarch64, armv7 and armv6 are built" ;;
    esac
    if [ -n "$tarball" ]; then
        deb=''
    fi
}

is_root() {
    [ "$(id -u)" = 0 ]
}

systemd_runs() {
    [ -d /run/systemd/system ]
}

# The version that dpkg installed; nothing when it did not.
deb_version() {
    has dpkg-query || return 0
    # shellcheck disable=SC2016
    dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$NAME" 2>/dev/null | sed -n 's/^installed //p'
}

# The version that a tarball brought; nothing when none did.
tarball_version() {
    [ -f "$MANIFEST" ] || return 0
    sed -n 's/^# version //p' "$MANIFEST"
}

# --- fetching and proving -----------------------------------------------------------------------------

# fetch FILE: from the release into the working folder.
fetch() {
    case $base in
    file://*) from=${base#file://}/$1 ;;
    /*) from=$base/$1 ;;
    *) from='' ;;
    esac
    rm -f "$work/$1.part"
    if [ -n "$from" ]; then
        cp -- "$from" "$work/$1.part" 2>/dev/null || die "$from cannot be read: nothing was changed"
    elif has curl; then
        curl -fsL --retry 2 --connect-timeout "$CONNECT_LIMIT" --max-time "$FETCH_LIMIT" \
            --max-filesize "$MOST_BYTES" -o "$work/$1.part" "$base/$1" ||
            die "$base/$1 cannot be fetched: nothing was changed"
    elif has wget; then
        fetch_by_wget "$base/$1" "$work/$1.part" 2>/dev/null ||
            die "$base/$1 cannot be fetched: nothing was changed"
    else
        die "neither curl nor wget is installed: install one of them"
    fi
    mv "$work/$1.part" "$work/$1"
}

# fetch_by_wget URL FILE
fetch_by_wget() {
    case $(wget --help 2>&1) in
    # Debian's busybox crashes on a time limit of its own.
    *BusyBox*) timeout "$FETCH_LIMIT" wget -q -O "$2" "$1" ;;
    *) timeout "$FETCH_LIMIT" wget -q -T "$CONNECT_LIMIT" -t 3 -O "$2" "$1" ;;
    esac
}

# Proves that SHA256SUMS was signed with the release's key.
prove() {
    if [ -n "$unsigned" ]; then
        say "warning: the signature is not looked at: whoever can change $base can change the agent"
        return
    fi
    [ -n "$RELEASE_KEY" ] ||
        die "no key to prove the release with: give --release-key RW…, as your server's operator or the project publishes it"
    fetch SHA256SUMS.minisig
    if has openssl && openssl_is_new; then
        prove_by_openssl || die "SHA256SUMS is not signed with the release's key: nothing was changed"
    elif has minisign; then
        minisign -Vq -P "$RELEASE_KEY" -m "$work/SHA256SUMS" -x "$work/SHA256SUMS.minisig" >/dev/null 2>&1 ||
            die "SHA256SUMS is not signed with the release's key: nothing was changed"
    else
        die "nothing here can prove the release: install openssl (3 or newer) or minisign"
    fi
}

openssl_is_new() {
    case $(openssl version 2>/dev/null) in
    'OpenSSL '[3-9]* | 'OpenSSL '[1-9][0-9]*) return 0 ;;
    *) return 1 ;;
    esac
}

# bytes FROM COUNT <IN >OUT
bytes() {
    tail -c "+$(($1 + 1))" | head -c "$2"
}

# verify SIGNATURE FILE: by the Ed25519 key in $work/key.pem.
verify() {
    openssl pkeyutl -verify -pubin -inkey "$work/key.pem" -rawin -in "$2" -sigfile "$1" >/dev/null 2>&1
}

# minisign's form: a key is `Ed`, its number (8 bytes) and the key (32); a signature is `Ed` or, of the
# file's BLAKE2b sum, `ED`, the key's number and the signature (64); a second one covers the first and
# the trusted comment.
prove_by_openssl() {
    printf '%s' "$RELEASE_KEY" | openssl base64 -d -A >"$work/key.raw" 2>/dev/null || return 1
    [ "$(wc -c <"$work/key.raw")" -eq 42 ] || return 1
    # The twelve bytes before an Ed25519 key that say so are these sixteen letters.
    {
        say '-----BEGIN PUBLIC KEY-----'
        say "MCowBQYDK2VwAyEA$(bytes 10 32 <"$work/key.raw" | openssl base64 -A)"
        say '-----END PUBLIC KEY-----'
    } >"$work/key.pem"
    sed -n 2p "$work/SHA256SUMS.minisig" | tr -d '\r\n' | openssl base64 -d -A >"$work/sig.raw" 2>/dev/null || return 1
    sed -n 4p "$work/SHA256SUMS.minisig" | tr -d '\r\n' | openssl base64 -d -A >"$work/whole.raw" 2>/dev/null || return 1
    [ "$(wc -c <"$work/sig.raw")" -eq 74 ] && [ "$(wc -c <"$work/whole.raw")" -eq 64 ] || return 1
    [ "$(bytes 2 8 <"$work/sig.raw" | openssl base64 -A)" = "$(bytes 2 8 <"$work/key.raw" | openssl base64 -A)" ] || return 1
    bytes 10 64 <"$work/sig.raw" >"$work/sig"
    case $(bytes 0 2 <"$work/sig.raw") in
    Ed) signed=$work/SHA256SUMS ;;
    ED)
        signed=$work/SHA256SUMS.blake2b
        openssl dgst -blake2b512 -binary "$work/SHA256SUMS" >"$signed" 2>/dev/null || return 1
        ;;
    *) return 1 ;;
    esac
    verify "$work/sig" "$signed" || return 1
    {
        cat "$work/sig"
        sed -n 's/^trusted comment: //p' "$work/SHA256SUMS.minisig" | tr -d '\r\n'
    } >"$work/commented"
    verify "$work/whole.raw" "$work/commented"
}

# listed ENDING: the files of SHA256SUMS that are the agent's and end so.
listed() {
    sed -n 's/^[0-9a-f]\{64\} [ *]//p' "$work/SHA256SUMS" |
        grep -x "${NAME}[_-][A-Za-z0-9.+~_-]*[_-]$1" |
        if [ -n "$version" ]; then grep -F -e "${NAME}_${version}_" -e "${NAME}_${version}-" -e "$NAME-$version-"; else cat; fi
}

# Sets `file` to what this machine gets, and `offered` to its version.
choose() {
    file=''
    if [ -n "$deb" ]; then
        file=$(listed "$deb\\.deb" || true)
        [ -n "$file" ] || deb=''
    fi
    if [ -z "$file" ]; then
        file=$(listed "$target\\.tar\\.gz" || true)
    fi
    case $file in
    '') die "$base has no agent${version:+ $version} for $target" ;;
    *'
'*) die "$base has more than one agent for this machine: give --version" ;;
    esac
    offered=${file#"$NAME"?}
    if [ -n "$deb" ]; then
        offered=${offered%_"$deb".deb}
    else
        offered=${offered%?"$target".tar.gz}
    fi
}

# Fetches `file` and compares its checksum with the list that was proven.
fetch_file() {
    fetch "$file"
    wanted=$(sed -n "s/^\\([0-9a-f]\\{64\\}\\) [ *]$(printf '%s' "$file" | sed 's/[.+]/\\&/g')\$/\\1/p" "$work/SHA256SUMS")
    found=$(sha256sum <"$work/$file") || die "sha256sum is missing"
    [ "${found%% *}" = "$wanted" ] ||
        die "$file is not what SHA256SUMS says: nothing was changed"
}

# --- installing ---------------------------------------------------------------------------------------

install_deb() {
    say "installing $file"
    if has apt-get; then
        # Looks at what the package needs before it changes anything. Settings that were changed stay.
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --allow-downgrades \
            -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-confdef \
            "$work/$file" >"$work/log" 2>&1 </dev/null || {
            tail -n 5 "$work/log" >&2
            take_back
            die "apt-get could not install $file, see above; a missing package may need apt-get update"
        }
    else
        dpkg --force-confold --force-confdef -i "$work/$file" >"$work/log" 2>&1 </dev/null || {
            tail -n 5 "$work/log" >&2
            take_back
            die "dpkg could not install $file, see above"
        }
    fi
}

# Half a package is worse than none. An older one that was there is dpkg's to put back.
take_back() {
    [ -n "$installed" ] || dpkg --force-remove-reinstreq --purge "$NAME" >/dev/null 2>&1 </dev/null || true
}

install_tarball() {
    say "installing $file"
    mkdir "$work/tree"
    gzip -dc "$work/$file" | tar -xf - -C "$work/tree" || die "$file cannot be unpacked: nothing was changed"
    tree=$work/tree
    if [ ! -f "$tree/usr/bin/$NAME" ]; then
        for inner in "$tree"/*/; do
            [ -f "$inner/usr/bin/$NAME" ] && tree=${inner%/}
        done
    fi
    [ -f "$tree/usr/bin/$NAME" ] || die "$file holds no usr/bin/$NAME: nothing was changed"
    "$tree/usr/bin/$NAME" --version >/dev/null 2>&1 ||
        die "the agent for $target does not run on this machine: nothing was changed"
    (cd "$tree" && find etc usr -type f | sort) >"$work/files"
    # All files beside their places first: a full disk is noticed while nothing has changed.
    while IFS= read -r path; do
        case $path in etc/*) [ -e "/$path" ] && continue ;; esac
        if ! { mkdir -p "/${path%/*}" && cp "$tree/$path" "/$path.holdfast-new"; }; then
            unstage
            die "/$path cannot be written: nothing was changed"
        fi
    done <"$work/files"
    while IFS= read -r path; do
        [ ! -e "/$path.holdfast-new" ] || mv -f "/$path.holdfast-new" "/$path"
    done <"$work/files"
    # What an older version brought and this one does not.
    if [ -f "$MANIFEST" ]; then
        while IFS= read -r path; do
            case $path in '#'* | etc/*) continue ;; esac
            grep -qxF -- "$path" "$work/files" || rm -f "/$path"
        done <"$MANIFEST"
    fi
    mkdir -p "${MANIFEST%/*}"
    {
        say "# version $offered"
        cat "$work/files"
    } >"$MANIFEST.new"
    mv -f "$MANIFEST.new" "$MANIFEST"
    systemd-sysusers /usr/lib/sysusers.d/holdfast-agent.conf
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/holdfast-agent.conf
    if systemd_runs; then
        systemctl daemon-reload
    fi
    systemctl enable --quiet "$NAME.service" "$NAME-enroll.service"
    if systemd_runs && [ -f "$STATE/enrolment.json" ]; then
        systemctl restart "$NAME.service"
    fi
}

unstage() {
    while IFS= read -r path; do
        rm -f "/$path.holdfast-new"
    done <"$work/files"
}

# Writes the server's address where there is none.
configure() {
    [ -n "$SERVER" ] || return 0
    if [ -f "$CONFIG" ] && grep -q '^api:' "$CONFIG"; then
        grep '^api:' "$CONFIG" | grep -qF -e "\"$SERVER\"" -e "\"$SERVER/\"" ||
            say "note: $CONFIG has a section \`api\` already; it was left as it is"
        return 0
    fi
    if [ -f "$CONFIG" ]; then
        cp -p "$CONFIG" "$CONFIG.new"
    else
        (umask 077 && : >"$CONFIG.new")
    fi
    printf 'api: { url: "%s" }\n' "$SERVER" >>"$CONFIG.new"
    mv -f "$CONFIG.new" "$CONFIG"
    chgrp holdfast "$CONFIG"
    chmod 640 "$CONFIG"
    say "wrote the server's address to $CONFIG"
}

enrol() {
    if [ -f "$STATE/enrolment.json" ]; then
        say "this machine is enrolled"
        start_agent
        return
    fi
    if [ -n "$key" ]; then
        if [ "$(cat "$KEY_FILE" 2>/dev/null)" != "$key" ]; then
            (umask 077 && printf '%s\n' "$key" >"$KEY_FILE.new")
            mv -f "$KEY_FILE.new" "$KEY_FILE"
        fi
    elif [ ! -f "$KEY_FILE" ]; then
        say "not enrolled: give --key, or run \`holdfast-agent enroll\`, then \`systemctl start $NAME\`"
        return
    fi
    if ! systemd_runs; then
        say "systemd does not run here: this machine enrols when it is started"
        return
    fi
    systemctl restart --no-block "$NAME-enroll.service"
    say "enrolling …"
    waited=0
    while [ ! -f "$STATE/enrolment.json" ]; do
        if [ "$waited" -ge "$ENROL_LIMIT" ]; then
            say "not enrolled yet; it is tried again until it works: journalctl -u $NAME-enroll" >&2
            exit "$EXIT_NOT_ENROLLED"
        fi
        sleep 1
        waited=$((waited + 1))
    done
    say "this machine is enrolled"
}

start_agent() {
    systemd_runs || return 0
    systemctl is-active --quiet "$NAME.service" || systemctl start --no-block "$NAME.service"
}

install_agent() {
    has systemctl || die "the agent is a systemd service, and this machine has no systemd"
    if [ -n "$key" ] && [ -z "$SERVER" ] && ! grep -q '^api:' "$CONFIG" 2>/dev/null; then
        wrong "which server? give --server URL beside the key"
    fi
    base=$BASE_URL
    if [ -z "$base" ]; then
        base=$RELEASES/latest/download
        [ -z "$version" ] || base=$RELEASES/download/v$version
    fi
    work=$(mktemp -d) || die "no folder for temporary files can be made"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    fetch SHA256SUMS
    prove
    choose
    has_deb=$(deb_version)
    has_tarball=$(tarball_version)
    if [ -n "$has_deb" ] && [ -z "$deb" ]; then
        die "dpkg installed the agent on this machine: run this without --tarball, or --uninstall first"
    elif [ -n "$has_tarball" ] && [ -n "$deb" ]; then
        die "a tarball brought the agent on this machine: run this with --tarball, or --uninstall first"
    fi
    installed=$has_deb$has_tarball
    if [ -n "$dry" ]; then
        plan
        return
    fi
    is_root || die "root is needed: run this with sudo"
    if [ "$installed" = "$offered" ]; then
        say "$NAME $installed is installed"
    else
        fetch_file
        if [ -n "$deb" ]; then install_deb; else install_tarball; fi
        say "$NAME $offered is installed"
    fi
    configure
    enrol
}

plan() {
    if [ "$installed" = "$offered" ]; then
        say "$NAME $installed is installed: it would stay"
    else
        say "would install $base/$file${installed:+ in the place of $installed}"
    fi
    if [ -n "$SERVER" ] && ! grep -q '^api:' "$CONFIG" 2>/dev/null; then
        say "would write the server's address, $SERVER, to $CONFIG"
    fi
    if [ -f "$STATE/enrolment.json" ]; then
        say "this machine is enrolled: it would stay who it is"
    elif [ -n "$key" ]; then
        say "would enrol this machine"
    fi
    say "nothing was changed"
}

# --- removing -----------------------------------------------------------------------------------------

uninstall() {
    has_deb=$(deb_version)
    has_tarball=$(tarball_version)
    if [ -n "$dry" ]; then
        say "would remove ${has_deb:+the package $NAME $has_deb}${has_tarball:+$NAME $has_tarball}${purge:+, its settings and its memory}"
        say "nothing was changed"
        return
    fi
    is_root || die "root is needed: run this with sudo"
    if has dpkg-query && dpkg-query -W "$NAME" >/dev/null 2>&1; then
        how=--remove
        [ -z "$purge" ] || how=--purge
        out=$(dpkg "$how" "$NAME" 2>&1 </dev/null) || die "dpkg could not remove $NAME: $out"
    elif [ -n "$has_tarball" ]; then
        remove_files
    fi
    if [ -n "$purge" ]; then
        remove_traces
    fi
    say "$NAME is removed; containers that it started go on"
}

remove_files() {
    if systemd_runs; then
        systemctl disable --quiet --now "$NAME.service" "$NAME-enroll.service" || true
    else
        systemctl disable --quiet "$NAME.service" "$NAME-enroll.service" || true
    fi
    while IFS= read -r path; do
        # Settings stay until --purge.
        case $path in '#'* | etc/*) continue ;; esac
        rm -f "/$path"
        rmdir -p "/${path%/*}" 2>/dev/null || true
    done <"$MANIFEST"
    rm -f "$MANIFEST"
    rmdir "${MANIFEST%/*}" 2>/dev/null || true
    if systemd_runs; then
        systemctl daemon-reload
    fi
}

remove_traces() {
    rm -f "$CONFIG" /etc/holdfast/policy.yaml "$KEY_FILE"
    rmdir /etc/holdfast 2>/dev/null || true
    rm -rf "$STATE" /run/holdfast
    if id holdfast-agent >/dev/null 2>&1; then userdel holdfast-agent 2>/dev/null || true; fi
    if grep -q '^holdfast:' /etc/group; then groupdel holdfast 2>/dev/null || true; fi
}

main() {
    arguments "$@"
    if [ "$action" = uninstall ]; then
        uninstall
        return
    fi
    platform
    install_agent
}

main "$@"
