#!/bin/sh
# Makes what the gateway and compose.yaml need, unless it exists: a self-signed certificate, a key for the caller `me`, a
# password for Grafana, and .env. An authority's certificate replaces the same two files.
#
#   docker/prepare.sh [--gpu] [HOST...]      names or IPv4 addresses of the certificate, besides localhost
#
# --gpu is for the profile of that name: a machine whose GPU or driver the images do not run on is refused here, in one line.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = --gpu ]; then
    shift
    "$here/check_gpu.sh"
fi
secrets=${GATEWAY_SECRETS:-$here/../artifacts/gateway}

command -v openssl >/dev/null || {
    echo "prepare: no openssl: apt install openssl" >&2
    exit 1
}
mkdir -p "$secrets"
secrets=$(cd "$secrets" && pwd)

names=DNS:localhost,DNS:gateway,IP:127.0.0.1 # `gateway` is its name among the containers
for host in "$@"; do
    case $host in
    '' | *[!A-Za-z0-9.-]*)
        echo "prepare: '$host' is no host name or IPv4 address" >&2
        exit 2
        ;;
    *[A-Za-z]*) names=$names,DNS:$host ;;
    *) names=$names,IP:$host ;;
    esac
done

if [ ! -f "$secrets/certificate.pem" ] || [ $# -gt 0 ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj /CN=alexnet-triton \
        -addext "subjectAltName=$names" -addext extendedKeyUsage=serverAuth \
        -keyout "$secrets/certificate.key.new" -out "$secrets/certificate.pem.new" 2>/dev/null
    mv "$secrets/certificate.key.new" "$secrets/certificate.key"
    mv "$secrets/certificate.pem.new" "$secrets/certificate.pem"
    echo "prepare: certificate for $names, a year: $secrets/certificate.pem"
fi
GATEWAY_KEYS=$secrets/keys "$here/key.sh" me >/dev/null
echo "prepare: the key of \`me\`: docker/key.sh me"
if [ ! -f "$secrets/grafana_password" ]; then
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$secrets/grafana_password"
fi
# The gateway and Grafana run as the user who owns these files.
environment=${GATEWAY_ENV:-$here/.env}
if [ ! -f "$environment" ]; then
    printf 'OWNER=%s:%s\nSECRETS=%s\n' "$(id -u)" "$(id -g)" "$secrets" >"$environment"
fi
