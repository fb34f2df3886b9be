#!/usr/bin/env bash
# The Debian package, from its contents to its end: installed, upgraded over itself, removed and purged by dpkg, maintainer
# scripts and all, in a copy of this machine that is thrown away.
#
#   tests/package/run.sh PACKAGE.deb     as root, on Debian; needs iproute2, lintian, man-db and systemd-sysusers
#
# The copy is an overlay: nothing is written to the machine, no service manager is there, and the network is one of its own.
set -euo pipefail
shopt -s inherit_errexit

readonly BINARY=/usr/sbin/linkrouterd
readonly CONFIG=/etc/linkrouterd/linkrouterd.conf
readonly ENABLED=/etc/systemd/system/multi-user.target.wants/linkrouterd.service

# What the package installs, where, and with which mode; directories apart.
readonly CONTENTS="\
-rw-r----- /etc/linkrouterd/linkrouterd.conf
-rw-r--r-- /usr/lib/systemd/system/linkrouterd.service
-rw-r--r-- /usr/lib/sysusers.d/linkrouterd.conf
-rw-r--r-- /usr/share/bash-completion/completions/linkrouterd
-rw-r--r-- /usr/share/doc/linkrouterd/README.md
-rw-r--r-- /usr/share/doc/linkrouterd/changelog.gz
-rw-r--r-- /usr/share/doc/linkrouterd/configuration.md
-rw-r--r-- /usr/share/doc/linkrouterd/copyright
-rw-r--r-- /usr/share/doc/linkrouterd/crates.txt.gz
-rw-r--r-- /usr/share/doc/linkrouterd/examples/linkrouterd-brokers.conf
-rw-r--r-- /usr/share/doc/linkrouterd/examples/linkrouterd-eventhub.conf
-rw-r--r-- /usr/share/doc/linkrouterd/examples/linkrouterd-iothub.conf
-rw-r--r-- /usr/share/doc/linkrouterd/examples/linkrouterd-servicebus.conf
-rw-r--r-- /usr/share/doc/linkrouterd/examples/telemetry.py
-rw-r--r-- /usr/share/doc/linkrouterd/migrating-from-qdrouterd.md
-rw-r--r-- /usr/share/doc/linkrouterd/quick-start.md
-rw-r--r-- /usr/share/doc/linkrouterd/service.md
-rw-r--r-- /usr/share/doc/linkrouterd/threat-model.md
-rw-r--r-- /usr/share/doc/linkrouterd/troubleshooting.md
-rw-r--r-- /usr/share/fish/vendor_completions.d/linkrouterd.fish
-rw-r--r-- /usr/share/lintian/overrides/linkrouterd
-rw-r--r-- /usr/share/man/man5/linkrouterd.conf.5.gz
-rw-r--r-- /usr/share/man/man8/linkrouterd.8.gz
-rw-r--r-- /usr/share/zsh/vendor-completions/_linkrouterd
-rwxr-xr-x /usr/sbin/linkrouterd"

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# same WHAT FOUND WANTED
same() {
    [ "$2" = "$3" ] || fail "$1 is
$2
and should be
$3"
    echo "ok: $1"
}

# holds WHAT COMMAND...
holds() {
    local what=$1
    shift
    "$@" || fail "$what: $*"
    echo "ok: $what"
}

# repacked VERSION PACKAGE: the package under another version, and with another configuration for new installations.
repacked() {
    local version=$1 root=$work/$1
    dpkg-deb --raw-extract "$2" "$root"
    sed -i "s/^Version: .*/Version: $version/" "$root/DEBIAN/control"
    echo "# The default of version $version." >>"$root$CONFIG"
    dpkg-deb -Znone --root-owner-group --build "$root" "$work/$version.deb" >/dev/null
    rm -r "$root"
}

