"""The committed tables are those of the committed records, and every experiment can be built."""

import json

import pytest
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS
from benchmarks.run import slug
from benchmarks.speed_table import speed_page
from benchmarks.table import page, records


def test_the_results_page_is_that_of_the_records() -> None:
    assert (RESULTS / "README.md").read_text() == page(), "run `python -m benchmarks.table --write`"


def test_the_speed_page_is_that_of_the_records() -> None:
    assert (RESULTS / "speed.md").read_text() == speed_page(), "run `python -m benchmarks.speed_table --write`"


@pytest.mark.parametrize("experiment", sorted(EXPERIMENTS))
def test_rows_have_different_names_and_records_belong_to_a_row(experiment: str) -> None:
    data, rows = EXPERIMENTS[experiment]
    labels = [slug(row.label) for row in rows()]
    assert len(set(labels)) == len(labels)
    for record in records(experiment):
        assert slug(record["row"]) in labels
        assert record["data"] == data.name
        assert {"commit", "date", "hardware", "torch"} <= record["provenance"].keys()


def test_records_are_sound_json() -> None:
    for path in RESULTS.rglob("*.json"):
        assert isinstance(json.loads(path.read_text()), dict), path
