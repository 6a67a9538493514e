#!/bin/sh
# Runs nginx as the gateway, in the foreground. SIGTERM ends it when the requests in flight are answered; SIGHUP reads
# keys and certificate again. Settings are environment variables, listed in ../README.md.
set -eu
umask 077

# Traps come first: a signal without one would end only this shell, and leave nginx or the folder behind. nginx takes no
# signals until it has written its pid file: QUIT is sent again, and HUP is not needed, because it reads the keys anyway.
pid='' ending='' run=''
end() {
    ending=yes
    [ -z "$pid" ] || kill -QUIT "$pid" 2>/dev/null || :
}
trap end TERM INT QUIT
trap '[ ! -s "$run/nginx.pid" ] || kill -HUP "$pid" 2>/dev/null || :' HUP

here=$(cd "$(dirname "$0")" && pwd)

refuse() {
    echo "gateway: $*" >&2
    exit 1
}

nginx=${GATEWAY_NGINX:-nginx} # NGINX is a variable of nginx itself
listen=${GATEWAY_LISTEN:-127.0.0.1:8443}
http=${TRITON_HTTP:-127.0.0.1:${HTTP_PORT:-8000}}
grpc=${TRITON_GRPC:-127.0.0.1:${GRPC_PORT:-8001}}
keys=${GATEWAY_KEYS:-}
certificate=${GATEWAY_CERT:-}
certificate_key=${GATEWAY_CERT_KEY:-}
page=${GATEWAY_PAGE:-$here/../page}
access_log=${GATEWAY_LOG:-/dev/stdout}
metrics=${GATEWAY_METRICS:-}
modules=${GATEWAY_MODULES:-/usr/lib/nginx/modules}
cgroup=${GATEWAY_CGROUP:-/sys/fs/cgroup} # a container sees its own there

absolute() { # FILE
    case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
    esac
}

number() { # NAME VALUE
    case $2 in
    '' | *[!0-9]* | 0*) refuse "$1 is '$2': give a whole number above 0" ;;
    esac
    echo "$2"
}

# nginx's own `auto` counts the host's processors, whatever a container may use of them.
cores() {
    allowed=$(nproc)
    if [ -r "$cgroup/cpu.max" ]; then # cgroups(7): quota and period, of version 2
        read -r quota period <"$cgroup/cpu.max"
    elif [ -r "$cgroup/cpu/cpu.cfs_quota_us" ]; then # of version 1
        read -r quota <"$cgroup/cpu/cpu.cfs_quota_us"
        read -r period <"$cgroup/cpu/cpu.cfs_period_us"
    else
        quota=max
    fi
    case $quota in
    *[!0-9]*) ;; # max, or -1
    *) [ $((quota)) -ge $((allowed * period)) ] || allowed=$(((quota + period - 1) / period)) ;;
    esac
    echo "$allowed"
}

workers=${GATEWAY_WORKERS:-auto}
[ "$workers" != auto ] || workers=$(cores)
workers=$(number GATEWAY_WORKERS "$workers")
connections=$(number GATEWAY_CONNECTIONS "${GATEWAY_CONNECTIONS:-8192}")
address_connections=$(number GATEWAY_ADDRESS_CONNECTIONS "${GATEWAY_ADDRESS_CONNECTIONS:-2000}")
rate=$(number GATEWAY_RATE "${GATEWAY_RATE:-1000}")
burst=$(number GATEWAY_BURST "${GATEWAY_BURST:-200}")
requests=$(number GATEWAY_REQUESTS "${GATEWAY_REQUESTS:-48}")
body_mib=$(number GATEWAY_BODY_MIB "${GATEWAY_BODY_MIB:-16}")
memory_mib=$(number GATEWAY_MEMORY_MIB "${GATEWAY_MEMORY_MIB:-4096}")
timeout_s=$(number GATEWAY_TIMEOUT_S "${GATEWAY_TIMEOUT_S:-10}")
resolve_s=$(number GATEWAY_RESOLVE_S "${GATEWAY_RESOLVE_S:-5}")

