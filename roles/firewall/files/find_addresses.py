"""Print as JSON the IPv4 and IPv6 networks that lists of sources stand for, and which for none.

The argument is JSON: {name of the list: [source, ...]}. A source is an address, a network, or a
name, which this host resolves.
"""

import ipaddress
import json
import socket
import sys


def find_networks(source):
    """Return the networks of one argument. Raises OSError or ValueError, which say why not."""
    try:
        return [ipaddress.ip_network(source, strict=False)]
    except ValueError:
        if "/" in source:
            raise
    answers = socket.getaddrinfo(source, None, type=socket.SOCK_STREAM)
    addresses = {ipaddress.ip_address(answer[4][0].partition("%")[0]) for answer in answers}
    if all(address.is_loopback for address in addresses):
        # What a host calls itself says nothing about another one.
        raise ValueError("only this host's loopback address")
    return [ipaddress.ip_network(address) for address in addresses if not address.is_loopback]


def look_up(sources):
    """Return the networks of a list by their IP version, and what is wrong with other sources."""
    networks = {4: [], 6: []}
    unknown = {}
    for source in sources:
        try:
            for network in find_networks(source):
                networks[network.version].append(network)
        except (OSError, ValueError) as error:
            unknown[source] = getattr(error, "strerror", None) or str(error)
    # nftables takes no networks that overlap.
    collapsed = {
        version: [str(network) for network in ipaddress.collapse_addresses(found)]
        for version, found in networks.items()
    }
    return {"ipv4": collapsed[4], "ipv6": collapsed[6], "unknown": unknown}


print(json.dumps({name: look_up(sources) for name, sources in json.loads(sys.argv[1]).items()}))
