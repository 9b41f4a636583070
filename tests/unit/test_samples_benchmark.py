"""benchmarks/samples: what is noted is what was drawn, and the comparison sees dependence and
nothing else."""

import numpy as np
import pytest
import torch

from benchmarks import samples, samples_report
from benchmarks.samples_compare import (
    COLUMN,
    FEWEST,
    QUANTITIES,
    Difference,
    ages,
    correlate,
    table,
)
from benchmarks.samples_report import compared, judged, named
from benchmarks.samples_run import DRAWN, Condition, Shown, alike, make_set, our_set, watched
from yolods.data.sampler import restored_generators, seed_generators

pytestmark = pytest.mark.slow

HALF = Condition(0.5, 1, 0)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A set of ours, of 60 images, of which every second becomes a mosaic."""
    return our_set(make_set(tmp_path_factory.mktemp("samples") / "set", 60), HALF)


def shown(seed: int, change=lambda drawn: None) -> list[Shown]:
    """A rank that was shown all phases of a set of 1,000 images, with quantities that are
    independent.

    `change` is made to what was drawn, (n, quantities).
    """
    rng = np.random.default_rng(seed)
    epochs = (0, 1, 298, 299, 300, 301)
    drawn = rng.uniform(-1, 1, (1000 * len(epochs), len(DRAWN)))
    drawn[:, COLUMN["index"]] = np.concatenate([rng.permutation(1000) for _ in epochs])
    drawn[:, COLUMN["partner 1"] : COLUMN["partner 3"] + 1] = rng.integers(
        1000, size=(len(drawn), 3)
    )
    drawn[:, COLUMN["mosaic"]] = drawn[:, COLUMN["mosaic"]] > 0
    change(drawn)
    return [Shown(np.repeat(epochs, 1000), drawn)]


def entries(change) -> set[str]:
    found = compared({HALF: (shown(1), shown(2, change))})
    return {one.entry for one in found.apart()}


def column(drawn, name):
    return drawn[:, COLUMN[name]]


def test_what_is_noted_is_what_was_drawn(half):
    plain = half[3, 7]
    with watched():
        noted = half[3, 7]
    row = dict(zip(DRAWN, noted.pop("drawn"), strict=True))
    assert torch.equal(noted["img"], plain["img"]) and torch.equal(noted["bboxes"], plain["bboxes"])
    assert (row["index"], row["boxes"], row["brightness"]) == (
        7,
        len(plain["cls"]),
        plain["img"].float().mean(),
    )
    with restored_generators():
        seed_generators("sample", half.seed, 3, 7)
        gains = np.random.uniform(-1, 1, 3)
    assert [row["hue"], row["saturation"], row["value"]] == gains.tolist()
    assert "drawn" not in half[3, 7]


def test_mosaics_and_their_partners_are_noted(half):
    with watched():
        rows = [dict(zip(DRAWN, half[0, index]["drawn"], strict=True)) for index in range(60)]
    for index, row in enumerate(rows):
        files = {
            half.im_files[index],
            *(half.im_files[int(p)] for p in partners(row) if row["mosaic"]),
        }
        assert files == set(half[0, index]["sources"])
        assert (
            np.isnan(row["centre x"])
            == np.isnan(row["distance of partners"])
            == (not row["mosaic"])
        )
        assert abs(row["translation x"]) <= 0.1 + 1e-6 and 0.5 <= row["scale"] <= 1.5
    assert 15 < sum(row["mosaic"] for row in rows) < 45


def partners(row):
    return [row[f"partner {k}"] for k in (1, 2, 3)]


def test_with_generators_seeded_alike_the_hue_gain_tells_of_the_mosaic(half):
    def told() -> float:
        with watched():
            rows = np.array([half[0, index]["drawn"] for index in range(60)])
        return ((column(rows, "hue") < 0) == (column(rows, "mosaic") == 1)).mean()

    with alike():
        assert told() == 1.0
    assert told() < 0.8


def test_what_is_independent_differs_nowhere():
    assert entries(lambda drawn: None) == set()


def test_dependence_is_seen_whether_it_rises_or_not():
    def follow(drawn):
        column(drawn, "boxes")[:] += 0.4 * column(drawn, "hue")

    def spread(drawn):
        column(drawn, "scale")[:] *= 0.4 + np.abs(column(drawn, "centre x"))

    def valley(drawn):
        column(drawn, "value")[:] = np.abs(column(drawn, "translation x")) + 0.8 * column(
            drawn, "value"
        )

    assert {"Pearson: hue x boxes", "Spearman: hue x boxes"} <= entries(follow)
    assert "spread-spread: centre x x scale" in entries(spread)
    assert {"rank-spread: value x translation x", "spread-rank: translation x x value"} & entries(
        valley
    )


def test_dependence_of_neighbours_and_order_are_seen():
    def lag(drawn):
        column(drawn, "hue")[1:] += 0.5 * column(drawn, "hue")[:-1]

    def repeated(drawn):
        column(drawn, "index")[1000:2000] = column(drawn, "index")[:1000]

    assert "Pearson: hue x hue of the next sample" in entries(lag)
    assert "Pearson: place in the epoch x place in the epoch in the next epoch" in entries(repeated)


def test_marginals_are_seen():
    def wider(drawn):
        column(drawn, "scale")[:] *= 1.2

    assert {"deviation: scale", "quantile 0.05: scale"} <= entries(wider)
    assert not {entry for entry in entries(wider) if "mean" in entry}


def test_errors_are_those_of_resampling():
    rng = np.random.default_rng(0)
    n = FEWEST * 2
    left = np.column_stack([rng.normal(size=n), rng.uniform(-1, 1, n)])
    right = np.column_stack(
        [left[:, 0] * 0.7 + rng.normal(size=n), left[:, 1] ** 2, rng.uniform(size=n)]
    )
    left[: n // 4, 1] = np.nan
    right[-n // 4 :, 0] = np.nan
    found, errors = correlate(left, right)
    rows = [rng.integers(n, size=n) for _ in range(400)]
    resampled = np.array([correlate(left[row], right[row])[0] for row in rows])
    assert np.allclose(errors, np.nanstd(resampled, axis=0), rtol=0.15)
    both = np.isfinite(left[:, 1] + right[:, 0])
    assert found[1, 0] == pytest.approx(np.corrcoef(left[both, 1], right[both, 0])[0, 1])


def test_neighbours_stand_beside_a_sample():
    first, second = shown(1)[0], shown(2)[0]
    made = table([first, second], "late")
    hue, index = QUANTITIES.index("hue"), QUANTITIES.index("index")
    late = first.drawn[2000:4000]
    assert made.shape == (4000, 4, len(QUANTITIES))
    assert np.array_equal(made[:2000, 0, hue], column(late, "hue"))
    assert (
        np.array_equal(made[:1999, 1, hue], column(late, "hue")[1:])
        and np.isnan(made[1999, 1]).all()
    )
    assert (
        np.array_equal(made[:1000, 2, index], made[:1000, 0, index])
        and np.isnan(made[1000:2000, 2]).all()
    )
    assert np.array_equal(made[:2000, 3, hue], column(second.drawn[2000:4000], "hue"))
    assert np.isnan(made[2000:, 3]).all()


def test_ages_of_partners():
    drawn = np.full((3, len(DRAWN)), np.nan)
    column(drawn, "index")[:] = [4, 2, 7]
    drawn[2, COLUMN["partner 1"] : COLUMN["partner 3"] + 1] = [7, 4, 9]
    assert ages([Shown(np.zeros(3, int), drawn)], "first").tolist() == [0, 2, np.inf]


def test_only_what_is_meant_has_a_name():
    def name(where: str, entry: str) -> str | None:
        return named(Difference(where, entry, 0.0, 1.0, 99.0))

    order = "Pearson: place in the epoch x place in the epoch in the next epoch"
    assert (
        name("mosaic 0, ranks 2, workers 2, first", order)
        == name("closed, pooled", order)
        == "orders"
    )
    assert name("mosaic 0, ranks 1, workers 2, first", order) is None
    assert (
        name("mosaic 1, pooled", "Spearman: partner 1 x partner 2 of the next sample") == "partners"
    )
    assert name("mosaic 1, pooled", "Spearman: hue x partner 2") is None
    assert name("mosaic 1, pooled", "quantile 0.05: distance of partners") == "partners"
    assert name("closed, pooled", "quantile 0.05: distance of partners") is None
    assert name("mosaic 1, pooled", "mean: partner 2") is None


def test_an_unnamed_difference_or_an_unseen_control_fails(monkeypatch):
    def follow(drawn):
        column(drawn, "boxes")[:] += column(drawn, "hue")

    same, other = (
        compared({HALF: (shown(1), shown(2))}),
        compared({HALF: (shown(1), shown(2, follow))}),
    )
    assert judged(same, control=other)[1] == 0
    assert judged(same, control=same)[1] == 1
    assert judged(other, control=other)[1] == 1
    monkeypatch.setattr(
        samples_report, "DELIBERATE", (("boxes", ".*", ".*boxes", "so that a test has one"),)
    )
    assert {named(one) for one in other.apart()} == {"boxes"}
    assert judged(other, control=other)[1] == 0


@pytest.mark.parametrize(
    "words", [["--samples", "30"], ["--samples", "1002"], ["--record", "no/such/folder/x.md"]]
)
def test_what_cannot_be_compared_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        samples.main(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err
