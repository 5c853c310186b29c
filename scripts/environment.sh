# Create .venv with the pinned packages. Sourced by the other scripts.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd -P)"
venv="$root/.venv"

say() { printf '== %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Print the first Python on the PATH that is 3.11 or newer and can create virtual environments.
find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3 python; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no Python 3.11 with its venv module was found on the PATH; install Python 3.11" \
        "(on Debian and Ubuntu: python3.11 and python3.11-venv) and run this again"
}

# Print a digest of the clone's location, the pins and the package's metadata.
fingerprint() {
    "$venv/bin/python" - "$root" "$root/pyproject.toml" "$@" << 'PYTHON'
import hashlib, pathlib, sys

place, *files = sys.argv[1:]
digest = hashlib.sha256(place.encode())
for name in files:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

# Create the environment again if there is none, it was interrupted, or the clone has moved.
require_venv() {
    if "$venv/bin/python" -m pip --version > /dev/null 2>&1 \
        && grep -qsF -- "$venv" "$venv/bin/activate"; then
        return
    fi
    [[ ! -L "$venv" ]] || fail ".venv is a link to $(readlink -- "$venv"), and would be emptied; remove the link and run this again"
    local python
    python="$(find_python)"
    say "creating .venv with $("$python" --version 2>&1)"
    "$python" -m venv --clear "$venv"
}

# is_installed STAMP FILE...: the packages that these files pin are installed.
is_installed() {
    local stamp="$venv/.installed-$1"
    shift
    [[ -f "$stamp" ]] && [[ "$(cat -- "$stamp")" == "$(fingerprint "$@")" ]]
}

# prepare WHAT: install the pins of WHAT (`run`, `dev` or `docs`) and this package into .venv.
prepare() {
    local what="$1" started="$SECONDS" pins="$root/requirements.txt"
    local -a run_files=("$root/requirements.txt")
    local -a files=("${run_files[@]}")
    if [[ "$what" != run ]]; then
        pins="$root/requirements-$what.txt"
        files+=("$pins")
    fi
    require_venv
    if is_installed "$what" "${files[@]}"; then
        return
    fi
    say "installing $(cat -- "${files[@]}" | grep -c '==') pinned packages of ${pins##*/} into .venv: one to three minutes, most of it torch"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$pins"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$root"
    # The stamps come last, so that an interrupted installation is repeated.
    fingerprint "${run_files[@]}" > "$venv/.installed-run"
    if [[ "$what" != run ]]; then
        fingerprint "${files[@]}" > "$venv/.installed-$what"
    fi
    say "installed in $((SECONDS - started)) s"
}
