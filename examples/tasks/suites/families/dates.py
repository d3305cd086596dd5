"""Tasks about dates and clock times, all as texts such as '2024-02-29' and '09:30'."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from ..family import Family, table, vary


def _date(rng: Random) -> str:
    return (date(1999, 1, 1) + timedelta(days=rng.randint(0, 10_000))).isoformat()


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _span(rng: Random, mark: str) -> str:
    start = rng.randint(480, 1200)
    return f"{_clock(start)}{mark}{_clock(start + rng.randint(10, 200))}"


def _day_pair(rng: Random, longest: int) -> tuple[str, str]:
    start = date(2023, 1, 1) + timedelta(days=rng.randint(0, 900))
    return start.isoformat(), (start + timedelta(days=rng.randint(-3, longest))).isoformat()


FAMILIES = (
    Family(
        "clock(minutes)",
        1,
        "returns the time of day that many minutes after $start as 'HH:MM' on a 24-hour clock, "
        "however many days later. The minutes may be negative.",
        """
def clock(minutes):
    hours, rest = divmod($first + minutes, 60)
    return f"{hours % 24:02d}:{rest:02d}"
""",
        """
def clock(minutes):
    hours, rest = divmod($first + minutes, 60)
    return f"{hours:02d}:{rest:02d}"
""",
        table(
            "start first",
            ("midnight", 0),
            ("06:00", 360),
            ("07:30", 450),
            ("08:15", 495),
            ("09:00", 540),
            ("12:00", 720),
            ("13:45", 825),
        ),
        lambda s: [(90,), (5,), (200,)],
        lambda s: [(0,), (1440 - s["first"],), (1440,), (3000,), (-s["first"] - 1,)],
        lambda rng, s: (rng.randint(-500, 4000),),
    ),
    Family(
        "fiscal_year(day)",
        1,
        "returns the number of the business year of a date 'YYYY-MM-DD'. Business years begin on the first day of "
        "month $m and have the number of the calendar year in which they end.",
        """
def fiscal_year(day):
    year, month, _ = (int(part) for part in day.split("-"))
    return year + (month >= $m)
""",
        """
def fiscal_year(day):
    year, month = int(day[:4]), int(day[5:7])
    return year + 1 if month > $m else year
""",
        vary("m", 2, 3, 4, 5, 7, 9, 10, 11),
        lambda s: [("2023-01-15",), ("2024-12-31",), ("2020-01-01",)],
        lambda s: [
            (f"2022-{s['m']:02d}-01",),
            (f"2022-{s['m']:02d}-28",),
            (f"2022-{s['m'] - 1:02d}-28",),
            (f"1999-{s['m']:02d}-15",),
        ],
        lambda rng, s: (_date(rng),),
    ),
    Family(
        "add_days(day)",
        2,
        "returns the date $k days after a date 'YYYY-MM-DD', in the same form.",
        """
from datetime import date, timedelta

def add_days(day):
    return (date.fromisoformat(day) + timedelta(days=$k)).isoformat()
""",
        """
def add_days(day):
    year, month, number = (int(part) for part in day.split("-"))
    lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    number += $k
    while number > lengths[month - 1]:
        number -= lengths[month - 1]
        month += 1
        if month > 12:
            year, month = year + 1, 1
    return f"{year:04d}-{month:02d}-{number:02d}"
""",
        vary("k", 2, 3, 7, 10, 14, 30, 45),
        lambda s: [("2023-03-05",), ("2021-07-31",), ("2022-11-12",)],
        lambda s: [("2024-02-28",), ("2023-02-28",), ("2019-12-31",), ("2000-02-27",), ("1900-02-28",)],
        lambda rng, s: (_date(rng),),
    ),
    Family(
        "count_days(first, last)",
        2,
        "counts the ${name}s from one date 'YYYY-MM-DD' to another, both included; 0 if the second is earlier.",
        """
from datetime import date, timedelta

def count_days(first, last):
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    days = (start + timedelta(days=i) for i in range((end - start).days + 1))
    return sum(day.weekday() == $number for day in days)
""",
        """
from datetime import date

