"""What counting costs, in microseconds. Run it as ``python -m benchmarks.metrics_cost``."""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable

from sealrelay.processes import share_folder

_TIMES = 20_000


def _measure(what: str, call: Callable[[], object], times: int = _TIMES) -> None:
    call()
    seconds = min(timeit.repeat(call, number=times, repeat=5)) / times
    sys.stdout.write(f"{what:<45} {seconds * 1e6:8.2f}\n")


def main() -> None:
    """Count as services do, with a folder that several worker processes could share."""
    with share_folder():
        # Not before: prometheus_client looks for the folder when it is imported.
        from sealrelay import metrics, server
        from sealrelay.dispatch.decisions import Attempt, Lane, Message
        from sealrelay.dispatch.observer import Observer
        from sealrelay.identity import Role
        from sealrelay.wire import Outcome

        observer = Observer("coordinator1", {"one": "https://127.0.0.1:1"}, None, 1, 0.0, 1)  # type: ignore[arg-type]

        def answer_message() -> None:
            metrics.MESSAGES.add("ok")
            metrics.MESSAGE_SECONDS.add(0.003)

        def publish() -> None:
            answer_message()
            metrics.publish()

        _measure("coordinator: answer a message", answer_message)
        for size in (1, 16, 64):
            attempt = Attempt(Lane("one"), [Message(b"", "", "", 0.0)] * size, 0.0)
            outcomes = [Outcome(200, server="one")] * size

            def send_batch(attempt: Attempt = attempt) -> None:
                observer.sent(attempt)
                observer.answered(attempt)

            def take_batch(outcomes: list[Outcome] = outcomes) -> None:
                server.count_outcomes(outcomes, 0.003)
                server.note_commit(len(outcomes), 0.001)

            _measure(f"coordinator: a batch of {size}", send_batch)
            _measure(f"server: a batch of {size}", take_batch)
        _measure("publish, twice a second", publish, 1000)
        _measure("answer a scrape", lambda: metrics.scrape(Role.COORDINATOR), 100)


if __name__ == "__main__":
    main()
