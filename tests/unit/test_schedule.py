from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobq import cron
from jobq.duration import format_duration, parse_duration
from jobq.errors import InvalidInput
from jobq.schedule import (
    MAX_COUNTED,
    MAX_SLOTS,
    Cron,
    Every,
    Schedule,
    Verdict,
    anchor_of,
    check_minimum,
    default_grace,
    first_slot,
    judge_overlap,
    next_slot,
    parse_instant,
    plan,
    preview,
)

BORN = datetime(2026, 1, 10, 12, 0, 0, 250_000, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
YEAR = timedelta(days=365)

intervals = st.timedeltas(min_value=SECOND, max_value=YEAR)
short_intervals = st.timedeltas(min_value=SECOND, max_value=timedelta(minutes=10))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def local(slots: list[datetime], zone: str) -> list[str]:
    return [slot.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %z") for slot in slots]


# --- what people may write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "seconds"),
    [
        (Every("PT5M"), 300),
        (Every("P1W"), 604_800),
        (Every("P1DT2H3M4.5S"), 93_784.5),
        (Every("pt1,5s"), 1.5),
        (Every(" 90 "), 90),
        (Every("1.000001"), 1.000001),
        (Every(90), 90),
        (Every(1.5), 1.5),
        (Every(timedelta(minutes=2)), 120),
        (Every(seconds=30), 30),
        (Every(hours=1, minutes=30), 5400),
        (Every("P365D"), 365 * 86_400),
    ],
)
def test_an_interval_is_iso_text_or_seconds_or_a_timedelta_or_units(every: Every, seconds: float) -> None:
    assert every.interval == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "interval",
    [
        0, -1, 0.999999, "PT0S", "-PT5M", "-5", "P1Y", "P1M", "P1Y2M", "P", "PT", "P1DT", "5 minutes", "", "1e3",
        "PT1H30", "PT1.1234567S", "P366D", 365 * 86_400 + 1, timedelta(days=-1), timedelta.max, float("nan"),
        float("inf"), pytest.param(10**400, id="400 digits"), pytest.param(10**5000, id="5000 digits"),
        pytest.param("9" * 5000, id="long text"), "P" + "9" * 60 + "D", "P" + "9" * 600 + "D", True, None,
        [], b"PT5M", "PT٣M",
    ],
)  # fmt: skip
def test_an_interval_that_is_none_or_out_of_range_is_an_invalid_schedule(interval: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        Every(interval)  # type: ignore[arg-type]
    assert (raised.value.code, raised.value.http_status) == ("invalid_schedule", 422)
    assert raised.value.pointer == "/interval"
    assert len(str(raised.value)) < 400


def test_months_and_years_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInput, match="differ in length"):
        Every("P1M")


@pytest.mark.parametrize("units", [{"days": 1e12}, {"seconds": float("nan")}, {"minutes": "5"}])
def test_units_that_make_no_interval_are_refused(units: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="units"):
        Every(**units)  # type: ignore[arg-type]


def test_an_interval_and_units_together_are_refused() -> None:
    with pytest.raises(InvalidInput, match="not both"):
        Every("PT5M", seconds=3)


@given(intervals)
@settings(deadline=None)
def test_any_interval_in_range_round_trips_through_its_text(interval: timedelta) -> None:
    assert parse_duration(format_duration(interval)) == interval
    assert Every(format_duration(interval)).interval == interval


def test_a_duration_of_zero_has_a_text_and_a_negative_one_has_none() -> None:
    assert parse_duration(format_duration(timedelta(0))) == timedelta(0)
    with pytest.raises(ValueError, match="negative"):
        format_duration(timedelta(seconds=-1))