case ${GATEWAY_RETRIES:-on} in
on) retry_on="error timeout invalid_header http_502 http_504 non_idempotent" grpc_failed=@grpc_again ;;
off) retry_on=off grpc_failed=@grpc_unavailable ;;
*) refuse "GATEWAY_RETRIES is '$GATEWAY_RETRIES': give on or off" ;;
esac

# Three quarters of the memory are for large bodies, each there three times, because they are searched for a priority; a
# key has a quarter of them at most. A quarter is for those below 1 MB, each five times, because they are changed too.
large=$((memory_mib * 3 / 4 / (3 * body_mib)))
small=$((memory_mib / 4 / 5))
[ "$large" -ge 4 ] || refuse "GATEWAY_MEMORY_MIB is '$memory_mib': give $((16 * body_mib)) or more, for four bodies of GATEWAY_BODY_MIB"
large_of_key=$((large / 4))
[ "$large_of_key" -le "$requests" ] || large_of_key=$requests

priority_keys=
for name in ${GATEWAY_PRIORITY_KEYS:-}; do
    case $name in
    *[!A-Za-z0-9_.-]*) refuse "GATEWAY_PRIORITY_KEYS has '$name': give names of keys, separated by spaces" ;;
    esac
    priority_keys="$priority_keys$name 1; "
done
no_priority="this key may not name a priority: leave it out, or have the key listed in GATEWAY_PRIORITY_KEYS"

# ---- secrets: they exist, only their owner can read them, and they are well formed

private() { # WHAT FILE
    [ -f "$2" ] || refuse "no $1 at '$2': make it with docker/prepare.sh"
    [ -r "$2" ] || refuse "$2 cannot be read by $(id -un 2>/dev/null || id -u)"
    case $(ls -lnL "$2") in
    -???------*) ;;
    *) refuse "$2 can be read by others: chmod 600 it" ;;
    esac
}

check_keys() {
    private "file of API keys" "$keys"
    awk '!/^[[:space:]]*(#|$)/ && !/^"Bearer [0-9a-f]+" [A-Za-z0-9_.-]+;$/ || /^"Bearer/ && length($2) != 65 { print NR; exit }' \
        "$keys" | while read -r line; do
        refuse "$keys, line $line is not a key: make keys with docker/key.sh"
    done
}

command -v "$nginx" >/dev/null || refuse "no nginx at '$nginx': start with \`make gateway\`, or name one in GATEWAY_NGINX"
case $("$nginx" -V 2>&1) in
*--add-module=*njs*) load= ;;
*) # as in nginx's own image
    [ -f "$modules/ngx_http_js_module.so" ] || refuse "no njs in '$nginx' or '$modules': install nginx-module-njs, or name its folder in GATEWAY_MODULES"
    load="load_module $modules/ngx_http_js_module.so;"
    ;;
esac
address() { # NAME VALUE
    case $2 in
    *[!0-9A-Za-z.:[\]-]*) refuse "$1 is '$2': give ADDRESS:PORT" ;;
    esac
}
address GATEWAY_LISTEN "$listen"
address GATEWAY_METRICS "$metrics"
address GATEWAY_RESOLVER "${GATEWAY_RESOLVER:-}"
[ -f "$page/index.html" ] || refuse "no page in '$page'"
check_keys
private "key of the certificate" "$certificate_key"
[ -r "$certificate" ] || refuse "no certificate at '$certificate': make one with docker/prepare.sh"

# ---- the Tritons, separated by spaces; names are resolved again when their records expire

servers() { # ADDRESS...
    for address in "$@"; do
        case $address in
        *[!A-Za-z0-9.:_-]* | *: | :*) refuse "'$address' is not HOST:PORT of a Triton" ;;
        *[A-Za-z]*:*) resolve=" resolve" ;;
        *:*) resolve= ;;
        *) refuse "'$address' is not HOST:PORT of a Triton" ;;
        esac
        printf 'server %s max_fails=3 fail_timeout=5s%s; ' "$address" "$resolve"
    done
}

