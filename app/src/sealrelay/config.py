"""Settings: one strict, typed TOML file per service, and the files it names.

Whatever is wrong stops the program at start with one line that names the file, the key and the
remedy. There are no defaults for secrets, and no other source of settings (no environment).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
from msgspec import Meta

from sealrelay.errors import ConfigError
from sealrelay.identity import NAME, TRUST_DOMAIN, Identity, Role
from sealrelay.seal import MAX_CLOCK_SKEW, Keyring, KeyringError, parse_keyring
from sealrelay.tls import TlsFiles, TlsRefused, TlsSet

# \Z, since $ would let a line end through
Name = Annotated[str, Meta(pattern=rf"^{NAME.pattern}\Z")]
TrustDomain = Annotated[str, Meta(pattern=rf"^{TRUST_DOMAIN.pattern}\Z")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Bytes = Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)]
# an absolute path: where a service is started from must not decide where messages are
StoreUrl = Annotated[str, Meta(pattern=r"^(sqlite:////[^?]+|postgresql://\S+)\Z")]
_USERS = "root, or as a member of the group that owns the file"
Places = Annotated[int, Meta(ge=1, le=50_000)]
LogLevel = Literal["debug", "info", "warning", "error"]


class ServerSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="service", tag="server"
):
    """A server: opens tokens, stores them, acknowledges."""

    name: Name
    trust_domain: TrustDomain
    bind: str
    store: StoreUrl
    keyrings: str
    tls: TlsFiles
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    token_ttl: Annotated[int, Meta(ge=1)] = 24 * 3600
    retention: Annotated[int, Meta(ge=1)] = 7 * 24 * 3600
    max_body_bytes: Bytes = 1024 * 1024
    log_payloads: bool = False
    max_connections: Places = 10_000
    max_connections_per_peer: Places = 2_000
    max_handshakes_per_peer: Annotated[int, Meta(ge=1, le=2_000)] = 1_000
    log_level: LogLevel = "info"

    role: ClassVar[Role] = Role.SERVER


class ServerAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server as the coordinator sees it: the name in its leaf, and where it listens."""

    name: Name
    url: str


class CoordinatorSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="service", tag="coordinator"
):
    """A coordinator: takes messages from clients and gets each stored by one of the servers."""

    name: Name
    trust_domain: TrustDomain
    bind: str
    tls: TlsFiles
    servers: Annotated[tuple[ServerAddress, ...], Meta(min_length=1)]
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    deadline: Seconds = 10.0
    attempt_timeout: Seconds = 2.0
    probe_interval: Seconds = 0.5
    lanes: Annotated[int, Meta(ge=1, le=64)] = 4
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 64
    max_waiting: Count = 10_000
    max_waiting_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024 * 1024
    hedge_floor: Seconds = 0.05
    hedge_ceiling: Seconds = 0.15
    retry_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    max_body_bytes: Bytes = 1024 * 1024
    max_connections: Places = 10_000
    max_connections_per_peer: Places = 2_000
    max_handshakes_per_peer: Annotated[int, Meta(ge=1, le=2_000)] = 1_000
    log_level: LogLevel = "info"

    role: ClassVar[Role] = Role.COORDINATOR


class ClientSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="service", tag="client"
):
    """A client: seals messages and hands them to a coordinator."""

    name: Name
    trust_domain: TrustDomain
    coordinators: Annotated[tuple[str, ...], Meta(min_length=1)]
    payload_keys: str
    tls: TlsFiles
    deadline: Seconds = 30.0

    role: ClassVar[Role] = Role.CLIENT


class OperatorSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="service", tag="operator"
):
    """An operator: looks at coordinators and servers, and changes nothing."""

    name: Name
    trust_domain: TrustDomain
    coordinators: Annotated[tuple[str, ...], Meta(min_length=1)]
    servers: Annotated[tuple[ServerAddress, ...], Meta(min_length=1)]
    tls: TlsFiles

    role: ClassVar[Role] = Role.OPERATOR


ServiceSettings = ServerSettings | CoordinatorSettings
Settings = ServiceSettings | ClientSettings | OperatorSettings
S = TypeVar("S", bound=Settings)


def load_settings(path: Path, kind: type[S]) -> S:
    """Read and check the settings file of one kind of service. Raises ConfigError."""
    settings = load_any_settings(path)
    if not isinstance(settings, kind):
        raise ConfigError(
            f"{path}: service: this file is for a {settings.role.value}; "
            f"name the settings file of a {kind.role.value}"
        )
    return settings


