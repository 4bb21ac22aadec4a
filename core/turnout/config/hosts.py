"""What a URL or a host of the config is: loopback, private or public. Pure: names are judged, never resolved."""

import ipaddress
import re
from urllib.parse import urlsplit

# Suffixes that the public DNS does not hold: RFC 6762 (.local and appendix G), RFC 8375 (.home.arpa), .internal
# (reserved by ICANN in 2024); .svc is Kubernetes' short form, the long one ends in .local.
_PRIVATE = (".internal", ".local", ".lan", ".home.arpa", ".localdomain", ".svc", ".private", ".intranet", ".corp")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")


def is_loopback(host: str) -> bool:
    """Whether only this machine can be behind `host`: localhost, 127.0.0.0/8, ::1."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_private(host: str) -> bool:
    """Whether `host` is not out on the internet: a private address, a name without a dot, or a reserved suffix.

    Link-local addresses do not count: behind 169.254.169.254 stand the credentials of cloud machines.
    """
    host = host.strip("[]").rstrip(".").lower()
    address = _address(host)
    if address is not None:
        return address.is_private and not (address.is_link_local or address.is_unspecified or address.is_multicast)
    return "." not in host or host.endswith(_PRIVATE)


def url_fault(url: str, *, query: bool = False) -> str:
    """What is wrong with `url` as the address of a server, or an empty text. Never repeats the URL.

    Wanted: http or https, a host, no user or password, no fragment, and no query unless `query` says so.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "expected a URL of printable ASCII without spaces"  # urlsplit drops tabs and line ends silently
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme not in ("http", "https"):
        return "expected a URL that begins with http:// or https://"
    if "@" in parts.netloc:
        return "a URL may hold no user or password: secrets are given by reference"
    if not host or not (_HOST.fullmatch(host) or _address(host)) or port == 0 or parts.netloc.endswith(":"):
        return "expected a URL with a host, and a port from 1 to 65535 if any"
    if "#" in url or ("?" in url and not query):
        return "a URL here may hold no query and no fragment"
    return ""


def url_parts(url: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port (if given) and path of a URL in which `url_fault` found nothing."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port, parts.path


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
