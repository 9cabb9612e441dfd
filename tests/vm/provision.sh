#!/bin/bash
# Makes a Debian 12 machine ready for scow. One script for every machine: `make demo` and `make test`
# call it for packages, the Vagrant lab and the QEMU guest for the whole set-up.
#
#   provision.sh packages SET...     install what is missing of the named sets: run, engines, test, vm, bench
#   provision.sh list SET...         print the names of the packages of these sets
#   provision.sh python [REQ...]     make the virtual environment /opt/scow, with these requirements
#   provision.sh install WHAT        install scow (a checkout or a wheel) into it, and link /usr/local/bin/scow
#   provision.sh lab CHECKOUT        all of it: a machine on which `sudo scow run ...` works
#
# Running it again changes nothing and is quick. pip's own environment variables (PIP_NO_INDEX,
# PIP_FIND_LINKS, PIP_INDEX_URL) are honoured: the guest installs from a directory, without a network.
set -euo pipefail

PREFIX=/opt/scow
PYTHON=/usr/bin/python3

# To build and to run. libcap-dev is for python-prctl, which has no wheels.
RUN="python3 python3-venv python3-dev gcc libc6-dev make musl-tools libcap-dev nftables iproute2 kmod ca-certificates"
# What drives scow-oci, and the runtimes that it is compared with; in the guest, too.
ENGINES="podman containerd docker.io crun runc criu busybox-static procps"
# To test: other programs' images, a registry, a Ruby for the Vagrantfile, sanitizers of gcc, fuzzers of clang,
# networks for pods.
TEST="docker-registry skopeo umoci buildah mmdebstrap zstd ruby curl strace clang-14 libclang-rt-14-dev containernetworking-plugins $ENGINES"
# What these would start, now and at each boot; the tests start their own.
SERVICES="docker-registry.service docker.service docker.socket containerd.service podman.service podman.socket"
# To load a server. The runtimes to compare with are the user's choice: none is installed.
BENCH="isal wrk"
# To boot the guest with cgroup v2.
VM="qemu-system-x86 mmdebstrap e2fsprogs busybox-static"

die() {
    echo "provision: $*" >&2
    exit 1
}

package_set() {
    case "$1" in
        run) echo "$RUN" ;;
        engines) echo "$ENGINES" ;;
        test) echo "$TEST" ;;
        vm) echo "$VM" ;;
        bench) echo "$BENCH" ;;
        *) die "no such set of packages: '$1' (run, engines, test, vm, bench)" ;;
    esac
}

names() {
    local set
    for set in "$@"; do
        package_set "$set"
    done | tr ' ' '\n' | sort -u
}

missing() {
    local name
    for name in $(names "$@"); do
        case "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" in
            installed) ;;
            *) echo "$name" ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for '$*', and there is no sudo: run it as root"
    fi
}

packages() {
    local wanted unit fresh="" masked=""
    wanted=$(missing "$@")
    [ -n "$wanted" ] || return 0
    command -v apt-get >/dev/null || die "not a Debian machine; install these by hand:" $wanted
    echo "provision: installing" $wanted
    for unit in $SERVICES; do
        [ -e "/lib/systemd/system/$unit" ] || fresh="$fresh $unit"
    done
    # docker would make links and rules as soon as it is installed: what is masked is not started.
    [ ! -d /run/systemd/system ] || masked=$fresh
    # shellcheck disable=SC2086  # lists of words
    {
        [ -z "$masked" ] || as_root systemctl mask --quiet --runtime $masked
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $wanted
        [ -z "$masked" ] || as_root systemctl unmask --quiet --runtime $masked
    }
    for unit in $fresh; do
        [ ! -e "/lib/systemd/system/$unit" ] || as_root systemctl disable --quiet "$unit"
    done
}

python_environment() {
    [ -x "$PREFIX/bin/python" ] || "$PYTHON" -m venv "$PREFIX"
    if [ $# -gt 0 ]; then
        "$PREFIX/bin/pip" install -q --disable-pip-version-check "$@"
    fi
}

install_scow() {
    "$PREFIX/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$1"
    ln -sfn "$PREFIX/bin/scow" /usr/local/bin/scow
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
    packages) packages "$@" ;;
    list) names "$@" ;;
    python) python_environment "$@" ;;
    install) install_scow "$1" ;;
    lab)
        packages run
        python_environment "$1"
        install_scow "$1"
        echo "provision: ready; try: sudo scow run --rm -m 64m --cpus 0.5 --pids-limit 64 scow/hello"
        ;;
    *) die "say what to do: packages SET..., list SET..., python [REQ...], install WHAT, lab CHECKOUT" ;;
esac
