"""Pages of listings, and the filters that come as query parameters."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from jobq.models import Page, Total

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.")]
Cursor = Annotated[str | None, Query(max_length=200, description="next_cursor of the page before, with its filters.")]


class Listing(BaseModel, Generic[Item]):
    """A page. ``next_cursor`` null: it is the last one. A page that took too long to fill is short, or empty, and has
    a ``next_cursor``: there may be more.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    items: list[Item]
    next_cursor: str | None = None


class Counted(Listing[Item], Generic[Item]):
    """A page, and with ``?total=true`` how many there are on all pages: an estimate above 10,000."""

    total: Total | None = None


def listing(page: Page[Any], **more: Any) -> Any:
    """A page of the client as it is answered."""
    return {"items": page.items, "next_cursor": page.next_cursor, **more}


def whole(items: Any) -> Any:
    """A listing that has one page only."""
    return {"items": list(items), "next_cursor": None}
