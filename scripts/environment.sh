# Sourced by the other scripts: makes .venv on first use and says where it is.
#
#   ensure_environment base|EXTRA    installs what is missing, sets $python (call it with `-m module`);
#                                    EXTRA: one of pyproject.toml's, e.g. dev
#
# PYTHON=        interpreter to use (default: the first python3 that is new enough)
# TORCH_INDEX=   index that torch is installed from, e.g. the one with PyTorch's CPU wheels

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
log=$venv/install.log

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

ensure_environment() {
    local extra=$1
    if up_to_date "$extra"; then return; fi
    # Two first calls at the same time: one installs, the other waits and finds the work done. The
    # lock is on a file that outlives .venv.
    exec 9<"$root/scripts/environment.sh"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        say "another call is installing into .venv; waiting for it"
        flock 9
    fi
    up_to_date "$extra" || install "$extra"
    exec 9<&-
}

# --- what is installed ------------------------------------------------------------------------------

# Changes with everything that decides what .venv should hold.
wanted() { cat "$root/pyproject.toml" "$root/constraints.txt" "$venv/pyvenv.cfg" | sha256sum; }

up_to_date() {
    local stamp=$venv/.installed-$1
    same_environment && [[ -f $stamp && $(<"$stamp") == "$(wanted)" ]]
}

# Whether .venv is whole, and what PYTHON= and TORCH_INDEX= ask for. Both unset: any will do.
same_environment() {
    [[ -x $python && -f $venv/pyvenv.cfg && ! -e $venv/.unfinished ]] || return 1
    [[ -z ${TORCH_INDEX:-} || $TORCH_INDEX == "$(cat "$venv/.torch-index" 2>/dev/null)" ]] || return 1
    [[ -z ${PYTHON:-} || $(version_of "$PYTHON") == "$(version_of "$python")" ]]
}

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

# --- installing -------------------------------------------------------------------------------------

install() {
    local extra=$1 started=$SECONDS target=$root
    [[ $extra == base ]] || target="$root[$extra]"
    if same_environment; then
        say "Updating .venv${extra:+ with $extra} (log: $log)"
    else
        local interpreter
        interpreter=$(find_interpreter)
        say "Creating .venv with Python $(version_of "$interpreter") from pyproject.toml and" \
            "constraints.txt; this happens once and takes a few minutes (log: $log)"
        rm -rf -- "$venv"
        mkdir -- "$venv"
        : >"$venv/.unfinished"
        "$interpreter" -m venv "$venv" >"$log" 2>&1 || fail "python -m venv failed"
    fi
    # Stays behind when the installation is interrupted, and the next call starts afresh.
    : >"$venv/.unfinished"
    forget_outdated
    if [[ -n ${TORCH_INDEX:-} ]]; then
        local torch
        torch=$(grep -E '^torch==' "$root/constraints.txt") || die "constraints.txt names no torch=="
        pip_install "$torch" --index-url "$TORCH_INDEX" --constraint "$root/constraints.txt"
        printf '%s' "$TORCH_INDEX" >"$venv/.torch-index"
    fi
    pip_install --constraint "$root/constraints.txt" --editable "$target"
    wanted >"$venv/.installed-$extra"
    [[ $extra == base ]] || wanted >"$venv/.installed-base"
    rm -f -- "$venv/.unfinished"
    say "Installed in $((SECONDS - started)) s"
}

# What an extra brought stays when another is added, as long as all of them want the same versions.
forget_outdated() {
    local stamp
    for stamp in "$venv"/.installed-*; do
        [[ -f $stamp && $(<"$stamp") == "$(wanted)" ]] || rm -f -- "$stamp"
    done
}

pip_install() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 \
        "$python" -m pip install "$@" >>"$log" 2>&1 || fail "pip install $*"
}

fail() {
    tail -n 15 -- "$log" >&2
    die "$1 (the whole log: $log)"
}

find_interpreter() {
    local candidate found=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        found=${found:-$candidate is Python $(version_of "$candidate")}
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$candidate" -c 'import venv, ensurepip' 2>/dev/null ||
            die "$candidate has no venv module: apt install python3-venv, or PYTHON=another"
        printf '%s' "$candidate"
        return
    done
    die "Python 3.11 or newer is needed; ${found:-no ${PYTHON:-python3} found}: PYTHON=/path/to/python3.11"
}
