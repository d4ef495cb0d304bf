"""rbd.suite.report: a table and a picture that can be checked by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from rbd.suite import looks, paper, record, report
from rbd.suite.config import RunConfig
from rbd.suite.record import Point, Record

ROOT = Path(report.__file__).parents[2]
TABLE1 = """
FC, MNIST:      22.5 ± 1.7, 80 ± 0.4,   93.893 ± 0.024, 98.27 ± 0.09
FC, F-MNIST:    45 ± 6,     77.3 ± 0.29, 85.65 ± 0.2,   87.32 ± 0.21
FC, CIFAR-10:   17.8 ± 0.5, 21.4 ± 1.2, 43.77 ± 0.22,   52.09 ± 0.22
CNN, MNIST:     51 ± 6,     88.9 ± 0.6, 97.17 ± 0.1,    99.41 ± 0.09
CNN, F-MNIST:   37 ± 4,     77.8 ± 1.6, 85.56 ± 0.1,    91.95 ± 0.18
CNN, CIFAR-10:  20.3 ± 1,   37.2 ± 0.8, 54.64 ± 0.33,   81.4 ± 0.4
"""  # typed a second time from table 1 of arXiv 2011.04720


def made(method: str, accuracies: tuple[float, ...], seed: int = 0, outcome: str = "finished", model: str = "fc",
         data: str = "mnist-embedded", epochs: int | None = None) -> Record:  # fmt: skip
    config = RunConfig(model=model, data=data, method=method, seed=seed, epochs=epochs or max(len(accuracies), 1))
    curve = tuple(Point(i, i, i, i, 2.0, a, None) for i, a in enumerate(accuracies, 1))
    return Record(config, outcome, curve, (1.0,) * len(curve), {})


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


RUNS = (
    made("sgd", (80.0, 90.0), 0), made("sgd", (82.0, 92.0), 1), made("sgd", (84.0, 94.0), 2),
    made("rbd", (50.0, 70.0), 0), made("rbd", (60.0, 74.0), 1),
    made("fpd", (30.0, 44.44), 0),
)  # fmt: skip


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("values", "text"), [
    ([50.0], "50.0 (n = 1)"),
    ([90.0, 92.0, 94.0], "92.0 ± 2.0 (n = 3)"),  # sample standard deviation: √((4 + 0 + 4) / 2)
    ([70.0, 74.0], "72.0 ± 2.8 (n = 2)"),  # √((4 + 4) / 1) = 2.83
    ([80.0, 80.0], "80.0 ± 0.0 (n = 2)"),
    ([9.96, 9.96], "10.0 ± 0.0 (n = 2)"),
])  # fmt: skip
def test_cells_of_the_table(values, text):
    assert rows(report.table([made("sgd", (v,), i) for i, v in enumerate(values)], "quick"))[2][-1] == text


def test_final_is_the_last_accuracy_or_chance():
    assert record.final(made("sgd", (80.0, 90.0))) == 90.0
    assert record.final(made("rbd", (), outcome="diverged", epochs=3)) == 10.0


def test_paper_numbers_are_those_of_table_1():
    typed = [line.split(":") for line in TABLE1.strip().splitlines()]
    typed = {title: [number.strip() for number in numbers.split(",")] for title, numbers in typed}
    order = ("nes", "fpd", "rbd", "sgd")
    kept = {looks.title(*pair): [str(cells[m]) for m in order] for pair, cells in paper.TABLE1.items()}
    assert kept == typed


@pytest.mark.parametrize("data", ["mnist", "fmnist", "cifar10"])
@pytest.mark.parametrize("model", ["fc", "cnn"])
def test_title_is_the_same_for_an_embedded_set(model, data):
    if data != "cifar10":  # which has none
        assert looks.title(model, f"{data}-embedded") == looks.title(model, data)
    assert looks.title(model, data).split(", ")[0] == model.upper()


# ---------------------------------------------------------------- table


def test_table_by_hand():
    assert report.table(RUNS, "quick").splitlines() == [
        "| network, data |  | NES | FPD | RBD | SGD |",
        "| --- | --- | --- | --- | --- | --- |",
        "| FC, MNIST | quick: 5,000 images, 2 epochs | – | 44.4 (n = 1) | 72.0 ± 2.8 (n = 2) | 92.0 ± 2.0 (n = 3) |",
        "|  | paper: full data, 100 epochs | 22.5 ± 1.7 | 80 ± 0.4 | 93.893 ± 0.024 | 98.27 ± 0.09 |",
    ]


def test_order_of_records_does_not_matter_within_a_pair():
    assert report.table(RUNS[::-1], "quick") == report.table(RUNS, "quick")


def test_pairs_have_rows_of_their_own_and_full_data_is_said():
    runs = [made("rbd", (60.0,) * 3, data="fmnist"), made("rbd", (70.0,) * 2, model="cnn", data="cifar10")]
    lines = rows(report.table(runs, "paper"))
    assert [line[0] for line in lines[2:]] == ["FC, F-MNIST", "", "CNN, CIFAR-10", ""]
    assert lines[2][1:] == ["paper: full data, 3 epochs", "–", "–", "60.0 (n = 1)", "–"]
    assert lines[4][1:] == ["paper: full data, 2 epochs", "–", "–", "70.0 (n = 1)", "–"]
    assert lines[5][2:] == ["20.3 ± 1", "37.2 ± 0.8", "54.64 ± 0.33", "81.4 ± 0.4"]


def test_diverged_runs_count_and_are_said():
    """90, 92 and chance, 10: mean 64, deviation √((26² + 28² + 54²) / 2) = 46.8."""
    runs = [*RUNS[:2], made("sgd", (), 2, "diverged", epochs=2)]
    assert rows(report.table(runs, "quick"))[2][-1] == "64.0 ± 46.8 (n = 3, 1 diverged)"
    late = [made("rbd", (50.0, 12.5), 0, "diverged", epochs=3)]
    assert rows(report.table(late, "quick"))[2][-2] == "10.0 (n = 1, 1 diverged)"  # not what it had before


def test_legend_says_what_the_numbers_are_and_what_is_missing():
    assert "missing" not in report.legend(0)
    assert "**7 runs are missing.**" in report.legend(7)
    words = ("Validation accuracy, %", "standard deviation", "d = 250", "seeds", "signs", "learning rates of our own")
    assert all(word in report.legend(0) for word in words)


# ---------------------------------------------------------------- into a text


def test_insert_replaces_what_is_between_the_marks():
    text = "above\n<!-- t -->\nold\n| x |\n<!-- /t -->\nbelow <!-- u --><!-- /u -->\n"
    once = report.insert(text, "t", "new\nlines")
    assert once == "above\n<!-- t -->\nnew\nlines\n<!-- /t -->\nbelow <!-- u --><!-- /u -->\n"
    assert report.insert(once, "t", "new\nlines") == once
    assert report.insert(once, "u", "z").endswith("below <!-- u -->\nz\n<!-- /u -->\n")


@pytest.mark.parametrize("text", [
    "", "<!-- t -->", "<!-- /t -->", "<!-- t --> <!-- t --> <!-- /t -->", "<!-- t --> <!-- /t --> <!-- /t -->",
])  # fmt: skip
def test_insert_without_one_pair_of_marks(text):
    with pytest.raises(ValueError, match="text: got no pair of marks <!-- t --> ... <!-- /t -->, allowed exactly one"):
        report.insert(text, "t", "new")


def test_a_readme_on_another_drive_of_windows_has_whole_links(tmp_path, monkeypatch):
    """From D: to C: there is no relative path."""

    def refuse(*_):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "memory.png").touch()
    table, folder = "| 3: less memory | yes |", tmp_path / "docs"
    assert report.link_claims(table, tmp_path, folder) == "| [3: less memory](../figures/memory.png) | yes |"
    monkeypatch.setattr(os.path, "relpath", refuse)
    monkeypatch.chdir(tmp_path)
    for results in (tmp_path, Path()):
        linked = report.link_claims(table, results, folder)
        assert linked == f"| [3: less memory]({tmp_path.as_posix()}/figures/memory.png) | yes |"


def test_links_hold_where_the_results_directory_has_spaces(tmp_path):
    results = tmp_path / "my (new) results"
    (results / "figures").mkdir(parents=True)
    (results / "figures" / "memory.png").touch()
    linked = report.link_claims("| 3: less memory | yes |", results, tmp_path)
    assert linked == "| [3: less memory](my%20%28new%29%20results/figures/memory.png) | yes |"


def test_what_stands_around_the_marks_stays_byte_for_byte(tmp_path):
    """Line ends of both kinds, and permissions; and a link to the file, which others may share, stays a link."""
    there, link = tmp_path / "there.md", tmp_path / "README.md"
    there.write_bytes(b"a\nb\r\n<!-- t --><!-- /t -->\nc\r\n")
    there.chmod(0o600)
    mode = there.stat().st_mode
    try:
        link.symlink_to(there)
    except OSError:  # Windows allows it to few
        link = there
    report.insert_into(link, {"t": lambda: "1\n2"})
    assert there.read_bytes() == b"a\nb\r\n<!-- t -->\r\n1\r\n2\r\n<!-- /t -->\nc\r\n"
    assert there.stat().st_mode == mode and (link == there or link.is_symlink())
    before = there.stat().st_mtime_ns
    report.insert_into(link, {"t": lambda: "1\n2"})
    assert there.stat().st_mtime_ns == before


def test_insert_refuses_marks_in_the_wrong_order():
    """Else the text between them would be doubled: nothing of a README is to be lost or repeated."""
    with pytest.raises(ValueError, match="marks"):
        report.insert("a <!-- /t --> b <!-- t --> c", "t", "new")


# ---------------------------------------------------------------- picture


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved, as they are saved."""
    seen, real = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (seen.append(self), real(self, *args, **kwargs))[1])
    return seen


