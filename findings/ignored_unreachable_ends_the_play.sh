#!/usr/bin/env bash
# ansible-core 2.19.14 (seen with 2.16.19 and 2.21.5, too): `ignore_unreachable: true` says that a
# task may find its host unreachable and the play goes on. In a play with `any_errors_fatal: true`
# it does not: the task is reported as "ignoring", and then play and playbook end, with nothing in
# the recap that failed or was unreachable. The exit code, 2, is all that tells.
#
# Expected: "...ignoring", and the next task runs.
# Seen:     "...ignoring", no further task or play, `unreachable=0 failed=0 ignored=1`, exit code 2.
#           With `any_errors_fatal: false` at the task itself, all of it runs, exit code 0; but not
#           when the task has `run_once: true`, which makes an ignored absence fatal again.
#
# Needs Python 3.11 or newer and an SSH client. Nothing listens on the port that is called.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export LC_ALL=C.UTF-8 ANSIBLE_HOME=$folder/ansible ANSIBLE_NOCOLOR=1

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ansible-core==2.19.14

cat >hosts <<'EOF'
here ansible_connection=local ansible_python_interpreter=auto_silent
away ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_common_args='-o BatchMode=yes'
EOF

make_playbook() { # FILE LINE_OF_THE_TASK
  cat >"$1" <<EOF
- hosts: here
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Ask who is away
      ansible.builtin.command: "true"
      delegate_to: away
      ignore_unreachable: true
      $2
    - name: Go on
      ansible.builtin.debug:
        msg: the play went on

- hosts: here
  gather_facts: false
  tasks:
    - name: Go on with the next play
      ansible.builtin.debug:
        msg: the playbook went on
EOF
}

run() { # FILE
  code=0
  timeout 60 venv/bin/ansible-playbook -i hosts "$1" >output 2>&1 || code=$?
  grep -E 'ignoring|went on|ignored=' output
  echo "exit code $code"
}

fail() {
  echo "not as it was: $*" >&2
  exit 1
}

echo '--- any_errors_fatal of the play'
make_playbook play.yml 'changed_when: false'
run play.yml
grep -q 'ignoring' output || fail 'the task was not ignored'
grep -q 'unreachable=0 .*failed=0 .*ignored=1' output || fail 'the recap tells something else'
! grep -q 'went on' output || fail 'the play went on'
((code == 2)) || fail "the exit code is $code"

echo '--- the same, with any_errors_fatal: false at the task'
make_playbook task.yml 'any_errors_fatal: false'
run task.yml
grep -q 'the play went on' output || fail 'the play ended'
grep -q 'the playbook went on' output || fail 'the playbook ended'
((code == 0)) || fail "the exit code is $code"

echo '--- the same, with run_once: true'
make_playbook once.yml 'any_errors_fatal: false
      run_once: true'
run once.yml
grep -q 'ignoring' output || fail 'the task was not ignored'
! grep -q 'went on' output || fail 'the play went on'
((code == 2)) || fail "the exit code is $code"

echo 'as it was'
