#!/bin/sh
# Two hosts, a client's machine and a database's, as network namespaces on one Linux machine (as root):
#   ./hosts.sh up       make them: h1 is 10.77.0.1, h2 is 10.77.0.2, the client calls both chat.example
#   ./hosts.sh on h1 COMMAND…      run a command on one of them: h1, h2 or client
#   ./hosts.sh pull h1  pull its cable      ./hosts.sh plug h1  put it back
#   ./hosts.sh down     remove everything
# The machine itself is 10.77.0.254: PostgreSQL runs there.
set -eu

name() { echo "bester-$1"; }

up() {
    ip link add bester0 type bridge
    ip addr add 10.77.0.254/24 dev bester0
    ip link set bester0 up
    number=1
    for host in h1 h2 client; do
        ip netns add "$(name $host)"
        ip link add "bester-$host" type veth peer name eth0 netns "$(name $host)"
        ip link set "bester-$host" master bester0 up
        ip -n "$(name $host)" addr add "10.77.0.$number/24" dev eth0
        ip -n "$(name $host)" link set eth0 up
        ip -n "$(name $host)" link set lo up
        number=$((number + 1))
    done
    mkdir -p "/etc/netns/$(name client)"
    printf '127.0.0.1 localhost\n10.77.0.1 chat.example\n10.77.0.2 chat.example\n' > "/etc/netns/$(name client)/hosts"
}

down() {
    for host in h1 h2 client; do ip netns del "$(name $host)" || true; done
    ip link del bester0 || true
    rm -f "/etc/netns/$(name client)/hosts"
    rmdir "/etc/netns/$(name client)" /etc/netns 2>/dev/null || true
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    on) host=$2; shift 2; exec ip netns exec "$(name "$host")" "$@" ;;
    pull) ip link set "bester-$2" down ;;
    plug) ip link set "bester-$2" up ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
