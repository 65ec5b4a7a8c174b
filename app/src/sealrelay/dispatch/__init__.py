"""Getting each message stored by one of the servers, whichever of them fails.

``decisions`` says what happens next and does nothing; ``connection`` is one lane's way to its
server; ``relay`` runs the lanes and the probes.
"""

from sealrelay.dispatch.decisions import (
    DeadlinePassed,
    DispatchError,
    Message,
    NoHealthyServer,
    QueueFull,
)
from sealrelay.dispatch.relay import Relay

__all__ = [
    "DeadlinePassed",
    "DispatchError",
    "Message",
    "NoHealthyServer",
    "QueueFull",
    "Relay",
]
