"""Who is calling."""

import math
from dataclasses import dataclass

__all__ = ["ANONYMOUS", "Principal"]


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were verified.

    `subject` is a resource name such as `users/alice` or `workloads/inference`. A workload that acts for somebody
    carries the original caller in `on_behalf_of`. `expires_at` is when the credentials do, in seconds since the epoch.
    """

    subject: str
    session: str = ""
    on_behalf_of: str = ""
    expires_at: float = math.inf

    @property
    def workload(self) -> str | None:
        """The service's name if the caller is one of this installation's services."""
        return self.subject.removeprefix("workloads/") if self.subject.startswith("workloads/") else None


ANONYMOUS = Principal("anonymous")
