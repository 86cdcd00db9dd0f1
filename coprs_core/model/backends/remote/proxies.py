"""The proxies of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, in either case),
and what never goes through them."""

import ipaddress
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from coprs_core.errors import CoPRSError, Phrase, truncate

_SUPPORTED_SCHEMES = ("http", "https", "socks5", "socks5h")
_LOCALHOST_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def proxy_for(url: str) -> str | None:
    """The proxy for an address, by the environment; None where there is none, and always for this
    machine.

    Raises `CoPRSError`: the proxy cannot be used, and what to do.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_localhost(host) or proxy_bypass(parts.netloc) or _matches_no_proxy(host):
        return None
    proxies = _proxies_by_scheme()
    if proxy := proxies.get(parts.scheme) or proxies.get("all"):
        _check_proxy(proxy, Phrase("name {host} in NO_PROXY", host=truncate(host)))
    return proxy


def check_proxies() -> None:
    """Raise `CoPRSError` where a proxy of the environment cannot be used: libraries fail on it
    whether it is needed or not."""
    if "*" not in _no_proxy_hosts():
        for scheme, proxy in _proxies_by_scheme().items():
            _check_proxy(proxy, Phrase("unset {name}", name=f"{scheme.upper()}_PROXY"))


def without_password(proxy: str) -> str:
    """A proxy's address for messages, without user and password."""
    scheme, _, rest = proxy.partition("://")
    return truncate(f"{scheme}://{rest.rpartition('@')[2].partition('/')[0]}")


def is_localhost(host: str) -> bool:
    """Whether a host of an address is this machine: localhost, 127.0.0.0/8, ::1, however they are
    written."""
    name = host.lower().rstrip(".")
    if name in _LOCALHOST_NAMES or name.endswith(".localhost"):
        return True
    with suppress(OSError, ValueError):  # also 127.1 and 2130706433, as connecting reads them
        name = socket.inet_ntoa(socket.inet_aton(name))
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


@contextmanager
def bypass_proxies() -> Generator[None, None, None]:
    """Let nothing that reads the environment, inside, go through a proxy.

    For requests to this machine alone: a proxy whose library is missing would be an error even
    where it is not used.
    """
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"  # the lower case wins over the upper
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        if before is not None:
            os.environ["no_proxy"] = before


def _proxies_by_scheme() -> dict[str, str]:
    """The proxies by scheme: http, https, all."""
    proxies = {scheme: getproxies().get(scheme, "") for scheme in ("http", "https", "all")}
    return {s: p if "://" in p else f"http://{p}" for s, p in proxies.items() if p}


def _no_proxy_hosts() -> list[str]:
    return [name.strip() for name in getproxies().get("no", "").split(",")]


def _matches_no_proxy(host: str) -> bool:
    """Whether NO_PROXY names a host in a way that Python does not know: by a network, such as
    192.168.0.0/16, or by *."""
    if "*" in _no_proxy_hosts():
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        for name in _no_proxy_hosts():
            with suppress(ValueError):
                if address in ipaddress.ip_network(name, strict=False):
                    return True
    return False


def _check_proxy(proxy: str, otherwise: Phrase) -> None:
    try:
        parts = urlsplit(proxy)
        is_usable = (
            parts.scheme in _SUPPORTED_SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
        )
    except ValueError:
        parts, is_usable = None, False
    if parts is None or not is_usable:
        raise CoPRSError(
            "The environment names the proxy {proxy}, and only addresses such as "
            "http://host:port and socks5://host:port can be used: mend it, or {other}.",
            proxy=without_password(proxy),
            other=otherwise,
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise CoPRSError(
            "The environment names the proxy {proxy}, for which the package socksio is "
            "missing: run pip install socksio, or {other}.",
            proxy=without_password(proxy),
            other=otherwise,
        )
