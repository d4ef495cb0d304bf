"""How large is the cosine of update and gradient, against d and against √(d/D)?"""

from __future__ import annotations

from pathlib import Path

from rbd.suite.sweep import script


def configs(profile, tuned):  # the runs of two other sweeps, whose records have the cosines
    def of_rbd(**fields):
        return tuned(**fields) if fields["method"] == "rbd" else None

    for name in ("dimension", "table1"):
        yield from script(name, Path(__file__).parent).configs(profile, of_rbd)
