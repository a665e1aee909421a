#!/usr/bin/env bash
# Builds the environment .venv, and .oracle for the parity tests. `make` calls it.
#
#   tools/setup_env.sh env      build or update .venv; nothing to do: well under a second
#   tools/setup_env.sh check    exit 0 if .venv is complete and up to date, 1 if not; changes nothing
#   tools/setup_env.sh oracle   put the original implementation into .oracle
#   tools/setup_env.sh remove   remove .venv and .oracle
#
# .venv/.setup tells what .venv is. "building" while it is filled: a run that was killed leaves that
# word behind, and the next one starts over, since a half-unpacked package looks installed to pip.
# Afterwards two lines: where it lies and which Python it holds, and a digest of what it was built from.
# A .venv without that file is somebody else's and is never touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME  # they would show packages that .venv does not have
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
trap 'exit 130' INT
trap 'exit 143' TERM

TORCH=(torch==2.14.1 torchvision==0.29.1)
# Detectron2's Python sources of April 2024; the only wheel of them on the package index.
DETECTRON2='sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561'
# Computes PQ. On the package index under this name; the code is the authors'.
PANOPTICAPI='panopticapi-lite==0.2.0 --hash=sha256:58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486'
# They ask for opencv-python, whose cv2 would take the place of the headless one, and needs libraries of a desktop.
WITHOUT_OPENCV=('sahi>=0.12,<0.13' 'trackers>=2.6,<3')
ORACLE='detr==0.1.4 --hash=sha256:bf23192f5969450b1494d44d7ae33f1a149251cd086a49f5a7c579a2f09750e5'

PYTHON=${PYTHON:-python3}
VENV_PYTHON=.venv/bin/python
MARK=.venv/.setup
LOG=.venv/setup.log

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

minor_version() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# --- what .venv is ---------------------------------------------------------------------------------

# A venv knows its own place (in its scripts) and its interpreter's: it works with neither changed.
identity() { printf '%s %s' "$(pwd -P)" "$(minor_version "$VENV_PYTHON")"; }
inputs() { cat setup.py tools/setup_env.sh | sha256sum | cut -d ' ' -f 1; }

is_ours() { [ -f "$MARK" ] && [ ! -L .venv ]; }
works() {
  is_ours && minor_version "$VENV_PYTHON" >/dev/null && [ "$(sed -n 1p "$MARK")" = "$(identity)" ] || return 1
  # Another Python than the one in .venv counts only where it was asked for.
  [ -z "${PYTHON_CHOSEN:-}" ] || [ "$(minor_version "$PYTHON")" = "$(minor_version "$VENV_PYTHON")" ]
}
is_ready() { works && [ "$(sed -n 2p "$MARK")" = "$(inputs)" ]; }

# --- steps -----------------------------------------------------------------------------------------

lock() {
  # Held until this process and the pip that it started have ended, however they end.
  command -v flock >/dev/null || return 0
  exec 9>.venv.lock
  flock -n 9 && return
  say "another make is setting up here; waiting for it"
  flock 9
}

discard() { # DIR: set aside first, so that one killed in the middle never looks like a whole one
  rm -rf .venv.old
  mv "$1" .venv.old
  rm -rf .venv.old
}

suggest_python() {
  local other
  for other in python3.13 python3.12 python3.11 python3.10; do
    if minor_version "$other" >/dev/null; then
      echo "make env PYTHON=$other"
      return
    fi
  done
  echo "install one, then make env PYTHON=/path/to/python3"
}

check_python() {
  local version
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) die "torch and this project run on Linux on x86_64 and aarch64, and this is $(uname -s) $(uname -m)" ;;
  esac
  version=$(minor_version "$PYTHON") || die "cannot run '$PYTHON'; Python 3.10 to 3.13 is needed: $(suggest_python)"
  case $version in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) die "Python 3.10 to 3.13 is needed, and '$PYTHON' is $version: $(suggest_python)" ;;
  esac
  "$PYTHON" -I -c 'import venv, ensurepip' 2>/dev/null ||
    die "'$PYTHON' lacks venv or ensurepip; on Debian and Ubuntu: apt install python$version-venv"
}

pip_install() { # ARGS: the long lines of pip go to the log, the large downloads to the screen
  "$VENV_PYTHON" -I -u -m pip install "$@" 2>&1 | tee -a "$LOG" | awk '
    /^ *(Downloading|Using cached|Processing) .*(MB|GB)\)/ { sub(/^ */, ""); print "setup:   " $0; fflush() }
    /^Installing collected packages/ { print "setup:   unpacking"; fflush() }'
}

explain() { # says why pip failed, in one line
  local reason offline='Retrying \(Retry|NewConnectionError|NameResolutionError|Network is unreachable'
  reason=$(grep -E '^ *ERROR' "$LOG" | tail -n 1 || true)
  if grep -q 'No space left' "$LOG"; then
    reason="the disk is full; about 6 GB are needed here, and 3 GB for pip's cache"
  elif grep -q 'DO NOT MATCH THE HASHES' "$LOG"; then
    reason="a downloaded file is not the one this project was checked with; look at pip's index settings"
  elif grep -qE "$offline|requirement pip.*from versions: none" "$LOG"; then
    reason="pip cannot reach its package index; check the network, or set HTTPS_PROXY or PIP_INDEX_URL"
  fi
  die "${reason:-pip failed}. The whole story is in $LOG; \`make env\` tries again"
}

