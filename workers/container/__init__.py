"""CONTAINER jobs: one Docker container per attempt, safe by default, recoverable on its host.

``executor`` is what the worker calls, ``run`` the life of one attempt; ``engine`` is the one door to Docker. The
container's name is a fence (``hold``), what it is allowed lies in ``config``, and ``orphans`` removes what nobody owns.
"""

from __future__ import annotations

from workers.container.executor import ContainerExecutor

__all__ = ["ContainerExecutor"]
