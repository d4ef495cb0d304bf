"""Do normal entries change a row of table 1? One run each, beside the signs of the others. (Full data sets only.)"""

from __future__ import annotations

from dataclasses import replace

from rbd.sweep import table1_configs


def configs(profile, tuned):
    for config in table1_configs(profile, tuned):
        if config and profile == "paper" and config.seed == 0 and config.method != "sgd":
            yield replace(config, distribution="normal")