def count_days(first, last):
    start, end = date.fromisoformat(first).toordinal(), date.fromisoformat(last).toordinal()
    return sum(date.fromordinal(day).weekday() == $number for day in range(start, end))
""",
        table(
            "name number",
            ("Monday", 0),
            ("Tuesday", 1),
            ("Wednesday", 2),
            ("Thursday", 3),
            ("Friday", 4),
            ("Saturday", 5),
            ("Sunday", 6),
        ),
        lambda s: [
            ("2024-03-01", "2024-03-31"),
            ("2024-01-01", "2024-01-30"),
            ("2023-06-08", "2023-06-09"),
            ("2024-05-05", "2024-05-17"),
        ],
        lambda s: [
            (f"2024-01-{s['number'] + 1:02d}",) * 2,
            ("2024-02-01", "2024-01-01"),
            ("2024-01-01", f"2024-01-{s['number'] + 8:02d}"),
        ],
        lambda rng, s: _day_pair(rng, 40),
    ),
    Family(
        "age(born)",
        2,
        "returns how many birthdays someone born on a date 'YYYY-MM-DD' has had up to and on $day; 0 if born later. "
        "A birthday on 29 February falls on 1 March in other years.",
        """
def age(born):
    year, month, day = (int(part) for part in $day.split("-"))
    b_year, b_month, b_day = (int(part) for part in born.split("-"))
    return max(0, year - b_year - ((month, day) < (b_month, b_day)))
""",
        """
def age(born):
    return max(0, int($day[:4]) - int(born[:4]))
""",
        vary("day", "2024-06-15", "2023-02-28", "2025-03-01", "2020-12-01", "2022-09-30", "2024-05-20", "2021-04-04"),
        lambda s: [("1990-01-20",), ("2001-02-03",), ("1985-01-31",)],
        lambda s: [(s["day"],), ("2030-01-01",), ("1999-12-31",), (f"1980{s['day'][4:]}",), ("2000-02-29",)],
        lambda rng, s: (_date(rng),),
    ),
    Family(
        "overlap(one, two)",
        2,
        "returns how many minutes two time spans of one day share. A span is a text such as '09:30${mark}11:00', "
        "its end later than its start.",
        """
def overlap(one, two):
    starts, ends = [], []
    for span in (one, two):
        start, end = (int(time[:2]) * 60 + int(time[3:]) for time in span.split($mark))
        starts.append(start)
        ends.append(end)
    return max(0, min(ends) - max(starts))
""",
        """
def overlap(one, two):
    (a, b), (c, d) = (
        [int(time[:2]) * 60 + int(time[3:]) for time in span.split($mark)] for span in (one, two)
    )
    return min(b, d) - max(a, c)
""",
        vary("mark", "-", "/", " to ", "..", "~", ">"),
        lambda s: [
            (f"09:00{s['mark']}10:30", f"10:00{s['mark']}11:00"),
            (f"08:00{s['mark']}12:00", f"09:15{s['mark']}09:45"),
            (f"13:00{s['mark']}14:00", f"13:00{s['mark']}14:00"),
        ],
        lambda s: [
            (f"08:00{s['mark']}09:00", f"10:00{s['mark']}11:00"),
            (f"10:00{s['mark']}11:00", f"08:00{s['mark']}09:59"),
            (f"08:00{s['mark']}09:00", f"09:00{s['mark']}10:00"),
        ],
        lambda rng, s: (_span(rng, s["mark"]), _span(rng, s["mark"])),
    ),
    Family(
        "tidy_date(text)",
        2,
        "turns a date such as '7${sep}3${sep}2021' (day, month, year) into '2021-03-07'. A year of two digits is 20xx "
        "if it is at most $pivot, else 19xx.",
        """
def tidy_date(text):
    day, month, year = (int(part) for part in text.split($sep))
    if year < 100:
        year += 2000 if year <= $pivot else 1900
    return f"{year:04d}-{month:02d}-{day:02d}"
""",
        """
def tidy_date(text):
    day, month, year = text.split($sep)
    if len(year) == 2:
        year = "20" + year
    return f"{year}-{month.zfill(2)}-{day.zfill(2)}"
