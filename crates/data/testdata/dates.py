"""Writes dates.json: what Python's strftime makes of every directive. `python3 dates.py`, on Linux."""

import datetime
import json
import os
import random
import time
from pathlib import Path

os.environ["TZ"] = "UTC"
time.tzset()
random.seed(7)

DIRECTIVES = "YCyGgmdejHkIlMSsuwUWVBbhAapPFDxTXRrcfZznt%"
YEARS = (1999, 2000, 2004, 2005, 2008, 2009, 2010, 2015, 2016, 2020, 2021, 2023, 2024, 2026, 2100)
ENDS = ((1, 1), (1, 3), (1, 5), (12, 28), (12, 31))

days = [datetime.datetime(y, m, d) for y in YEARS for m, d in ENDS]
times = [d + datetime.timedelta(seconds=random.randrange(86400)) for d in days]
times += [datetime.datetime(2024, 2, 29, 0, 0, 0), datetime.datetime(2023, 7, 4, 12, 5, 9)]
out = []


def put(t, text):
    # Without a time zone, as `datetime.now()` in transformers.
    out.append([int(t.replace(tzinfo=datetime.timezone.utc).timestamp()), text, t.strftime(text)])


for t in times:
    for c in random.sample(DIRECTIVES, 7):
        put(t, "%" + c)
for c in DIRECTIVES:
    for t in (times[3], times[-1], times[-2]):
        put(t, "%" + c)
for c in "ymdejHkIlMSuwUWVBbhAap":
    for flag in "-_0^":
        put(times[-1], "%" + flag + c)
for t in times[::5]:
    put(t, "Week %V of %G (%a), day %j/%-j: %d %B %Y at %-I:%M %p")

lines = ",\n".join(json.dumps(case) for case in out)
Path(__file__).with_name("dates.json").write_text(f"[\n{lines}\n]\n")