create_venv() {
  local free_gb
  free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  say "building .venv with $PYTHON ($(minor_version "$PYTHON")): one to several minutes, about 6 GB"
  if [ "$free_gb" -lt 9 ]; then say "warning: only $free_gb GB of disk are free here"; fi
  mkdir .venv # a kill right here leaves an empty folder, which counts as ours
  echo building >"$MARK"
  "$PYTHON" -I -m venv .venv >"$LOG" 2>&1 || die "'$PYTHON -m venv' failed: $(tail -n 1 "$LOG")"
}

# Its dist-info stays behind with its false demands (numpy < 2), and so do the operators compiled for Python 3.10 and
# an old torch, which DETR has no use for. Its stray top-level `tools` are Detectron2's own scripts: beside the packages.
install_detectron2() {
  local new=.venv/detectron2-new tools=.venv/detectron2-tools site
  "$VENV_PYTHON" -I -c 'import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)' &&
    [ -d "$tools" ] && return
  say "installing Detectron2"
  rm -rf "$new"
  echo "$DETECTRON2" >"$new.txt"
  pip_install --no-deps --no-compile --only-binary=:all: --python-version 3.10 --implementation cp \
    --abi none --platform any --target "$new" --require-hashes -r "$new.txt" &&
    mv "$new"/sal_detectron2-*.dist-info/LICENSE "$new/detectron2/LICENSE" &&
    rm -f "$new"/detectron2/_C*.so &&
    site=$("$VENV_PYTHON" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    rm -rf "$site/detectron2" "$tools" &&
    mv "$new/tools" "$tools" &&
    mv "$new/detectron2" "$site/detectron2" &&
    rm -rf "$new" "$new.txt"
}

# Without its own list, which caps numpy below 2: its code runs with numpy 2. And without its dist-info, since pip
# would complain of that list ever after.
install_panopticapi() {
  local new=.venv/panopticapi-new site
  "$VENV_PYTHON" -I -c 'import importlib.util as u, sys; sys.exit(u.find_spec("panopticapi") is None)' && return
  say "installing panopticapi"
  rm -rf "$new"
  echo "$PANOPTICAPI" >"$new.txt"
  pip_install --no-deps --no-compile --only-binary=:all: --target "$new" --require-hashes -r "$new.txt" &&
    site=$("$VENV_PYTHON" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    mv "$new/panopticapi" "$site/panopticapi" &&
    rm -rf "$new" "$new.txt"
}

install_all() {
  say "installing torch, torchvision and the rest"
  # One pip and one setuptools, whatever the interpreter brought along: some packages come as sources.
  pip_install --no-compile 'pip>=24.1' 'setuptools>=77' &&
    pip_install --no-compile --no-build-isolation "${TORCH[@]}" -e '.[detectron2,dev]' &&
    pip_install --no-compile --no-deps "${WITHOUT_OPENCV[@]}" &&
    install_detectron2 &&
    install_panopticapi
}

# --- commands --------------------------------------------------------------------------------------

make_env() {
  is_ready && return
  lock
  is_ready && return # the make that we waited for has done it
  rm -rf .venv.old
  if [ -L .venv ] || { [ -e .venv ] && ! is_ours && [ -n "$(ls -A .venv)" ]; }; then
    die ".venv is there and was not made by this script: move it away, or use it without make"
  fi

  local before=""
  if works; then
    say "the lists of packages have changed: updating .venv"
    before=$(cat "$MARK")
    echo building >"$MARK"
    : >"$LOG"
  else
    check_python
    if [ -e .venv ]; then
      say "removing .venv: it was left half-built, was moved, or its Python is not the one wanted"
      discard .venv
    fi
    create_venv
  fi

  if ! install_all; then
    # pip failed and cleaned up behind itself: what stood before still stands.
    if [ -n "$before" ]; then echo "$before" >"$MARK"; fi
    explain
  fi
  "$VENV_PYTHON" -I -W ignore -c 'import torchvision, detectron2.engine, detectron2.evaluation' >>"$LOG" 2>&1 ||
    die "Detectron2 does not import: $(tail -n 1 "$LOG")"
  "$VENV_PYTHON" -I -c 'import panopticapi.evaluation' >>"$LOG" 2>&1 ||
    die "panopticapi does not import: $(tail -n 1 "$LOG")"
  printf '%s\n%s\n' "$(identity)" "$(inputs)" >"$MARK.new"
  mv "$MARK.new" "$MARK"
  say "done after $SECONDS seconds: .venv is ready"
}

make_oracle() { # the folder appears under its name only when it is whole
  local record=.oracle/detr-0.1.4.dist-info/RECORD new=.venv/oracle-new
  [ -f "$record" ] && return
  lock
  [ -f "$record" ] && return
  if [ -e .oracle ]; then die ".oracle is there and holds something else: move it away"; fi
  say "fetching the original implementation into .oracle, for the parity tests"
  rm -rf "$new"
  echo "$ORACLE" >"$new.txt"
  : >"$LOG"
  pip_install --no-deps --no-compile --target "$new" --require-hashes -r "$new.txt" || explain
  mv "$new" .oracle
  rm -f "$new.txt"
}

remove() {
  lock
  if is_ours; then discard .venv; fi
  if [ -d .oracle/detr-0.1.4.dist-info ]; then discard .oracle; fi
  rm -rf .venv.old
  if [ -e .venv ] || [ -L .venv ]; then
    say "kept .venv: it was not made here"
  else
    say "removed .venv and .oracle"
  fi
}

case "${1:-}" in
  env) make_env ;;
  check) is_ready ;;
  oracle) make_oracle ;;
  remove) remove ;;
  *) die "usage: tools/setup_env.sh env|check|oracle|remove" ;;
esac