def labelled(ax) -> dict[str, list[list[float]]]:
    """Label -> points; stars have none."""
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}


def test_png_is_written_and_the_same_again(tmp_path):
    path = report.curves(RUNS, tmp_path / "new" / "figure.png", "quick")
    assert path == tmp_path / "new" / "figure.png"
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 5000
    assert report.curves(RUNS, tmp_path / "again.png", "quick").read_bytes() == content
    report.curves(RUNS, path, "quick")
    assert path.read_bytes() == content
    assert report.curves(RUNS[:4], tmp_path / "other.png", "quick").read_bytes() != content


def test_picture_shows_the_numbers_with_names_and_units(tmp_path, figures):
    report.curves([*RUNS, made("nes", (10.0, 12.0, 14.0), model="cnn", data="fmnist-embedded")], tmp_path / "f.png", "quick")
    (figure,) = figures
    first, second = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["FC, MNIST", "CNN, F-MNIST"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"epochs"} and first.get_ylabel() == "validation accuracy (%)"
    assert {ax.get_ylim() for ax in figure.axes} == {(0, 100)}
    drawn = labelled(first)
    assert drawn == {"FPD": [[1, 30], [2, 44.44]], "RBD": [[1, 55], [2, 72]], "SGD": [[1, 82], [2, 92]]}
    (band,) = (c for c in first.collections if same_color(c.get_facecolor()[0][:3], looks.LOOKS["sgd"]["color"]))
    assert {tuple(v) for v in band.get_paths()[0].vertices} == {(1, 80), (2, 90), (1, 84), (2, 94)}  # lowest, highest
    assert labelled(second) == {"NES": [[1, 10], [2, 12], [3, 14]]}
    assert "quick" in figure.get_supxlabel() and "n = 1/2/3" in figure.get_supxlabel()
    assert "paper (full data, 100 epochs)" in [text.get_text() for text in figure.legends[0].get_texts()]
    stars = [line.get_ydata().tolist() for ax in figure.axes for line in ax.lines if line.get_marker() == "*"]
    assert stars == [[80], [93.893], [98.27], [37]]  # beside the methods that are drawn


