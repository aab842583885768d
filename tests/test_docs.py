"""The generated pages of docs/ are current."""

from conftest import REPOSITORY

from stages.params import Params, Words
from tools.docs import make_pages, make_params_tables, make_rerun_table, read_graph


def test_the_generated_pages_are_current():
    for path, text in make_pages().items():
        committed = (REPOSITORY / path).read_text(encoding="utf-8")
        assert committed == text, f"{path}: run `python -m tools.docs`"


def test_every_key_is_described():
    """A row per key of the schema, none of whose cells is empty."""
    rows = [row for table in make_params_tables() for row in table.splitlines() if "| `" in row]
    keys = sum(
        len(getattr(field.annotation, "model_fields", {"": field}))
        for field in Params.model_fields.values()
    )
    # `fetch_imagery.splits` has three rows instead of one, and `prompt.words` one more per key.
    assert len(rows) == keys + 2 + len(Words.model_fields)
    for row in rows:
        key, values, demo, meaning = row.strip("| ").split(" | ")
        assert values and demo and meaning, key


def test_a_change_reruns_its_readers_and_all_that_follow():
    graph = """
        node1["make@a"]
        node2["make@b"]
        node3["train"]
        node4["score"]
        node1-->node3
        node3-->node4
    """
    stages = {
        "make": {"foreach": ["a", "b"], "do": {"params": ["source.${item}"]}},
        "train": {
            "foreach": {"c": {"more": "seed"}, "d": {"more": "score.n"}},
            "do": {"params": ["train", "${item.more}", "seed"]},
        },
        "score": {"params": ["seed", "train.steps", "train.lr"]},
    }
    lines = make_rerun_table(stages, read_graph(graph)).splitlines()[2:]
    assert lines == [
        "| `source` | make | train, score |",
        "| `train` | train, score (`steps`, `lr`) |  |",
        "| `seed` | train, score |  |",
        "| `score` | train (`n`) | score |",
    ]