""",
        table("sep pivot", (".", 30), ("/", 30), ("-", 40), (".", 49), ("/", 50), ("-", 68), (" ", 25)),
        lambda s: [
            ("7{sep}3{sep}2021".format(**s),),
            ("12{sep}11{sep}1999".format(**s),),
            ("1{sep}1{sep}05".format(**s),),
        ],
        lambda s: [
            ("31{sep}12{sep}99".format(**s),),
            ("01{sep}02{sep}{pivot}".format(**s),),
            (f"9{s['sep']}9{s['sep']}{s['pivot'] + 1}",),
            ("5{sep}06{sep}00".format(**s),),
        ],
        lambda rng, s: (
            s["sep"].join([str(rng.randint(1, 28)), str(rng.randint(1, 12)), f"{rng.randint(0, 99):02d}"]),
        ),
    ),
    Family(
        "add_workdays(day)",
        3,
        "returns the $nth working day after a date 'YYYY-MM-DD', in the same form; that date itself does not count. "
        "All days but $words are working days.",
        """
from datetime import date, timedelta

def add_workdays(day):
    current, left = date.fromisoformat(day), $k
    while left:
        current += timedelta(days=1)
        left -= current.weekday() not in $off
    return current.isoformat()
""",
        """
from datetime import date, timedelta

def add_workdays(day):
    current = date.fromisoformat(day) + timedelta(days=$k)
    while current.weekday() in $off:
        current += timedelta(days=1)
    return current.isoformat()
""",
        table(
            "k nth words off",
            (2, "second", "Saturday and Sunday", (5, 6)),
            (3, "third", "Saturday and Sunday", (5, 6)),
            (4, "fourth", "Saturday and Sunday", (5, 6)),
            (2, "second", "Friday and Saturday", (4, 5)),
            (3, "third", "Friday and Saturday", (4, 5)),
            (3, "third", "Sunday", (6,)),
            (4, "fourth", "Sunday", (6,)),
        ),
        lambda s: [
            ("2024-01-01",),
            ("2024-04-29",),
            ("2024-06-03",),
            ("2024-03-04",),
            ("2023-01-01",),
            ("2024-06-02",),
        ],
        lambda s: [
            ("2024-01-04",),
            ("2024-01-05",),
            ("2024-01-06",),
            ("2024-02-29",),
            ("2024-12-31",),
            ("2024-01-07",),
        ],
        lambda rng, s: (_date(rng),),
    ),
    Family(
        "spell(amount)",
        2,
        "writes a whole number of $base that is not negative with the units $words, such as '$example': largest unit "
        "first, parts that are 0 left out, joined by single blanks. 0 is '0$last'.",
        """
def spell(amount):
    parts = []
    for unit, size in $units:
        count, amount = divmod(amount, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0" + $last
""",
        """
def spell(amount):
    parts = []
    for unit, size in $units:
        if amount >= size:
            parts.append(f"{amount // size}{unit}")
            amount %= size
    return " ".join(parts)
""",
        table(
            "base words example last units",
            ("seconds", "h, m and s (hours, minutes, seconds)", "1h 2m 3s", "s", (("h", 3600), ("m", 60), ("s", 1))),
            ("minutes", "d, h and m (days, hours, minutes)", "2d 5h 1m", "m", (("d", 1440), ("h", 60), ("m", 1))),
            ("days", "w and d (weeks, days)", "3w 2d", "d", (("w", 7), ("d", 1))),
            ("months", "y and m (years, months)", "1y 6m", "m", (("y", 12), ("m", 1))),
            ("hours", "w, d and h (weeks, days, hours)", "1w 2d 3h", "h", (("w", 168), ("d", 24), ("h", 1))),
            ("pence", "L, s and d (1L = 20s, 1s = 12d)", "1L 4s 2d", "d", (("L", 240), ("s", 12), ("d", 1))),
        ),
        lambda s: [(s["units"][0][1] + 1,), (1,), (s["units"][0][1] * 2,)],
        lambda s: [(0,), (s["units"][0][1] - 1,), (s["units"][-2][1],), (12345,)],
        lambda rng, s: (rng.randint(1, 3 * s["units"][0][1]),),
    ),
)
