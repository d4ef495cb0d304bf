"""Do normal entries change a row of table 1? One run each, beside the signs of the others. (Full data sets only.)"""

from __future__ import annotations

from rbd.suite.sweep import table1_configs


def configs(profile, tuned):
    def with_normals(**fields):
        return tuned(**fields | {"distribution": "normal"}) if fields["seed"] == 0 and fields["method"] != "sgd" else None

    if profile == "paper":
        yield from table1_configs(profile, with_normals)
