#!/bin/sh
# Installs missing dependencies. If none is missing, it runs neither the package manager nor pip.
#
# usage: scripts/setup.sh [LEVEL]
#   run    dependencies of netbpf, from the distribution's packages
#   dev    run, plus linters, unit and contract tests in a virtual environment, .venv
#   test   dev, plus programs that generate traffic for the live tests
#   guest  run, plus the dependencies of the live tests only: for test machines (see vagrant/)
#   bench  run, plus the peers that `make bench` measures
#   vm     programs that `make vm` needs to build and boot test machines
#
# Messages are written to stderr, one line per step. The output of the package manager and pip is
# written to build/setup.log and shown only if they fail.
set -eu
cd "$(dirname "$0")/.."

# bcc's bindings are installed for the system's Python. Another python3 that is first on PATH (pyenv,
# conda, a virtual environment) cannot import them.
PYTHON=/usr/bin/python3
VENV=.venv
LOG=build/setup.log
NOT_OFFERED=build/packages-not-offered
POLICY=/usr/sbin/policy-rc.d
# Packages that start a daemon and enable it at boot.
DAEMON_PACKAGES="nginx-light redis-server iperf3"

# These would make pip install, or Python import, from elsewhere. Settings of the package source
# (PIP_INDEX_URL, PIP_CERT, proxies) are kept.
unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_REQUIRE_VIRTUALENV
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

# After plain `su`, PATH lacks the sbin directories.
PATH=$PATH:/usr/sbin:/sbin

notice() {
    echo "setup: $*" >&2
}

fail() { # fail WHAT HINT
    echo "setup: error: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Checked first, because errors of as_root may be written to the log only.
need_root() {
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || fail \
        "installing packages needs root, and sudo is not installed" \
        "run this once as root: scripts/setup.sh $level"
}

logged() {
    if [ -z "$logging" ]; then
        mkdir -p "${LOG%/*}"
        : >"$LOG"
        logging=yes
    fi
    echo "+ $*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null
}

show_log() {
    echo "setup: the last lines of $LOG:" >&2
    tail -n 15 "$LOG" | sed 's/^/    /' >&2
}

# --- what each level needs -----------------------------------------------------------------------

packages_apt() {
    case $1 in
    # python3-bpfcc depends on libbpf: libbpf1 on Debian 12 and Ubuntu 24.04, libbpf0 before.
    run) echo python3 python3-bpfcc python3-click python3-numpy python3-pyelftools \
        python3-seccomp ;;
    dev) echo python3-venv ca-certificates make clang-format shellcheck ;;
    test) echo gcc libc6-dev musl-tools golang-go libbpf-tools iproute2 nftables iptables strace \
        curl jq wrk nginx-light redis-server iperf3 bind9-dnsutils ;;
    guest) echo python3-venv && packages_apt test ;;
    bench) echo bpfcc-tools libbpf-tools bpftrace iproute2 nginx-light wrk && headers_apt ;;
    vm) echo vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 \
        qemu-utils dnsmasq-base iptables rsync openssh-client mmdebstrap grub-pc-bin grub-common \
        fdisk pigz python3-yaml ;;
    esac
}

# bcc's own tools compile against kernel headers, if possible those of the running kernel. A kernel
# without a headers package uses those of the distribution's kernel (see bench/namespace.py).
headers_apt() {
    if [ -e "/lib/modules/$(uname -r)/build" ]; then
        :
    elif grep -q '^ID=ubuntu' /etc/os-release; then
        echo linux-headers-generic
    else
        echo "linux-headers-$(dpkg --print-architecture)"
    fi
}

packages_dnf() {
    case $1 in
    run) echo python3 python3-bcc python3-click python3-numpy python3-pyelftools \
        python3-libseccomp libbpf ;;
    dev) echo python3-pip ca-certificates make clang-tools-extra ShellCheck ;;
    test) echo gcc glibc-devel musl-gcc golang libbpf-tools iproute iproute-tc nftables iptables-nft \
        strace curl jq wrk nginx redis iperf3 bind-utils ;;
    guest) packages_dnf dev && packages_dnf test ;;
    bench) echo bcc-tools libbpf-tools bpftrace iproute nginx wrk kernel-devel ;;
    vm) echo vagrant vagrant-libvirt libvirt-daemon-kvm libvirt-client qemu-system-x86 qemu-img \
        dnsmasq iptables-nft rsync openssh-clients mmdebstrap grub2-pc-modules grub2-tools \
        util-linux pigz python3-pyyaml ;;
    esac
}

