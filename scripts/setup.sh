#!/bin/sh
# Installs what is missing, and calls neither the package manager nor pip when nothing is.
#
# usage: scripts/setup.sh [LEVEL]
#   run    netbpf itself, from the distribution's packages
#   dev    run, and lint, unit and contract tests: a virtual environment in .venv
#   test   dev, and the programs with which the live tests make known traffic
#   guest  run, and what the live tests alone need: for test machines (see vagrant/)
#   bench  run, and the peers that `make bench` measures
#   vm     what `make vm` needs to build and boot those test machines
#
# Messages go to stderr, one line per piece of work; what the package manager and pip say goes to
# build/setup.log and is shown only when they fail.
set -eu
cd "$(dirname "$0")/.."

# bcc's bindings belong to the system's Python. Another python3 may stand first on PATH (pyenv,
# conda, a virtual environment), and it cannot import them.
PYTHON=/usr/bin/python3
VENV=.venv
LOG=build/setup.log
NOT_OFFERED=build/packages-not-offered
POLICY=/usr/sbin/policy-rc.d
# Packages that start a daemon, and stay enabled at boot, unless held back.
DAEMON_PACKAGES="nginx-light redis-server iperf3"

# These would send pip elsewhere or make the environment's Python look elsewhere. What says where
# packages come from (PIP_INDEX_URL, PIP_CERT, proxies) is the user's and stays.
unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_REQUIRE_VIRTUALENV
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

# A shell that became root with plain `su` lacks the directories of administration.
PATH=$PATH:/usr/sbin:/sbin

say() {
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

# Asked before any work: what as_root says may go to the log.
need_root() {
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || fail \
        "installing packages needs root, and there is no sudo here" \
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
    # libbpf comes with python3-bpfcc: libbpf1 on Debian 12 and Ubuntu 24.04, libbpf0 before.
    run) echo python3 python3-bpfcc python3-click python3-numpy python3-pyelftools \
        python3-seccomp ;;
    dev) echo python3-venv ca-certificates make clang-format shellcheck ;;
    test) echo gcc libc6-dev musl-tools golang-go libbpf-tools iproute2 nftables iptables strace \
        curl jq wrk nginx-light redis-server iperf3 bind9-dnsutils ;;
    guest) echo python3-venv && packages_apt test ;;
    bench) echo bpfcc-tools libbpf-tools && headers_apt ;;
    vm) echo vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 \
        qemu-utils dnsmasq-base iptables rsync openssh-client mmdebstrap grub-pc-bin grub-common \
        fdisk pigz python3-yaml ;;
    esac
}

# bcc's own tools compile against kernel headers. Those of the running kernel are best; a kernel
# that no package belongs to borrows those of the distribution's (see bench/start.py).
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
    bench) echo bcc-tools libbpf-tools kernel-devel ;;
    vm) echo vagrant vagrant-libvirt libvirt-daemon-kvm libvirt-client qemu-system-x86 qemu-img \
        dnsmasq iptables-nft rsync openssh-clients mmdebstrap grub2-pc-modules grub2-tools \
        util-linux pigz python3-pyyaml ;;
    esac
}

installed() { # the names among "$@" that are installed, one per line
    case $manager in
    apt) dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^installed //p' ;;
    dnf) rpm -q --qf '%{NAME}\n' "$@" | grep -v ' ' ;;
    esac
}

missing() { # missing LEVEL: the names of packages of this level that are not there
    # shellcheck disable=SC2046 # a list of names
    set -- $("packages_$manager" "$1")
    have=" $(installed "$@" | tr '\n' ' ') $(cat "$NOT_OFFERED" 2>/dev/null || :) "
    # Another flavour of nginx than the one named above will do, and must not be replaced.
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
    # Another apt may be at work (a fresh cloud machine updates itself): wait for it. needrestart
    # would restart services of this machine unasked.
    logged as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -y -o DPkg::Lock::Timeout=300 -o APT::Install-Recommends=false "$@"
}

# Debian starts a daemon as soon as its package is installed. policy-rc.d is the official way to
# refuse that; this one refuses only for the daemons named here, and is gone when this script ends.
# One that exists is the administrator's and stays.
hold_daemons() { # hold_daemons PACKAGE...
    daemons=
    for name; do
        case " $DAEMON_PACKAGES " in *" $name "*) daemons="$daemons $name" ;; esac
    done
    if [ -z "$daemons" ] || [ -e "$POLICY" ]; then return 0; fi
    trap 'as_root rm -f "$POLICY"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '%s\n' '#!/bin/sh' '# Put here by the set-up of netbpf, which removes it when it ends.' \
        'case "$*" in *nginx*|*redis*|*iperf3*) exit 101 ;; esac' 'exit 0' |
        as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}