inspect() {
    local package=$1 files
    same "the control file's name" "$(dpkg-deb --field "$package" Package)" linkrouterd
    same "the control file's version" "$(dpkg-deb --field "$package" Version)" "$("$program" --version)"
    same "the list of conffiles" "$(dpkg-deb --ctrl-tarfile "$package" | tar -xO ./conffiles)" "$CONFIG"
    files=$(dpkg-deb --contents "$package" | awk '$1 !~ /^d/ { sub(/^\./, "", $6); print $1, $6 }' | sort -k 2)
    same "the list of files" "$files" "$(sort -k 2 <<<"$CONTENTS")"
    same "who owns what" "$(dpkg-deb --contents "$package" | awk '$2 != "0/0"')" ""
    lintian --allow-root --fail-on error,warning "$package"
    echo "ok: lintian"
    # Everything that is linked into the program is under a licence that its copyright names.
    local copyright licence
    copyright=$(dpkg-deb --fsys-tarfile "$package" | tar -xO ./usr/share/doc/linkrouterd/copyright | tr -s ' \n' ' ')
    while read -r licence; do
        holds "licence $licence is named" grep -qwF -- "$licence" <<<"$copyright"
    done < <(cargo tree --locked --edges normal --prefix none --format '{l}' |
        sed 's/ (\*)$//; s/ AND \| OR \|[()]/\n/g' | sed 's/^ *//; s/ *$//; /^$/d' | sort -u)
    # And the text is there for each crate that is linked.
    local crates crate
    crates=$(dpkg-deb --fsys-tarfile "$package" | tar -xO ./usr/share/doc/linkrouterd/crates.txt.gz | gzip -d)
    while read -r crate; do
        holds "the text for $crate is there" grep -qE "^Of (.*, )?$crate[,:]" <<<"$crates"
    done < <(cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}' |
        awk '$1 != "linkrouterd" { print $1 }' | sort -u)
}