@pytest.mark.parametrize(
    "expression",
    [
        "", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *",
        "5-1 * * * *", "0 0 30 2 *", "0 0 31 4,6 *", "@daily", "every day", "0 0 * * MON#6", "0 0 * * 1#1/2", "0 0 * * L",
        "? ? ? ? ?", "a b c d e", "9" * 5000 + " * * * *", "0,1," * 300 + "2 * * * *", "\ud800 * * * *", "² * * * *",
    ],
)  # fmt: skip
def test_a_bad_cron_expression_is_an_invalid_schedule(expression: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Cron(expression)
    assert (raised.value.code, raised.value.pointer) == ("invalid_schedule", "/cron")


@given(st.text(alphabet="0123456789*/,-#LWMONJANab \t", max_size=40) | st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_whatever_text_is_taken_for_a_cron_expression_either_fires_or_is_refused(text: str) -> None:
    try:
        schedule = Cron(text)
    except InvalidInput:
        return
    assert first_slot(schedule, BORN) is not None


@pytest.mark.parametrize(
    "zone",
    ["", "Mars/Olympus", "europe/nowhere", "../../etc/passwd", "/etc/localtime", "localtime", "posixrules", "America",
     "zone.tab", "tzdata.zi", "posix/UTC", "right/UTC", "UTC\n", "UTC\x00", "Ü", "a" * 5000, 5, None],
)  # fmt: skip
def test_an_unknown_zone_is_an_invalid_schedule(zone: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Cron("0 0 * * *", zone)
    assert (raised.value.code, raised.value.pointer) == ("invalid_schedule", "/timezone")


def test_a_cron_expression_must_be_text() -> None:
    with pytest.raises(InvalidInput, match="text"):
        Cron(5)  # type: ignore[arg-type]


def test_schedules_are_values_that_compare_hash_and_tell_what_they_are() -> None:
    assert Every("PT60S") == Every(60)
    assert Cron("0  3 * * *") == Cron("0 3 * * *")
    assert len({Every(60), Every("PT1M"), Cron("0 3 * * *")}) == 2
    assert str(Every(90)) == "every PT1M30S"
    assert str(Cron("0 3 * * *", "Europe/Berlin")) == "cron 0 3 * * * (Europe/Berlin)"
    with pytest.raises(AttributeError):
        Every(60).interval = timedelta(0)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("schedule", "pointer"),
    [(Every(299), "/interval"), (Cron("*/4 * * * *"), "/cron"), (Cron("0,59 0,23 * * *"), "/cron")],
)
def test_the_operators_minimum_holds_for_intervals_and_for_cron(schedule: Schedule, pointer: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_minimum(schedule, timedelta(minutes=5))
    assert (raised.value.code, raised.value.pointer) == ("invalid_schedule", pointer)


@pytest.mark.parametrize("schedule", [Every(300), Cron("*/5 * * * *"), Cron("0 3 * * *"), Cron("0 0 29 2 *")])
def test_schedules_at_the_operators_minimum_pass(schedule: Schedule) -> None:
    check_minimum(schedule, timedelta(minutes=5))


# --- scheduled_at ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["2026-03-01T08:00:00", "2026-03-01", "2026-03-01T08:00Z", "20260301T080000Z", "2026-W09-7T08:00:00Z", "tomorrow", "",
     "2026-02-30T08:00:00Z", "2026-03-01T24:00:01Z", "2026-03-01T08:00:00+25:00", "2026-03-01T08:00:00Zulu", "0000-01-01T00:00:00Z",
     "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "٢٠٢٦-03-01T08:00:00Z", 1_772_352_000, None, datetime(2026, 3, 1)],  # noqa: DTZ001
)  # fmt: skip
def test_an_instant_without_offset_or_form_is_an_invalid_schedule(text: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_instant(text, BORN)
    assert (raised.value.code, raised.value.pointer) == ("invalid_schedule", "/scheduled_at")


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-03-01T08:00:00+01:00", "2026-03-01T07:00:00+00:00"),
        ("2026-03-01t08:00:00.1234567z", "2026-03-01T08:00:00.123456+00:00"),
        ("2026-03-01 08:00:00-05:30", "2026-03-01T13:30:00+00:00"),
        (datetime(2026, 3, 1, 8, tzinfo=ZoneInfo("Europe/Berlin")), "2026-03-01T07:00:00+00:00"),
    ],
)
def test_an_instant_with_an_offset_is_read_into_utc(text: object, instant: str) -> None:
    read = parse_instant(text, BORN)
    assert read == at(instant)
    assert read.tzinfo is UTC


def test_the_past_means_now() -> None:
    assert parse_instant("1970-01-01T00:00:00Z", BORN) == BORN


def test_the_same_date_next_year_is_the_latest_instant() -> None:
    assert parse_instant(BORN + YEAR, BORN) == BORN + YEAR
    with pytest.raises(InvalidInput, match="more than a year"):
        parse_instant(BORN + YEAR + MICROSECOND, BORN)
    leap_day = datetime(2028, 2, 29, tzinfo=UTC)
    assert parse_instant("2029-03-01T00:00:00Z", leap_day) == at("2029-03-01T00:00:00Z")


def test_a_start_outside_of_the_years_that_make_sense_is_an_invalid_schedule() -> None:
    for start in ("1969-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "2026-01-01T00:00:00"):
        for make in (lambda start: Every(60, start), lambda start: Cron("0 3 * * *", "UTC", start)):
            with pytest.raises(InvalidInput) as raised:
                make(start)
            assert (raised.value.code, raised.value.pointer) == ("invalid_schedule", "/start_at")


# --- slots -----------------------------------------------------------------------------------------------------------


def test_the_first_slot_is_one_interval_after_creation() -> None:
    assert first_slot(Every(300), BORN) == BORN + timedelta(minutes=5)


def test_the_first_slot_is_one_interval_after_start_at() -> None:
    start = BORN + timedelta(days=3)
    assert first_slot(Every("PT1H", start), BORN) == start + timedelta(hours=1)


def test_a_start_at_in_the_past_only_sets_the_rhythm() -> None:
    daily = Every("P1D", "2020-01-01T08:00:00Z")
    assert preview(daily, anchor_of(daily, BORN), BORN, 2) == [
        at("2026-01-11T08:00:00Z"),
        at("2026-01-12T08:00:00Z"),
    ]


def test_a_cron_slot_at_start_at_runs_and_none_before_it() -> None:
    schedule = Cron("0 8 * * *", "UTC", "2026-02-01T08:00:00Z")  # type: ignore[arg-type]
    assert first_slot(schedule, BORN) == at("2026-02-01T08:00:00Z")
    assert next_slot(schedule, anchor_of(schedule, BORN), at("2026-02-01T08:00:00Z")) == at("2026-02-02T08:00:00Z")


def test_days_of_an_interval_are_24_hours_whatever_zone_the_anchor_was_given_in() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    anchor = datetime(2026, 3, 28, 12, tzinfo=berlin)
    following = next_slot(Every("P1D"), anchor, anchor)
    assert following == datetime(2026, 3, 29, 13, tzinfo=berlin)
    assert (
        plan(Every("P1D"), anchor, anchor + timedelta(days=1), datetime(2026, 3, 29, 12, 59, tzinfo=berlin)).slots == ()
    )


def test_a_naive_instant_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="aware"):
        next_slot(Every(60), BORN.replace(tzinfo=None), BORN)


def test_a_million_slots_do_not_drift() -> None:
    every = Every("PT1.000001S")
    slot = BORN
    for _ in range(1_000):
        following = next_slot(every, BORN, slot)
        assert following is not None
        slot = following
    assert slot - BORN == 1_000 * timedelta(seconds=1, microseconds=1)
    far = BORN + 999_999 * every.interval
    assert next_slot(every, BORN, far) == BORN + 1_000_000 * every.interval


@given(intervals, st.integers(1, 1_000_000), st.timedeltas(timedelta(0), timedelta(days=1)))
@settings(deadline=None)
def test_every_slot_is_the_anchor_plus_a_whole_number_of_intervals(
    interval: timedelta, k: int, late: timedelta
) -> None:
    if k * interval > timedelta(days=50_000):
        k = 1
    late = min(late, interval - MICROSECOND)
    after = BORN + k * interval + late
    assert next_slot(Every(interval), BORN, after) == BORN + (k + 1) * interval


@given(
    st.sampled_from([Every("PT7S"), Cron("*/7 * * * *", "Europe/Berlin"), Cron("15 2,3 * * *", "America/New_York")]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
@settings(deadline=None)
def test_slots_strictly_increase_and_are_found_from_any_instant_between(schedule: Schedule, after: datetime) -> None:
    slots = preview(schedule, BORN, max(after, BORN), 20)
    for before, following in pairwise(slots):
        assert before < following
        assert next_slot(schedule, BORN, before + (following - before) / 2) == following
        assert next_slot(schedule, BORN, following - MICROSECOND) == following


def test_a_preview_ends_where_a_schedule_does_not() -> None:
    assert preview(Every(60), BORN, BORN, 0) == []
    assert len(preview(Cron("0 0 29 2 *"), BORN, BORN, 3)) == 3


# --- where clocks are changed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # Skipped: once, at the first valid instant.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T03:00+01:00", ["29 03:00 +0200", "30 02:30 +0200"]),
        ("*/15 2 * * *", "Europe/Berlin", "2026-03-28T03:00+01:00", ["29 03:00 +0200", "30 02:00 +0200"]),
        ("30 2,3 * * *", "Europe/Berlin", "2026-03-28T04:00+01:00", ["29 03:00 +0200", "29 03:30 +0200", "30 02:30 +0200"]),
        ("0 */2 * * *", "America/New_York", "2026-03-08T00:30-05:00", ["08 03:00 -0400", "08 04:00 -0400"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T03:00+10:30", ["04 02:30 +1100", "05 02:15 +1100"]),
        ("0 0 * * *", "America/Santiago", "2026-09-05T12:00-04:00", ["06 01:00 -0300", "07 00:00 -0300"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T13:00-10:00", ["31 00:00 +1400", "31 12:00 +1400"]),
        # Repeated: once, the first time.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00+02:00", ["25 02:30 +0200", "26 02:30 +0100"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25T02:10+02:00", ["25 02:30 +0200", "26 02:00 +0100"]),
        ("15 2 * * *", "Europe/Berlin", "2026-10-25T02:05+01:00", ["26 02:15 +0100"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00-04:00", ["01 01:30 -0400", "02 01:30 -0500"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00+11:00", ["05 01:45 +1100", "06 01:45 +1030"]),
    ],
)  # fmt: skip
def test_times_of_day_run_once_where_clocks_are_changed(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    slots = preview(Cron(expression, zone), at("2000-01-01T00:00:00Z"), at(after), len(expected))
    assert local(slots, zone) == expected


@pytest.mark.parametrize(
    ("zone", "after"),
    [
        ("Europe/Berlin", "2026-03-28T12:00:00Z"),
        ("Europe/Berlin", "2026-10-24T12:00:00Z"),
        ("America/New_York", "2026-03-07T12:00:00Z"),
        ("America/New_York", "2026-10-31T12:00:00Z"),
        ("Pacific/Apia", "2011-12-29T12:00:00Z"),
    ],
)
@pytest.mark.parametrize("expression", ["0 * * * *", "30 * * * *", "59 0-23 * * *", "7 */1 * * *"])
def test_a_schedule_of_every_hour_runs_each_real_hour(expression: str, zone: str, after: str) -> None:
    slots = preview(Cron(expression, zone), at("2000-01-01T00:00:00Z"), at(after), 48)
    assert {following - slot for slot, following in pairwise(slots)} == {timedelta(hours=1)}


def test_where_clocks_change_by_half_an_hour_every_hour_means_what_clocks_show() -> None:
    back = preview(Cron("45 * * * *", "Australia/Lord_Howe"), BORN, at("2026-04-05T00:50+11:00"), 3)
    assert local(back, "Australia/Lord_Howe") == ["05 01:45 +1100", "05 01:45 +1030", "05 02:45 +1030"]
    forward = preview(Cron("45 * * * *", "Australia/Lord_Howe"), BORN, at("2026-10-04T00:50+10:30"), 3)
    assert local(forward, "Australia/Lord_Howe") == ["04 01:45 +1030", "04 02:45 +1100", "04 03:45 +1100"]


CHANGES = [
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"), ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"),
    ("Pacific/Apia", "2011-12-30"), ("America/Santiago", "2026-04-05"), ("America/Santiago", "2026-09-06"),
    ("Antarctica/Troll", "2026-03-29"), ("Antarctica/Troll", "2026-10-25"), ("Africa/Cairo", "2026-04-24"),
    ("Africa/Cairo", "2026-10-30"), ("America/Havana", "2026-11-01"), ("Europe/Dublin", "2026-10-25"),
    ("Africa/Casablanca", "2026-02-15"), ("Africa/Casablanca", "2026-03-22"), ("Asia/Kathmandu", "2026-01-01"),
]  # fmt: skip


def by_definition(minutes: set[int], hours: set[int], zone: ZoneInfo, begin: datetime, end: datetime) -> list[datetime]:
    """Every slot in [begin, end), minute by minute, from what ``jobq.cron`` promises."""
    slots: list[datetime] = []
    reached = (begin - timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None)
    for moment, wall in clock(zone, begin, end):
        if len(hours) == 24:
            hit = wall.minute in minutes
        else:  # what clocks show now for the first time, and what they leapt over
            new = []
            while reached + timedelta(minutes=1) <= wall:
                reached += timedelta(minutes=1)
                new.append(reached)
            hit = any(shown.minute in minutes and shown.hour in hours for shown in new)
        if hit:
            slots.append(moment)
    return slots


@cache
def clock(zone: ZoneInfo, begin: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Each minute, and what clocks show then."""
    moments = [begin + k * timedelta(minutes=1) for k in range((end - begin) // timedelta(minutes=1))]
    return [(moment, moment.astimezone(zone).replace(tzinfo=None)) for moment in moments]


@given(
    st.sampled_from(CHANGES),
    st.sets(st.integers(0, 59), min_size=1, max_size=4) | st.just(set(range(0, 60, 5))),
    st.sets(st.integers(0, 4) | st.integers(0, 23), min_size=1, max_size=8) | st.just(set(range(24))),
    st.integers(-1500, 1500),
)
@example(("Europe/Berlin", "2026-10-25"), {0, 30}, set(range(24)), 0)
@settings(max_examples=150, deadline=None)
def test_cron_agrees_with_a_minute_by_minute_reading_of_the_clock_forward_and_back(
    change: tuple[str, str], minutes: set[int], hours: set[int], offset: int
) -> None:
    zone = ZoneInfo(change[0])
    begin = datetime.fromisoformat(change[1]).replace(tzinfo=UTC) - timedelta(hours=30)
    end = begin + timedelta(days=3)
    expected = by_definition(minutes, hours, zone, begin - timedelta(days=1), end)
    expression = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    middle = begin + timedelta(minutes=1500 + offset)

    ahead = [slot for slot in expected if slot > middle]
    found = cron.instants(expression, zone, middle)
    assert [next(found) for _ in ahead] == ahead
    for slot in ahead[:3]:
        assert next(cron.instants(expression, zone, slot - MICROSECOND)) == slot

    behind = [slot for slot in reversed(expected) if slot <= middle]
    back = cron.instants_back(expression, zone, middle)
    assert [next(back) for _ in behind] == behind


# --- missed slots ----------------------------------------------------------------------------------------------------


def test_a_slot_on_time_runs_and_the_next_one_is_planned() -> None:
    due = BORN + timedelta(minutes=5)
    assert plan(Every(300), BORN, due, due + SECOND) == ((due,), 0, due + timedelta(minutes=5))


def test_nothing_runs_before_it_is_due() -> None:
    due = BORN + timedelta(minutes=5)
    assert plan(Every(300), BORN, due, due - MICROSECOND) == ((), 0, due)
    assert plan(Cron("0 * * * *"), BORN, due, due - MICROSECOND) == ((), 0, due)


@pytest.mark.parametrize(("interval", "grace"), [(1, 1.0), (3, 1.5), (60, 30), (120, 60), (86_400, 60)])
def test_the_default_grace_is_half_the_interval_from_1_to_60_seconds(interval: int, grace: float) -> None:
    assert default_grace(timedelta(seconds=interval)) == timedelta(seconds=grace)
    slot = BORN + timedelta(seconds=interval)
    last_moment = slot + timedelta(seconds=grace)
    assert plan(Every(interval), BORN, slot, last_moment, "skip").slots[0] == slot
    late = plan(Every(interval), BORN, slot, last_moment + MICROSECOND, "skip")
    assert slot not in late.slots
    assert late.missed >= 1


@pytest.mark.parametrize("schedule", [Every(300), Cron("*/5 * * * *", "Europe/Berlin")])
@pytest.mark.parametrize(("policy", "made_up"), [("skip", []), ("coalesce", [11]), ("catch_up", [9, 10, 11])])
def test_after_an_hour_away_each_policy_makes_up_for_exactly_what_it_says(
    schedule: Schedule, policy: str, made_up: list[int]
) -> None:
    anchor = datetime(2026, 1, 10, 12, tzinfo=UTC)

    def slot(k: int) -> datetime:
        return anchor + k * timedelta(minutes=5)

    for now, on_time in ((slot(12) + SECOND, [slot(12)]), (slot(11) + timedelta(minutes=2), [])):
        found = plan(schedule, anchor, slot(1), now, policy, max_catch_up=3)  # type: ignore[arg-type]
        assert found.missed == 11
        assert list(found.slots) == [*map(slot, made_up), *on_time]
        assert found.next_fire_at == slot(13 if on_time else 12)


def test_coalesce_makes_no_run_up_where_nothing_was_missed() -> None:
    due = BORN + SECOND
    assert plan(Every(1), BORN, due, due + SECOND, "coalesce").slots == (due, due + SECOND)


def test_the_grace_of_a_workflow_replaces_the_default() -> None:
    due = BORN + timedelta(minutes=5)
    late = due + timedelta(minutes=4)
    assert plan(Every(300), BORN, due, late, "skip").slots == ()
    assert plan(Every(300), BORN, due, late, "skip", grace=timedelta(minutes=4)).slots == (due,)
    hourly, slot = Cron("0 * * * *"), at("2026-01-10T13:00:00Z")
    assert plan(hourly, BORN, slot, slot + timedelta(minutes=4), "skip").slots == ()
    assert plan(hourly, BORN, slot, slot + timedelta(minutes=4), "skip", grace=timedelta(minutes=4)).slots == (slot,)


@pytest.mark.parametrize("schedule", [Every(1), Cron("* * * * *", "Europe/Berlin")])
def test_ten_years_away_cost_no_time(schedule: Schedule) -> None:
    due = first_slot(schedule, BORN)
    assert due is not None
    began = time.perf_counter()
    found = plan(schedule, BORN, due, due + 10 * YEAR + timedelta(seconds=20), "catch_up", max_catch_up=5)
    assert time.perf_counter() - began < 5  # to count them one by one takes minutes
    assert found.missed == (10 * YEAR // SECOND + 19 if isinstance(schedule, Every) else MAX_COUNTED)
    assert len(found.slots) <= 5 + 2
    assert found.next_fire_at == next_slot(schedule, BORN, due + 10 * YEAR + timedelta(seconds=20))


@pytest.mark.parametrize("schedule", [Every(1), Cron("* * * * *")])
def test_more_slots_on_time_than_one_plan_holds_are_judged_by_the_next(schedule: Schedule) -> None:
    anchor = datetime(2026, 1, 1, tzinfo=UTC)
    due, now = first_slot(schedule, anchor), anchor + timedelta(minutes=2_500, milliseconds=1)
    runs: list[datetime] = []
    while due is not None and due <= now:
        found = plan(schedule, anchor, due, now, "skip", grace=timedelta(days=3))
        assert 0 < len(found.slots) <= MAX_SLOTS
        runs += found.slots
        due = found.next_fire_at
    assert runs == preview(schedule, anchor, anchor, len(runs))
    assert due == next_slot(schedule, anchor, now)


def test_a_due_time_off_the_rhythm_is_moved_to_the_next_slot() -> None:
    found = plan(Every(300), BORN, BORN + timedelta(minutes=4), BORN + timedelta(minutes=6), "coalesce")
    assert found == ((BORN + timedelta(minutes=5),), 0, BORN + timedelta(minutes=10))
    assert plan(Every(300), BORN, BORN - timedelta(hours=1), BORN + SECOND) == (
        (),
        0,
        BORN + timedelta(minutes=5),
    )


schedules = st.one_of(
    short_intervals.map(Every),
    st.sampled_from(
        [Cron("* * * * *"), Cron("*/3 * * * *", "Europe/Berlin"), Cron("*/20 2 * * *", "Europe/Berlin"),
         Cron("5 1,2,3 * * *", "America/New_York")]
    ),
)  # fmt: skip


@given(
    schedules,
    st.lists(st.timedeltas(MICROSECOND, timedelta(minutes=30)), min_size=1, max_size=30),
    st.none() | st.timedeltas(SECOND, timedelta(minutes=20)),
    st.sampled_from(["skip", "coalesce", "catch_up"]),
    st.sampled_from(["2026-01-10T12:00:00Z", "2026-03-29T00:10:00Z", "2026-10-25T00:10:00Z", "2026-11-01T05:00:00Z"]),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_never_loses_nor_repeats_a_slot_on_time_whatever_the_ticks(
    schedule: Schedule, waits: list[timedelta], grace: timedelta | None, policy: str, begin: str
) -> None:
    anchor = now = at(begin)
    due = first_slot(schedule, anchor)
    runs: list[datetime] = []
    on_time: list[datetime] = []
    missed = 0
    for wait in waits:
        now += wait
        assert due is not None
        slots = slots_between(schedule, anchor, due, now)
        found = plan(schedule, anchor, due, now, policy, grace=grace, max_catch_up=4)  # type: ignore[arg-type]
        timely = [slot for slot, own in slots if now <= slot + (own if grace is None else grace)][:MAX_SLOTS]
        late = [slot for slot, _ in slots if slot not in timely and (not timely or slot < timely[0])]
        assert found.missed == min(len(late), len(late) if isinstance(schedule, Every) else MAX_COUNTED)
        kept = {"skip": 0, "coalesce": 1, "catch_up": 4}[policy]
        assert list(found.slots) == [*late[len(late) - min(kept, len(late)) :], *timely]
        runs += found.slots
        on_time += timely
        missed += found.missed
        due = found.next_fire_at
    assert len(set(runs)) == len(runs)
    assert runs == sorted(runs)
    assert set(on_time) <= set(runs)


def slots_between(
    schedule: Schedule, anchor: datetime, due: datetime, now: datetime
) -> list[tuple[datetime, timedelta]]:
    """The slots in [due, now] with the default grace of each, one by one."""
    found = []
    slot = due
    while slot <= now:
        following = next_slot(schedule, anchor, slot)
        assert following is not None
        found.append((slot, default_grace(following - slot)))
        slot = following
    return found


# --- overlap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "live", "waiting", "verdict"),
    [
        ("allow", 0, 0, Verdict.RUN),
        ("allow", 9, 9, Verdict.RUN),
        ("skip", 0, 0, Verdict.RUN),
        ("skip", 1, 0, Verdict.CANCEL_NEW),
        ("skip", 1, 1, Verdict.CANCEL_NEW),
        ("queue", 0, 0, Verdict.RUN),
        ("queue", 1, 0, Verdict.RUN),
        ("queue", 1, 1, Verdict.CANCEL_NEW),
        ("queue", 2, 1, Verdict.CANCEL_NEW),
        ("cancel_running", 0, 0, Verdict.RUN),
        ("cancel_running", 1, 0, Verdict.CANCEL_RUNNING_THEN_RUN),
        ("cancel_running", 1, 1, Verdict.CANCEL_RUNNING_THEN_RUN),
    ],
)
def test_overlap_is_judged_by_policy(policy: str, live: int, waiting: int, verdict: Verdict) -> None:
    assert judge_overlap(policy, live, waiting) is verdict  # type: ignore[arg-type]
