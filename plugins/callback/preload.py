"""Load once, before the first task, what the process of every task would load again.

Ansible forks a process for each task. That process has what its parent has loaded, and what it
loads itself is gone when it ends. Without this each task that uses a filter loads the files of all
filters anew, which took a third of the control node's processor time in ``site.yml``.
"""

from __future__ import annotations

import gc
from typing import Any

from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible comes without types
    """Writes nothing; only the moment at which it is called matters."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Called in the process that forks all others, before it does."""
        # To find one filter, or one test, Ansible loads the files of all.
        loader.filter_loader.get("default")
        loader.test_loader.get("defined")
        loader.connection_loader.get("ssh", class_only=True)
        loader.connection_loader.get("local", class_only=True)
        loader.shell_loader.get("sh", class_only=True)
        loader.become_loader.get("sudo", class_only=True)
        # A collection of garbage in a forked process would write to, and so copy, all shared pages.
        gc.collect()
        gc.freeze()