# Runs in the copy of the machine.
live() {
    local first=$1 second=$2 third=$3
    ip link set lo up
    dpkg --install "$first"
    same "the state of the package" "$(dpkg-query --show --showformat '${db:Status-Status}' linkrouterd)" installed
    same "the configuration's owner and mode" "$(stat -c '%U:%G %a' "$CONFIG")" "root:linkrouterd 640"
    same "its directory's owner and mode" "$(stat -c '%U:%G %a' "${CONFIG%/*}")" "root:linkrouterd 2750"
    holds "the service is enabled" test -L "$ENABLED"
    same "the program's version" "$($BINARY --version)" "$(dpkg-query --show --showformat '${Version}' linkrouterd)"
    holds "the configuration is flawless" $BINARY --check
    same "linkrouterd(8)" "$(man -w linkrouterd)" /usr/share/man/man8/linkrouterd.8.gz
    same "linkrouterd.conf(5)" "$(man -w linkrouterd.conf)" /usr/share/man/man5/linkrouterd.conf.5.gz
    same "warnings of the manual" "$(man --warnings linkrouterd 2>&1 >/dev/null; man --warnings linkrouterd.conf 2>&1 >/dev/null)" ""
    # shellcheck disable=SC2016
    same "what bash completes" "$(bash -c '
        source /usr/share/bash-completion/completions/linkrouterd
        COMP_WORDS=(linkrouterd --hash) COMP_CWORD=1
        _linkrouterd linkrouterd --hash linkrouterd
        echo "${COMPREPLY[*]}"')" --hash-password
    starts
    by_its_other_name

    # A configuration that nobody has touched becomes that of the new version.
    dpkg --install "$second"
    same "the untouched configuration" "$(tail -n 1 "$CONFIG")" "# The default of version 99.0.0."
    same "its owner and mode" "$(stat -c '%U:%G %a' "$CONFIG")" "root:linkrouterd 640"

    # One that the operator has edited stays, with the new one beside it.
    sed -i 's/id: linkrouterd/id: edited/' "$CONFIG"
    echo "dev1:secret" >"${CONFIG%/*}/users"
    chmod 0600 "$CONFIG"
    local edited
    edited=$(<"$CONFIG")
    dpkg --force-confdef --force-confold --install "$third"
    same "the edited configuration" "$(<"$CONFIG")" "$edited"
    same "the operator's mode" "$(stat -c '%U:%G %a' "$CONFIG")" "root:linkrouterd 600"
    same "the new default beside it" "$(tail -n 1 "$CONFIG.dpkg-dist")" "# The default of version 99.0.1."
    holds "it is fit to run" $BINARY --check
    holds "the service is enabled still" test -L "$ENABLED"

    install -d -o linkrouterd /var/log/linkrouterd
    dpkg --remove linkrouterd
    holds "the program is gone" test ! -e $BINARY
    same "the edited configuration after the removal" "$(<"$CONFIG")" "$edited"
    dpkg --purge linkrouterd
    holds "the configuration is gone" test ! -e "$CONFIG"
    holds "its new default is gone" test ! -e "$CONFIG.dpkg-dist"
    holds "log files are gone" test ! -e /var/log/linkrouterd
    holds "the service is not enabled any more" test ! -L "$ENABLED"
    same "the operator's own file" "$(<"${CONFIG%/*}/users")" "dev1:secret"
    holds "the account stays" getent passwd linkrouterd
}

# As the service would, as the user of the service: with the configuration as it was installed.
starts() {
    local log=/var/tmp/linkrouterd.log command
    command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/linkrouterd.service)
    : >$log
    # shellcheck disable=SC2086
    setpriv --reuid linkrouterd --regid linkrouterd --clear-groups $command >$log 2>&1 &
    local pid=$!
    timeout 60 grep -qm 1 'Listening on 127.0.0.1:5672' <(tail -f -n +1 --pid=$pid $log) || fail "it does not listen: $(<$log)"
    echo "ok: it listens, on this machine only"
    holds "it says what to do next" grep -q 'There is no linkRoute in /etc/linkrouterd/linkrouterd.conf' $log
    same "how many addresses it listens on" "$(grep -c 'Listening on' $log)" 1
    kill -TERM $pid
    wait $pid || fail "it does not end well: $(<$log)"
    echo "ok: it ends on SIGTERM"
}

# As docs/migrating-from-qdrouterd.md says.
by_its_other_name() {
    ln -s /usr/sbin/linkrouterd /usr/local/sbin/qdrouterd
    ln -s /usr/lib/systemd/system/linkrouterd.service /etc/systemd/system/qdrouterd.service
    holds "the links lead somewhere" test -x /usr/local/sbin/qdrouterd -a -f /etc/systemd/system/qdrouterd.service
    same "the program under its other name" "$(qdrouterd --version)" "$($BINARY --version)"
    holds "without a file of qdrouterd it takes ours" grep -q "^$CONFIG: " <(qdrouterd --check)
    mkdir -p /etc/qpid-dispatch
    echo 'router { ' >/etc/qpid-dispatch/qdrouterd.conf
    holds "under its other name it takes the file of qdrouterd" \
        grep -q "^/etc/qpid-dispatch/qdrouterd.conf: " <(qdrouterd --check || true)
    holds "under its own name it does not" $BINARY --check
}

main() {
    local package program
    package=$(realpath "$1")
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    dpkg-deb --fsys-tarfile "$package" | tar -xO .$BINARY >"$work/linkrouterd"
    program=$work/linkrouterd
    chmod +x "$program"
    inspect "$package"
    cp "$package" "$work/first.deb"
    repacked 99.0.0 "$package"
    repacked 99.0.1 "$package"
    cp "$0" "$work/run.sh"
    # The mounts go with their namespace.
    # shellcheck disable=SC2016
    timeout 240 unshare --mount --net --propagation private bash -euc '
        mkdir "$0/space"
        mount -t tmpfs none "$0/space"
        mkdir "$0"/space/{upper,scratch,root}
        mount -t overlay none -o "lowerdir=/,upperdir=$0/space/upper,workdir=$0/space/scratch" "$0/space/root"
        mkdir "$0/space/root/packages"
        mount --bind "$0" "$0/space/root/packages"
        mount --bind /proc "$0/space/root/proc"
        mount --bind /dev "$0/space/root/dev"
        mount -t tmpfs none "$0/space/root/run"
        exec env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            chroot "$0/space/root" bash /packages/run.sh --live /packages/first.deb /packages/99.0.0.deb /packages/99.0.1.deb
    ' "$work"
    echo "ok: $(basename "$package")"
}

if [ "${1:-}" = --live ]; then
    shift
    live "$@"
else
    main "$@"
fi