installed() { # print the installed packages among "$@", one per line
    case $manager in
    apt) dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^installed //p' ;;
    dnf) rpm -q --qf '%{NAME}\n' "$@" | grep -v ' ' ;;
    esac
}

missing() { # missing LEVEL: print the packages of this level that are not installed
    # shellcheck disable=SC2046 # a list of names
    set -- $("packages_$manager" "$1")
    have=" $(installed "$@" | tr '\n' ' ') $(cat "$NOT_OFFERED" 2>/dev/null || :) "
    # Any other nginx package works as well and must not be replaced.
    if [ -x /usr/sbin/nginx ]; then have="$have nginx-light nginx "; fi
    for name; do
        case $have in *" $name "*) ;; *) echo "$name" ;; esac
    done
}

# --- packages ------------------------------------------------------------------------------------

offered() {
    case $manager in
    apt) apt-cache show --no-all-versions "$1" >/dev/null 2>&1 ;;
    dnf) [ -n "$(dnf -q repoquery "$1" 2>/dev/null)" ] ;;
    esac
}

apt_get() {
    # Wait for another apt (a fresh cloud machine updates itself). Suspend needrestart, which would
    # restart services.
    logged as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -y -o DPkg::Lock::Timeout=300 -o APT::Install-Recommends=false "$@"
}

# Debian starts a daemon when its package is installed. policy-rc.d is the official mechanism to
# prevent this; this one applies only to the daemons above, and is removed when this script exits.
# An existing policy-rc.d is kept.
hold_daemons() { # hold_daemons PACKAGE...
    daemons=
    for name; do
        case " $DAEMON_PACKAGES " in *" $name "*) daemons="$daemons $name" ;; esac
    done
    if [ -z "$daemons" ] || [ -e "$POLICY" ]; then return 0; fi
    trap 'as_root rm -f "$POLICY"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '%s\n' '#!/bin/sh' '# Created by scripts/setup.sh of netbpf, which removes it when it exits.' \
        'case "$*" in *nginx*|*redis*|*iperf3*) exit 101 ;; esac' 'exit 0' |
        as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}

install_apt() {
    hold_daemons "$@"
    apt_get install "$@" || return 1
    # Tests start these daemons themselves, so they must not start at boot.
    for name in $daemons; do
        logged as_root update-rc.d "${name%-light}" disable || :
    done
}

install_dnf() {
    logged as_root dnf -q -y --setopt=install_weak_deps=False install "$@"
}

# Package lists may be stale or, in a fresh container, missing. A broken third-party repository is not
# fatal, because our packages may come from another one.
refresh() {
    if [ "$manager" = apt ]; then
        apt_get update || notice "warning: could not refresh the package lists, continuing"
    fi
}

explain_packages() { # explain_packages NAME...
    show_log
    if grep -qiE 'could not get lock|unable to (acquire|lock)' "$LOG"; then
        fail "another program has locked the package manager" "wait for it to finish and try again"
    elif grep -qE 'Could not resolve|Failed to fetch|Temporary failure|Cannot download' "$LOG"; then
        fail "cannot reach the package servers" "check the network, proxy and package sources"
    elif grep -q 'Unable to locate package' "$LOG"; then
        fail "this release does not have all of: $*" \
            "on Ubuntu: add-apt-repository universe; elsewhere check /etc/apt/sources.list"
    fi
    fail "cannot install: $*" "install these packages manually and try again"
}

# The packages of `run` are required. Others may be missing in a release; the tests that need them
# are then skipped.
drop_not_offered() { # drop_not_offered NAME...: sets $wanted
    wanted=
    for name; do
        if offered "$name"; then
            wanted="$wanted $name"
        else
            notice "not available in this release, skipped: $name"
            printf '%s ' "$name" >>"$NOT_OFFERED"
        fi
    done
}

install_packages() { # install_packages LEVEL
    wanted=$(missing "$1" | tr '\n' ' ')
    [ -n "${wanted% }" ] || return 0
    need_root
    notice "installing packages: ${wanted% } (log: $LOG)"
    if [ -z "$refreshed" ]; then
        refresh
        refreshed=yes
    fi
    # shellcheck disable=SC2086 # lists of names
    if [ "$1" != run ]; then drop_not_offered $wanted; fi
    [ -n "${wanted# }" ] || return 0
    # shellcheck disable=SC2086
    "install_$manager" $wanted || explain_packages $wanted
}