install_apt() {
    hold_daemons "$@"
    apt_get install "$@" || return 1
    # What only tests start by hand has no business at the next boot either.
    for name in $daemons; do
        logged as_root update-rc.d "${name%-light}" disable || :
    done
}

install_dnf() {
    logged as_root dnf -q -y --setopt=install_weak_deps=False install "$@"
}

# Lists may be stale or (in a fresh container) absent. A broken repository of somebody else is no
# reason to stop here: what we need may still be there.
refresh() {
    if [ "$manager" = apt ]; then
        apt_get update || say "warning: the package lists could not be refreshed, going on"
    fi
}

explain_packages() { # explain_packages NAME...
    show_log
    if grep -qiE 'could not get lock|unable to (acquire|lock)' "$LOG"; then
        fail "the package manager is locked by another program" "wait for it to end and try again"
    elif grep -qE 'Could not resolve|Failed to fetch|Temporary failure|Cannot download' "$LOG"; then
        fail "the package servers cannot be reached" "check network, proxy and package sources"
    elif grep -q 'Unable to locate package' "$LOG"; then
        fail "this release does not offer all of: $*" \
            "on Ubuntu: add-apt-repository universe; elsewhere check /etc/apt/sources.list"
    fi
    fail "could not install: $*" "install these packages by hand and try again"
}

# Nothing works without the packages of `run`. Of the others a release may lack some: the tests
# that need them say so themselves.
drop_not_offered() { # drop_not_offered NAME...: sets $wanted
    wanted=
    for name; do
        if offered "$name"; then
            wanted="$wanted $name"
        else
            say "not offered by this release, left out: $name"
            printf '%s ' "$name" >>"$NOT_OFFERED"
        fi
    done
}

install_packages() { # install_packages LEVEL
    wanted=$(missing "$1" | tr '\n' ' ')
    [ -n "${wanted% }" ] || return 0
    need_root
    say "installing packages: ${wanted% } (log: $LOG)"
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

# True when the system's Python alone can run netbpf: it is new enough, has bcc's bindings (not the
# package of that name on PyPI, which has no libbcc.py), and what pyproject.toml depends on. Looks
# at metadata instead of importing: bcc and numpy take a tenth of a second each.
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

# True for an environment that exists and was made from the system's Python; it breaks when the
# distribution moves to another version.
venv_sound() {
    "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.base_prefix != "/usr")' 2>/dev/null
}

make_venv() { # make_venv EXTRAS
    stamp=$VENV/.setup-${1:-run}
    sum=$(inputs | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && [ -x "$VENV/bin/python" ]; then return 0; fi
    say "installing Python packages into $VENV (log: $LOG)"
    if ! venv_sound; then
        logged "$PYTHON" -m venv --clear --system-site-packages "$VENV" || {
            show_log
            fail "could not make a virtual environment" "is python3-venv installed?"
        }
    fi
    # Older ones cannot install from pyproject.toml for editing (PEP 660): Debian 11 has 20.3.
    "$VENV/bin/python" -c 'import pip, sys; v = pip.__version__.split("."); \
        sys.exit((int(v[0]), int(v[1])) < (21, 3))' ||
        logged "$VENV/bin/python" -m pip install --no-input --upgrade "pip>=21.3" || :
    logged "$VENV/bin/python" -m pip install --no-input --editable ".${1:+[$1]}" || {
        show_log
        fail "pip could not install what pyproject.toml names" \
            "check the network and pip's configuration (python3 -m pip config list)"
    }
    echo "$sum" >"$stamp"
}

# --- levels --------------------------------------------------------------------------------------

need_manager() {
    [ -n "$manager" ] || fail "neither apt nor dnf is here" \
        "install bcc's Python bindings for $PYTHON, click, numpy and pyelftools by hand"
}

# No package manager is needed, or asked for, where everything is there already: this also serves
# distributions that this script does not know.
setup_run() {
    if runtime_ok; then return 0; fi
    need_manager
    install_packages run
    if runtime_ok; then return 0; fi
    runtime_ok bcc-only || fail "$PYTHON is older than 3.9 or cannot find bcc's bindings" \
        "netbpf needs Debian 11, Ubuntu 22.04, Fedora 36 or newer"
    # An older distribution: its bcc, and newer Python packages beside it.
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
*) fail "no such level: $level" "usage: scripts/setup.sh [run|dev|test|guest|bench|vm]" ;;
esac
