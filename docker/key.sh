#!/bin/sh
# Prints the API key of a caller, and makes it if there is none: docker/key.sh NAME. A running gateway reads new keys
# at SIGHUP.
set -eu
umask 077
keys=${GATEWAY_KEYS:-$(dirname "$0")/../artifacts/gateway/keys}
name=${1:-}
case $name in
'' | *[!A-Za-z0-9_.-]*)
    echo "key: name the caller, in letters, digits, - _ and dots: docker/key.sh NAME" >&2
    exit 2
    ;;
esac

key() {
    awk -v name="$name;" '$3 == name { gsub(/"/, "", $2); print $2; exit }' "$keys"
}

mkdir -p "$(dirname "$keys")"
[ -f "$keys" ] || : >"$keys"
[ -n "$(key)" ] || printf '"Bearer %s" %s;\n' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" "$name" >>"$keys"
key
