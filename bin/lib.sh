# shellcheck shell=bash
# Helpers shared by the scripts in bin/. Source it; it does nothing by itself.

# The system tools live in sbin, which a user's PATH may lack.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# A locale that every system has: Ansible refuses to start with one that is not installed,
# as ssh may have brought it along.
export LC_ALL=C.UTF-8

# Some images set this one, and then each of thousands of Pythons compiles all that it imports anew:
# half of the time of a playbook.
unset PYTHONDONTWRITEBYTECODE

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# Stop where there is no way to be root; called before the work rather than in the middle of it.
need_root() {
  ((EUID == 0)) || command -v sudo >/dev/null || die "this needs root, and sudo is not installed; run it as root"
}

# Run a command as root: directly, or through sudo.
as_root() {
  need_root
  if ((EUID == 0)); then
    "$@"
  else
    sudo -- "$@"
  fi
}

# Stop where a file system is too full for what comes. The path needn't exist yet.
need_space() { # MEGABYTES PATH
  local path=$2 free
  until [[ -e $path ]]; do
    path=$(dirname -- "$path")
  done
  free=$(df --output=avail --block-size=1M -- "$path" | tail -n 1)
  ((free >= $1)) || die "$((free)) MiB are free for $2, and it takes up to $1 MiB; make room first"
}

# Replace this process by the same script run as root. Proxy settings survive,
# which sudo would drop.
become_root() {
  ((EUID == 0)) && return
  need_root
  local keep=() name
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY LAB_BOOT_TIMEOUT; do
    [[ -z ${!name:-} ]] || keep+=("$name=${!name}")
  done
  exec sudo -- env "${keep[@]}" "$(readlink -f "$0")" "$@"
}

# What version a Python is, such as 3.11; nothing where it is not there or too old for us.
version_of() { # PYTHON
  "$1" -c 'import sys; sys.version_info >= (3, 10) and print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

package_installed() {
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# Quiet, unless it fails.
apt_get() {
  local output
  # Wait for a running unattended upgrade rather than fail on its lock.
  output=$(as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null 2>&1) || {
    printf '%s\n' "$output" >&2
    return 1
  }
}

# A fresh image has no package lists yet.
have_package_lists() {
  compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null
}

# Install what is missing of the named packages; silent when nothing is.
install_packages() {
  local missing=() package
  for package; do
    package_installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  need_root
  have_package_lists || apt_get update
  # Old lists name files that the archive no longer has: update once, try again.
  apt_get install -y --no-install-recommends "${missing[@]}" || {
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}"
  } || die "could not install ${missing[*]}"
}

# Install PostgreSQL for tests that start servers of their own, without the server that
# its package would make and start.
install_postgresql() {
  local settings=/etc/postgresql-common/createcluster.conf line='create_main_cluster = false'
  package_installed postgresql && return
  install_packages postgresql-common
  as_root tee -a "$settings" >/dev/null <<<"$line"
  install_packages postgresql
  as_root sed -i "\|^$line\$|d" "$settings"
}

# Install a browser for tests, and what imports certificates into it, from Debian's archive.
# Ubuntu's has none: its package only fetches a snap, which has a home of its own.
install_browser() {
  have_package_lists || apt_get update
  if apt-cache show chromium >/dev/null 2>&1; then
    install_packages chromium libnss3-tools openssl
  else
    say "there is no package chromium here, so the status page is not opened in a browser"
  fi
}

# Under sudo, what a user must be able to read or change belongs to that user.
give_to_caller() {
  [[ -z ${SUDO_UID:-} ]] || chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" -- "$@"
}

# Write a random passphrase to a file that only its owner can read, unless the
# file is there already. It is never printed.
make_passphrase() {
  local file=$1 folder new
  [[ ! -s $file ]] || return 0
  folder=$(dirname -- "$file")
  if [[ ! -d $folder ]]; then
    (umask 077 && mkdir -p -- "$folder")
    give_to_caller "$folder"
  fi
  new=$(umask 077 && mktemp -- "$folder/.passphrase.XXXXXX")
  head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '=' >"$new"
  give_to_caller "$new"
  # A hard link fails when another run was quicker, so nobody's passphrase is replaced.
  [[ -s $file ]] || rm -f -- "$file"
  ln -- "$new" "$file" 2>/dev/null || [[ -s $file ]] || die "cannot write $file"
  rm -f -- "$new"
  say "made a random passphrase in $file"
}