def test_every_method_drawn_anywhere_is_in_a_legend(tmp_path, figures):
    """Also where the last panel lacks it, as while a sweep is under way."""
    report.curves([*RUNS, made("nes", (10.0, 12.0), model="cnn")], tmp_path / "f.png", "quick")
    legends = [ax.get_legend() for ax in figures[0].axes if ax.get_legend()] + figures[0].legends
    names = {"NES", "FPD", "RBD", "SGD", "paper (full data, 100 epochs)"}
    assert {text.get_text() for legend in legends for text in legend.get_texts()} == names


def test_methods_are_told_apart_with_and_without_colour(tmp_path, figures):
    runs = [made(method, (20.0 * i, 22.0 * i)) for i, method in enumerate(report.METHODS, 1)]
    path = report.curves(runs, tmp_path / "f.png", "quick")
    lines = [line for line in figures[0].axes[0].lines if line.get_marker() != "*"]
    colours = {method: looks.look(method)["color"] for method in report.METHODS}
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 4
    assert {line.get_label().lower(): line.get_color() for line in lines} == colours
    pixels = imread(path)[:, :, :3].reshape(-1, 3)
    for colour in colours.values():
        assert (abs(pixels - to_rgb(colour)).max(axis=1) < 0.01).sum() > 20  # pixels that are really that colour