# --- Python --------------------------------------------------------------------------------------

# Succeeds if the system's Python can run netbpf: it is new enough and has bcc's bindings (not the
# PyPI package of that name, which has no libbcc.py) and the dependencies in pyproject.toml. Checks
# metadata instead of importing, which takes 0.1 s each for bcc and numpy.
runtime_ok() {
    [ -x "$PYTHON" ] && "$PYTHON" - "$@" <<'END'
import re, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

def number(text):
    return [int(part) for part in re.findall(r"\d+", text)[:3]]

def new_enough(name, minimum):
    try:
        return number(version(name)) >= number(minimum)
    except PackageNotFoundError:
        return False

bcc = find_spec("bcc")
has_bcc = bcc and any(Path(d, "libbcc.py").exists() for d in bcc.submodule_search_locations or [])
text = Path("pyproject.toml").read_text()
needs = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S).group(1)
rest = all(new_enough(*need) for need in re.findall(r'"([\w-]+)>=([\d.]+)"', needs))
sys.exit(not (sys.version_info >= (3, 9) and has_bcc and (rest or "bcc-only" in sys.argv)))
END
}

inputs() {
    cat scripts/setup.sh pyproject.toml setup.cfg
    "$PYTHON" --version
}

# Succeeds if the environment works and is based on the system's Python; an upgrade of Python breaks
# it.
venv_sound() {
    "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.base_prefix != "/usr")' 2>/dev/null
}

make_venv() { # make_venv EXTRAS
    stamp=$VENV/.setup-${1:-run}
    sum=$(inputs | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && [ -x "$VENV/bin/python" ]; then return 0; fi
    notice "installing Python packages into $VENV (log: $LOG)"
    if ! venv_sound; then
        logged "$PYTHON" -m venv --clear --system-site-packages "$VENV" || {
            show_log
            fail "cannot create a virtual environment" "check that python3-venv is installed"
        }
    fi
    # Editable installs from pyproject.toml (PEP 660) need pip 21.3; Debian 11 has 20.3.
    "$VENV/bin/python" -c 'import pip, sys; v = pip.__version__.split("."); \
        sys.exit((int(v[0]), int(v[1])) < (21, 3))' ||
        logged "$VENV/bin/python" -m pip install --no-input --upgrade "pip>=21.3" || :
    logged "$VENV/bin/python" -m pip install --no-input --editable ".${1:+[$1]}" || {
        show_log
        fail "pip cannot install the dependencies in pyproject.toml" \
            "check the network and pip's configuration (python3 -m pip config list)"
    }
    echo "$sum" >"$stamp"
}

# --- levels --------------------------------------------------------------------------------------

need_manager() {
    [ -n "$manager" ] || fail "found neither apt nor dnf" \
        "install bcc's Python bindings for $PYTHON, click, numpy and pyelftools manually"
}

# If nothing is missing, no package manager is needed, so this also works on distributions that this
# script does not support.
setup_run() {
    if runtime_ok; then return 0; fi
    need_manager
    install_packages run
    if runtime_ok; then return 0; fi
    runtime_ok bcc-only || fail "$PYTHON is older than 3.9 or lacks bcc's bindings" \
        "netbpf needs Debian 11, Ubuntu 22.04, Fedora 36 or newer"
    # An older distribution: use its bcc, with newer Python packages in a virtual environment.
    if [ "$manager" = apt ]; then install_packages dev; fi
    make_venv ""
}

setup_dev() {
    setup_run
    if [ -n "$manager" ]; then install_packages dev; fi
    make_venv dev
}

setup_test() {
    setup_dev
    need_manager
    install_packages test
}

setup_guest() {
    setup_run
    need_manager
    install_packages guest
    make_venv test
}

setup_vm() {
    need_manager
    install_packages vm
}

setup_bench() {
    setup_run
    need_manager
    install_packages bench
}

level=${1:-run}
logging=
refreshed=
manager=
if command -v apt-get >/dev/null; then
    manager=apt
elif command -v dnf >/dev/null; then
    manager=dnf
fi
case $level in
run | dev | test | guest | bench | vm) "setup_$level" ;;
*) fail "unknown level: $level" "usage: scripts/setup.sh [run|dev|test|guest|bench|vm]" ;;
esac
