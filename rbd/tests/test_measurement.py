"""rbd.suite.measurement: what an experiment measures, kept part by part."""

import json

import pytest

from rbd.suite import record
from rbd.suite.experiment import Experiment
from rbd.suite.measurement import measure


def test_a_measurement_that_could_not_be_kept_is_not_begun(tmp_path):
    (tmp_path / "measurements").write_text("a file, where a directory is needed")
    began = []
    wanted = Experiment("slow", "Is it kept?", measure=lambda *given: began.append(given))
    with pytest.raises(OSError, match="cannot save a record: "):
        measure(wanted, "quick", tmp_path)
    assert not began


@pytest.fixture
def parts():
    """An experiment of the parts a, b and c, of which `bad` fails, and the list of those that were measured."""

    class Made:
        def __init__(self):
            self.bad, self.done = None, []
            self.wanted = Experiment("slow", "Which?", measure=self.measure, parts=lambda profile: ["a", "b", "c"])

        def measure(self, part, profile, data_dir):
            if part == self.bad:
                raise KeyboardInterrupt
            self.done.append(part)
            return {"part": part, "profile": profile, "data": data_dir, "number": len(self.done)}

    return Made()


def test_parts_are_measured_once_each_also_after_an_interruption(tmp_path, parts):
    path, kept = (tmp_path / "measurements" / f"slow-quick.{suffix}" for suffix in ("json", "parts"))
    parts.bad = "b"
    with pytest.raises(KeyboardInterrupt):
        measure(parts.wanted, "quick", tmp_path, "sets")
    assert parts.done == ["a"] and kept.exists() and not path.exists()
    parts.bad = None
    measure(parts.wanted, "quick", tmp_path, "sets")
    assert parts.done == ["a", "b", "c"] and not kept.exists()
    made = json.loads(path.read_text())
    assert "earlier_environments" not in made
    assert made["values"] == [{"part": p, "profile": "quick", "data": "sets", "number": i} for i, p in enumerate("abc", 1)]


def test_a_row_of_a_part_that_is_no_longer_asked_for_is_left_out(tmp_path, parts):
    kept = tmp_path / "measurements" / "slow-quick.parts"
    kept.parent.mkdir()
    old, here = {"commit": "old"}, record.environment()
    kept.write_text(json.dumps({repr("z"): {"row": 26, "environment": here}, repr("c"): {"row": 3, "environment": old}}))
    measure(parts.wanted, "quick", tmp_path)
    made = json.loads(kept.with_suffix(".json").read_text())
    assert parts.done == ["a", "b"] and [row["part"] for row in made["values"][:2]] == ["a", "b"] and made["values"][2] == 3
    assert made["environment"] == here and made["earlier_environments"] == [old]


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"a": 1}', '{"a": {"row": 1}}'])
def test_a_damaged_file_of_parts_is_named_and_kept(tmp_path, parts, text):
    kept = tmp_path / "measurements" / "slow-quick.parts"
    kept.parent.mkdir()
    kept.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"slow-quick\.parts: .*remove it to measure all of them again"):
        measure(parts.wanted, "quick", tmp_path)
    assert not parts.done and kept.read_bytes() == text.encode("latin-1")


def test_parts_need_a_measurement():
    with pytest.raises(ValueError, match="parts are of a measurement"):
        Experiment("x", "Why?", runs=lambda profile: [], parts=lambda profile: [])