# shellcheck disable=SC2086 # the list is split on purpose
http_servers=$(servers $http)
# shellcheck disable=SC2086
grpc_servers=$(servers $grpc)
[ -n "$http_servers" ] && [ -n "$grpc_servers" ] || refuse "TRITON_HTTP or TRITON_GRPC names no Triton"
resolver=
case $http_servers$grpc_servers in
*resolve*)
    nameserver=${GATEWAY_RESOLVER:-$(awk '$1 == "nameserver" { print $2 ~ /:/ ? "[" $2 "]" : $2; exit }' /etc/resolv.conf)}
    [ -n "$nameserver" ] || refuse "no nameserver in /etc/resolv.conf: name the Tritons by their addresses"
    resolver="resolver $nameserver valid=${resolve_s}s ipv6=off;"
    ;;
esac

# ---- a folder for nginx, which its workers can enter even when they are another user than the master

run=$(mktemp -d)
chmod 711 "$run"
trap 'rm -rf "$run"' EXIT
mkdir "$run/page"
cp "$page"/* "$run/page/"
chmod -R a+rX "$run/page"
cp "$here/mime.types" "$here/requests.js" "$run/"

include=
if [ -n "$metrics" ]; then
    sed "s|@METRICS@|$metrics|" "$here/metrics.conf.in" >"$run/metrics.conf"
    include='include metrics.conf;'
fi

access_log=$(absolute "$access_log")
mkdir -p "$(dirname "$access_log")"
sed -e "s|@MODULES@|$load|" -e "s|@WORKERS@|$workers|" -e "s|@FILES@|$((2 * connections))|" -e "s|@CONNECTIONS@|$connections|" \
    -e "s|@RESOLVER@|$resolver|" -e "s|@KEYS@|$(absolute "$keys")|" -e "s|@BODY_MIB@|$body_mib|g" \
    -e "s|@BUFFER_MIB@|$((body_mib + 1))|" -e "s|@LARGE@|$large|" -e "s|@SMALL@|$small|" \
    -e "s|@LARGE_OF_KEY@|$large_of_key|" -e "s|@PRIORITY_KEYS@|$priority_keys|" -e "s|@NO_PRIORITY@|$no_priority|" \
    -e "s|@RATE@|$rate|" -e "s|@BURST@|$burst|" -e "s|@REQUESTS@|$requests|g" -e "s|@TIMEOUT_S@|$timeout_s|" \
    -e "s|@HTTP_SERVERS@|$http_servers|" -e "s|@GRPC_SERVERS@|$grpc_servers|" -e "s|@RETRY_ON@|$retry_on|" -e "s|@GRPC_FAILED@|$grpc_failed|" \
    -e "s|@ACCESS_LOG@|$access_log|" -e "s|@METRICS@|$include|" -e "s|@LISTEN@|$listen|" -e "s|@RUN@|$run|g" -e "s|@ADDRESS_CONNECTIONS@|$address_connections|" -e "s|@PAGE@|$run/page|" \
    -e "s|@CERTIFICATE@|$(absolute "$certificate")|" -e "s|@CERTIFICATE_KEY@|$(absolute "$certificate_key")|" \
    "$here/nginx.conf.in" >"$run/nginx.conf"

"$nginx" -e stderr -p "$run" -c "$run/nginx.conf" -t -q || [ -n "$ending" ] || refuse "nginx refuses its configuration, see above"
[ "${1:-}" = check ] && exit

[ -z "$ending" ] || exit 0
"$nginx" -e stderr -p "$run" -c "$run/nginx.conf" &
pid=$!
echo "gateway: https://$listen before $http and grpc://$grpc" >&2
status=0
while kill -0 "$pid" 2>/dev/null; do
    if [ -n "$ending" ]; then
        end
        sleep 0.1
    else
        wait "$pid" && status=0 || status=$?
    fi
done
[ -z "$ending" ] || { wait "$pid" && status=0 || status=$?; }
# The end by a signal is what was asked for, and no failure.
[ "$status" -lt 128 ] || status=0
exit "$status"
