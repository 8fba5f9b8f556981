"""What people ask for in Python, as the JSON that an API reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from jobq.errors import InvalidInput
from jobq.schedule import Cron, Every
from jobq.specs import Spec

_JSON = {"spec", "state", "config"}


def document(asked: BaseModel) -> dict[str, Any]:
    """The fields that were given. The key for idempotency is none of them: it travels in a header."""
    found = asked.model_dump(mode="json", exclude_unset=True, exclude={"idempotency_key", *_JSON})
    for name in _JSON & asked.model_fields_set:  # what these hold is judged as it is, not as pydantic would mend it
        value = getattr(asked, name)
        found[name] = value.model_dump(mode="json", warnings=False) if isinstance(value, Spec) else value
    return found


def changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a workflow's fields; a schedule is spread into its own."""
    fields = dict(given)
    schedule = fields.get("schedule")
    if isinstance(schedule, Every):
        del fields["schedule"]
        fields |= {"interval": schedule.interval, "start_at": schedule.start_at}
    elif isinstance(schedule, Cron):
        del fields["schedule"]
        fields |= {"cron": schedule.expression, "timezone": schedule.timezone, "start_at": schedule.start_at}
    try:
        told: dict[str, Any] = to_jsonable_python(fields)
    except PydanticSerializationError as error:
        raise InvalidInput(f"The changes cannot be told: {error}.") from None
    return told