def test_one_point_is_visible(tmp_path, figures):
    report.curves([made("nes", (50.0,))], tmp_path / "f.png", "quick")
    assert figures[0].axes[0].lines[0].get_marker() == "."


def test_runs_of_unequal_length_are_drawn_as_far_as_all_go(tmp_path, figures):
    report.curves([RUNS[0], made("sgd", (50.0,), 1, "diverged", epochs=2)], tmp_path / "f.png", "quick")
    assert figures[0].axes[0].lines[0].get_xydata().tolist() == [[1, 65]]
    assert figures[0]._supxlabel.get_text().endswith("n = 2 runs. 1 diverged: a mean ends where its first run does.")


def test_nothing_to_draw_but_runs_that_diverged_at_once(tmp_path, recwarn):
    assert report.curves([made("rbd", (), outcome="diverged", epochs=2)], tmp_path / "f.png", "quick").stat().st_size > 5000
    assert not recwarn.list


def test_no_records_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="records: got none, allowed at least one"):
        report.curves([], tmp_path / "f.png", "quick")
    assert list(tmp_path.iterdir()) == []


def test_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(OSError, match="figures"):
        report.curves(RUNS, tmp_path / "figures" / "f.png", "quick")


def test_report_does_without_torch():
    heavy = ("torch", "matplotlib", "pandas", "seaborn")
    code = f"import sys, rbd.suite.report; print(*(m for m in {heavy} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []  # matplotlib only for a picture


def test_a_picture_does_without_pandas_and_seaborn(tmp_path):
    code = ("import sys; from rbd.suite import report\n"
            "from rbd.suite.config import RunConfig; from rbd.suite.record import Point, Record\n"
            f"r = Record(RunConfig(epochs=1), 'finished', (Point(1, 1, 1, 1, 2.0, 50.0, None),), (1.0,), {{}})\n"
            f"report.curves([r], {str(tmp_path / 'f.png')!r}, 'quick')\n"
            "print(*(m for m in ('torch', 'pandas', 'seaborn') if m in sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [] and (tmp_path / "f.png").exists()


def test_epochs_of_a_row_are_all_said():
    runs = [made("sgd", (1.0,) * 5, 0), made("rbd", (1.0,) * 20, 0)]
    said = rows(report.table(runs, "quick"))[2][1]
    assert re.fullmatch(r"quick: 5,000 images, (5/20|20/5) epochs", said)
