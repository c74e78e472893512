#!/bin/sh
# Make .venv with everything in requirements.lock and the project itself, from any Python 3.11 or later.
# Nothing of the system is changed and root is not needed. PYTHON=... names the interpreter to take.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'install: %s\n' "$*"; }
fail() { say "$*" >&2; exit 2; }
is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Debian ships Python without pip. Its wheel of pip, fetched but not installed, runs as it is.
fetch_pip_of_debian() {
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  apt=$(pwd)/.venv/apt
  mkdir -p "$apt/lists/partial" "$apt/archives/partial"
  set -- -qq -o Dir::State="$apt" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$apt" \
    -o APT::Sandbox::User= -o Debug::NoLocking=1
  apt-get "$@" update >"$apt/log" 2>&1 || :
  (cd "$apt" && apt-get "$@" download python3-pip-whl && dpkg-deb -x python3-pip-whl_*.deb .) >>"$apt/log" 2>&1 || return 1
  cp "$apt"/usr/share/python-wheels/pip-*.whl .venv/
  rm -rf "$apt"
}

python=
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
  if is_recent "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "Python 3.11 or later is needed: install it (Debian: apt-get install python3), or name one with PYTHON=..."

if ! is_recent .venv/bin/python; then
  say "making .venv with $("$python" --version)"
  # The first fails where the interpreter comes without ensurepip.
  "$python" -m venv --clear .venv >/dev/null 2>&1 || "$python" -m venv --clear --without-pip .venv ||
    fail "$python cannot make a virtual environment: install its module venv (Debian: apt-get install python3-venv)"
fi

if .venv/bin/python -m pip --version >/dev/null 2>&1; then
  pip() { .venv/bin/python -m pip "$@"; }
elif "$python" -m pip --python .venv/bin/python --version >/dev/null 2>&1; then
  pip() { "$python" -m pip --python .venv/bin/python "$@"; }
elif fetch_pip_of_debian; then
  pip() { .venv/bin/python "$(echo .venv/pip-*.whl)/pip" "$@"; }
else
  fail "$python has no pip: install it (Debian: apt-get install python3-venv)"
fi

say "installing what requirements.lock names into .venv"
# pip itself is among it, so that the second call finds it however the first one came about.
pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch .venv/.installed
say "done"
