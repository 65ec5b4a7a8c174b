"""Real PostgreSQL servers on loopback, from the distribution's packages, gone with the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.deployment import PATIENCE, free_port, wait_until

USER = "sealrelay"
"""The role that the services connect as; it owns its databases, and nothing else."""

_SETTINGS = {
    "shared_buffers": "16MB",
    "max_connections": "40",
    "min_wal_size": "4MB",
    "log_line_prefix": "'%m [%p] '",
    "listen_addresses": "'127.0.0.1'",
}


def find_programs() -> Path:
    """The newest PostgreSQL that is installed. Fails the test when there is none."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: float(path.parent.parent.name),
    )
    assert found, "there is no PostgreSQL server here: apt-get install postgresql"
    return found[-1].parent


def _run(program: str, *arguments: str | Path) -> None:
    command = [*_as_postgres(), find_programs() / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def _as_postgres() -> list[str]:
    """PostgreSQL does not run as root; its package has made a user for it."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _give(*paths: Path) -> None:
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        for path in paths:
            os.chown(path, owner.pw_uid, owner.pw_gid)


class Postgres:
    """One database server; use ``make_postgres`` for the first of a cluster."""

    def __init__(self, folder: Path, name: str, passfile: Path) -> None:
        self.folder, self.data, self.passfile = folder, folder / name, passfile
        self.copies: list[Postgres] = []
        self.port = free_port()
        self.log_file = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0

    def start(self, **settings: str) -> None:
        """Start it and wait until it answers."""
        self.spawn(**settings)
        wait_until(self._answers, f"PostgreSQL answers; {self.log_file} says why not")

    def spawn(self, **settings: str) -> None:
        """Start it. It ends when the tests are killed."""
        options = {
            **_SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": f"'{self.folder}'",
            **settings,
        }
        lines = [f"{name} = {value}\n" for name, value in options.items()]
        (self.data / "conf.d.conf").write_text("".join(lines))
        _give(self.data / "conf.d.conf")
        program = [str(find_programs() / "postgres"), "-D", str(self.data)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*(_as_postgres() or ["setpriv"]), "--pdeathsig=KILL", *program],
                stdout=log,
                stderr=log,
                cwd="/",
            )

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is a fast shutdown, SIGQUIT an immediate one, SIGKILL a crash."""
        if self._process is None:
            return
        children = self._children()
        self._process.send_signal(sig)
        self._process.wait(PATIENCE)
        # they notice by themselves that it is gone
        wait_until(lambda: all(map(_has_ended, children)), "all of it has ended")
        self._process = None

    def restart(self, sig: signal.Signals) -> None:
        """Stop it as ``stop`` does and start it again, with crash recovery where that is due."""
        self.stop(sig)
        self.start()

    def freeze(self) -> None:
        """Let nothing of it go on, while its sockets stay open."""
        assert self._process is not None
        for pid in (self._process.pid, *self._children()):
            os.kill(pid, signal.SIGSTOP)
        for pid in (self._process.pid, *self._children()):  # what was being born meanwhile
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        for pid in (*self._children(), self._process.pid):
            os.kill(pid, signal.SIGCONT)

    def make_database(self) -> str:
        """Make an empty database; returns the store's URL for it."""
        self._made += 1
        name = f"messages{self._made}"
        self.execute(f"CREATE DATABASE {name} OWNER {USER}")
        return self.url_of(name)

    def make_schema(self) -> str:
        """Make an empty schema, cheaper than a database; returns the store's URL for it."""
        self._made += 1
        name = f"schema{self._made}"
        self.execute(f"CREATE SCHEMA {name} AUTHORIZATION {USER}")
        return f"{self.url_of('postgres')}&options=-csearch_path%3D{name}"

    def url_of(self, database: str, *others: Postgres) -> str:
        """The URL of a database here, or on whichever of several servers takes writes."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self, *others))
        return f"postgresql://{USER}@{hosts}/{database}?passfile={self.passfile}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the database's superuser."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A connection of the superuser's, in autocommit mode."""
        return psycopg.connect(
            host=str(self.folder), port=self.port, user="postgres", dbname=database, autocommit=True
        )

    def copy(self, name: str) -> Postgres:
        """A standby of this server, not started; its name is ``name``."""
        standby = Postgres(self.folder, name, self.passfile)
        self.copies.append(standby)
        where = f"host={self.folder} port={self.port} user=postgres application_name={name}"
        _run("pg_basebackup", "-D", standby.data, "-R", "-c", "fast", "-d", where)
        return standby

    def replicate_to(self, standby: Postgres) -> None:
        """Start a standby, and let every commit here wait for it from now on."""
        standby.start()
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby.data.name}'")
        self.execute("SELECT pg_reload_conf()")
        query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: self.execute(query) == [(1,)], "the standby is in step")

    def promote(self) -> None:
        """Make a standby the primary; returns when it takes writes."""
        self.execute("SELECT pg_promote(true, 60)")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log_file.read_text()[-2000:]
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def _children(self) -> list[int]:
        assert self._process is not None
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]


def _has_ended(pid: int) -> bool:
    """Also when nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _find_room() -> str:
    """In memory where there is room, which is ten times as fast when a disk is busy.

    It syncs all the same, to nothing: what these tests end is processes, and not the machine.
    """
    memory = "/dev/shm"  # noqa: S108 - for anybody, and mkdtemp is careful
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30:
        return memory
    return "/tmp"  # noqa: S108


@contextlib.contextmanager
def make_postgres(**settings: str) -> Iterator[Postgres]:
    """A started PostgreSQL server, removed at the end with all copies of it."""
    folder = Path(tempfile.mkdtemp(prefix="sealrelay-pg-", dir=_find_room()))
    _give(folder)
    password = secrets.token_urlsafe(12)
    passfile = folder / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:{USER}:{password}\n")
    server = Postgres(folder, "primary", passfile)
    try:
        options = "-U postgres --auth-local=trust --auth-host=scram-sha-256 --wal-segsize=1"
        options += " --no-sync --no-locale --encoding=UTF8 --no-instructions"
        _run("initdb", "-D", server.data, *options.split())
        with (server.data / "postgresql.conf").open("a") as file:
            file.write("include_if_exists = 'conf.d.conf'\n")
        server.start(**settings)
        server.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{password}'")
        yield server
    finally:
        for each in (server, *server.copies):
            each.stop(signal.SIGKILL)
        shutil.rmtree(folder)
