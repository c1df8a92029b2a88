#!/bin/sh
# Hosts as network namespaces of one Linux machine (as root): h1 is 10.77.0.1, h2 is 10.77.0.2, the client is 10.77.0.3
# and calls both of them chat.example, and db is 10.77.0.4. The machine's own network is not touched.
#   ./hosts.sh up        make them                    ./hosts.sh on h1 COMMAND…   run a command on a host
#   ./hosts.sh pull h1   pull its cable               ./hosts.sh plug h1          put it back
#   ./hosts.sh kill h1   kill -9 all that runs there  ./hosts.sh off h1           both at once: its power is gone
#   ./hosts.sh down      kill all, remove the hosts   ./hosts.sh until FILE WORDS  wait until a log has the words
# HOSTS names them apart from others on the same machine.
set -eu

name() { echo "${HOSTS:-bester}-$1"; }

up() {
    ip netns add "$(name switch)"
    ip -n "$(name switch)" link add switch type bridge
    ip -n "$(name switch)" link set switch up
    number=1
    for host in h1 h2 client db; do
        ip netns add "$(name $host)"
        ip -n "$(name $host)" link add eth0 type veth peer name $host netns "$(name switch)"
        ip -n "$(name switch)" link set $host master switch up
        ip -n "$(name $host)" addr add "10.77.0.$number/24" dev eth0
        ip -n "$(name $host)" link set eth0 up
        ip -n "$(name $host)" link set lo up
        number=$((number + 1))
    done
    hosts="/etc/netns/$(name client)"
    mkdir -p "$hosts" || mkdir -p "$hosts" # again, where another set of hosts was removed at this moment
    printf '127.0.0.1 localhost\n10.77.0.1 chat.example\n10.77.0.2 chat.example\n' > "$hosts/hosts"
}

end_all() { ip netns pids "$(name "$1")" 2>/dev/null | xargs -r kill -9 2>/dev/null || true; }

down() {
    for host in h1 h2 client db switch; do
        end_all $host
        ip netns del "$(name $host)" 2>/dev/null || true
    done
    rm -f "/etc/netns/$(name client)/hosts"
    rmdir "/etc/netns/$(name client)" /etc/netns 2>/dev/null || true
}

wait_for() {
    tries=600
    until grep -q -e "$2" "$1" 2>/dev/null; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { echo "hosts.sh: $1 does not say $2" >&2; exit 1; }
        sleep 0.1
    done
}

case "${1:-}" in
    up) down; up ;;
    down) down ;;
    on) host=$2; shift 2; exec ip netns exec "$(name "$host")" "$@" ;;
    pull) ip -n "$(name switch)" link set "$2" down ;;
    plug) ip -n "$(name switch)" link set "$2" up ;;
    kill) end_all "$2" ;;
    off) ip -n "$(name switch)" link set "$2" down; end_all "$2" ;;
    until) wait_for "$2" "$3" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
