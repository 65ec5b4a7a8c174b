"""What was said with ``-e`` when this run was started, and never a variable of a host.

Cloud inventories call variables of their hosts ``name`` and ``role``, too. Read as variables, these
would take the place of what the operator did not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible comes without types
    """``lookup('extra_var', 'name', default='client1')``; without a default, empty text."""

    def run(
        self,
        terms: Sequence[str],
        variables: Mapping[str, Any] | None = None,
        default: Any = "",
        **_more: Any,
    ) -> list[Any]:
        """The values of these extra variables, in this order."""
        said = load_extra_vars(self._loader)
        return [said.get(term, default) for term in terms]