def load_any_settings(path: Path) -> Settings:
    """Read and check a settings file, and that the files it names exist and fit together.

    Paths in the file are relative to its folder. Raises ConfigError.
    """
    text = _read(path, "settings file", "deploy it first, or check the path")
    try:
        settings: Settings = msgspec.toml.decode(text, type=Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(path, str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}; correct the syntax there") from None
    settings = _with_absolute_paths(settings, path.absolute().parent)
    _check_values(path, settings)
    _check_tls(path, settings)
    if isinstance(settings, ClientSettings):
        load_keyring(Path(settings.payload_keys))
    if isinstance(settings, ServerSettings):
        load_keyrings(Path(settings.keyrings))
    return settings


def own_identity(settings: Settings) -> Identity:
    """The identity that the settings claim; ``load_settings`` has compared it with the leaf."""
    return Identity(settings.trust_domain, settings.role, settings.name)


def load_tls(settings: Settings) -> TlsSet:
    """The TLS files as they are now. Raises TlsRefused, also for another's leaf."""
    tls = TlsSet(settings.tls)
    if tls.identity != own_identity(settings):
        raise TlsRefused("cert", settings.tls.cert, f"the certificate is {tls.identity}")
    return tls


def load_keyring(path: Path) -> Keyring:
    """Read one keyring file. Raises ConfigError, which never quotes the file."""
    text = _read(path, "payload keys", "make one with `sealrelay keygen`, or run the playbook")
    try:
        return parse_keyring(text.decode("ascii", errors="replace").splitlines())
    except KeyringError as error:
        raise ConfigError(
            f"{path}: not a keyring: {error}; one Fernet key a line, as `sealrelay keygen` makes it"
        ) from None


def load_keyrings(folder: Path) -> dict[str, Keyring]:
    """Read every ``<client>.keys`` of a server's keyring folder. Raises ConfigError."""
    try:
        _, *files = keyring_files(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: keyrings: {error.strerror}; create the folder, or run as root or the "
            f"service's group"
        ) from None
    return {file.stem: load_keyring(file) for file in files}


def keyring_files(folder: Path) -> list[Path]:
    """A server's keyrings, and their folder, whose own time tells of one that was taken away.

    Raises OSError.
    """
    return [folder, *sorted(entry for entry in folder.iterdir() if entry.suffix == ".keys")]


def reloaded_files(settings: ServiceSettings) -> list[Path]:
    """The files that a running service reads again when they change. Raises OSError."""
    files = settings.tls.listed()
    if isinstance(settings, ServerSettings):
        files += keyring_files(Path(settings.keyrings))
    return files


def split_bind(bind: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[ipv6]:port``. Raises ValueError."""
    parts = urlsplit(f"//{bind}")
    if not parts.hostname or not parts.port or parts.path or parts.username is not None:
        raise ValueError("not of the form host:port")
    return parts.hostname, parts.port


def split_url(url: str) -> tuple[str, int]:
    """Split ``https://host:port`` into host and port. Raises ValueError for anything else."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("not of the form https://host:port")
    return split_bind(parts.netloc)


def _read(path: Path, what: str, remedy: str, users: str = _USERS) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:
        raise ConfigError(f"{path}: {what}: permission denied; run as {users}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {what}: {error.strerror}; {remedy}") from None


def _explain(path: Path, problem: str) -> str:
    """Turn msgspec's ``<fact> - at `$.<key>` `` into ``<file>: <key>: <fact>; <remedy>``."""
    fact, _, place = problem.partition(" - at `")
    key = place.rstrip("`").removeprefix("$").removeprefix(".")
    if "unknown field" in fact:
        key = ".".join(filter(None, (key, fact.split("`")[1])))
        return f"{path}: {key}: there is no such key; correct its spelling or remove it"
    if "missing required field" in fact:
        key = ".".join(filter(None, (key, fact.split("`")[1])))
        return f"{path}: {key}: this key is missing; add it"
    if key == "service":
        return f"{path}: service: unknown kind; it is one of server, coordinator, client, operator"
    return f"{path}: {key or 'file'}: {fact[:1].lower()}{fact[1:]}; correct the value"


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    def absolute(name: str) -> str:
        return str(folder / name)

    files = {key: absolute(file) for key, file in settings.tls.paths.items()}
    tls = msgspec.structs.replace(settings.tls, **files)
    settings = msgspec.structs.replace(settings, tls=tls)
    if isinstance(settings, ClientSettings):
        return msgspec.structs.replace(settings, payload_keys=absolute(settings.payload_keys))
    if isinstance(settings, ServerSettings):
        return msgspec.structs.replace(settings, keyrings=absolute(settings.keyrings))
    return settings


def _check_values(path: Path, settings: Settings) -> None:
    """What types alone cannot say. Raises ConfigError."""

    def check(split: Callable[[str], object], key: str, value: str) -> None:
        try:
            split(value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {value!r}: {error}; correct the value") from None

    if isinstance(settings, ClientSettings | OperatorSettings):
        for url in settings.coordinators:
            check(split_url, "coordinators", url)
    if isinstance(settings, CoordinatorSettings | OperatorSettings):
        for server in settings.servers:
            check(split_url, "servers.url", server.url)
        for key in ("name", "url"):
            values = [getattr(server, key) for server in settings.servers]
            if len(set(values)) != len(values):
                raise ConfigError(
                    f"{path}: servers.{key}: two servers have the same {key}; each needs its own"
                )
    if isinstance(settings, CoordinatorSettings | ServerSettings):
        check(split_bind, "bind", settings.bind)
    if isinstance(settings, CoordinatorSettings) and settings.hedge_floor > settings.hedge_ceiling:
        raise ConfigError(
            f"{path}: hedge_floor: {settings.hedge_floor:g} s is more than hedge_ceiling "
            f"({settings.hedge_ceiling:g} s); correct one of them"
        )
    if isinstance(settings, ServerSettings):
        _check_store(path, settings.store)
        if settings.retention <= settings.token_ttl + MAX_CLOCK_SKEW:
            raise ConfigError(
                f"{path}: retention: {settings.retention} s is not longer than token_ttl "
                f"({settings.token_ttl} s) and a clock's skew ({MAX_CLOCK_SKEW} s), so a token "
                f"could be stored twice; make it longer"
            )


def _check_store(path: Path, url: str) -> None:
    """A store's URL holds no secret, and its passfile is one that libpq reads. Raises ConfigError.

    The URL is not quoted.
    """
    try:
        parts = urlsplit(url)
        parameters = parse_qs(parts.query, keep_blank_values=True)
        named = not parameters.keys().isdisjoint({"password", "sslpassword"})
        secret = named or parts.password is not None
        if parts.scheme == "postgresql":
            # In a password, an unescaped slash (or ? or #) ends what is taken for host and port.
            secret = secret or "@" in parts.path + parts.query + parts.fragment
            if not secret:
                _check_ports(parts.netloc)
    except ValueError:
        raise ConfigError(f"{path}: store: the URL cannot be read; correct the value") from None
    if secret:
        raise ConfigError(
            f"{path}: store: the URL holds a password, and settings files are no place for one; "
            f"put it in a passfile that only its owner can read, and name that: ?passfile=/path "
            f"(an @ that belongs to something else is written %40)"
        )
    for passfile in parameters.get("passfile", []):
        what = f"passfile in store of {path}"
        # libpq takes a passfile of mode 0600 only, so being in a group is no help
        _read(Path(passfile), what, "create it, or correct the path", users="root or its owner")
        if Path(passfile).stat().st_mode & 0o077:
            raise ConfigError(
                f"{passfile}: {what}: others than its owner may use it, so libpq would not; "
                f"set its mode to 0600"
            )


def _check_ports(netloc: str) -> None:
    """Of each host, the port is a number, or left out. Raises ValueError, which quotes nothing."""
    for host in netloc.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdigit()):
            raise ValueError("a port is not a number")


def _check_tls(path: Path, settings: Settings) -> None:
    """The TLS files are readable and fit together, and the leaf names this very service."""
    remedy = "run the playbook to make the certificates, or correct the path"
    for key, file in settings.tls.paths.items():
        _read(Path(file), f"tls.{key} of {path}", remedy)
    try:
        identity = TlsSet(settings.tls).identity
    except TlsRefused as refused:
        if refused.fact == "the key is encrypted":
            remedy = "give the service a key without passphrase, readable by it alone"
        raise ConfigError(
            f"{refused.path}: tls.{refused.setting} of {path}: {refused.fact}; {remedy}"
        ) from None
    if identity != own_identity(settings):
        raise ConfigError(
            f"{settings.tls.cert}: tls.cert of {path}: the certificate is {identity}, but the "
            f"settings say {own_identity(settings)}; make both agree"
        )
