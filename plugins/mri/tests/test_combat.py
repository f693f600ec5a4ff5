import numpy as np
import pytest

from flowcore.errors import InputError
from flowplat_mri.combat import adjusted, combat

NONE = np.zeros((120, 0))


@pytest.fixture
def study():
    """60 scans on each of two scanners of 40 regions; the second shifts and scales each; half of an age effect of 2."""
    rng = np.random.default_rng(0)
    age = np.concatenate([rng.uniform(-1, 1, 60), rng.uniform(0, 2, 60)])  # older on the second
    clean = 10 + rng.normal(size=(120, 40)) + 2 * age[:, None]
    moved = clean.copy()
    moved[60:] = (clean[60:] - 10 - 2 * age[60:, None]) * rng.uniform(1.5, 2.5, 40) + rng.normal(3, 1, 40)
    moved[60:] += 10 + 2 * age[60:, None]
    return clean, moved, age, ["a"] * 60 + ["b"] * 60


def test_shift_and_scale_go_and_a_covariate_stays(study):
    clean, moved, age, sites = study
    made = adjusted(moved, sites, age[:, None])
    left = made - 2 * age[:, None]
    assert np.abs(left[:60].mean(0) - left[60:].mean(0)).mean() < 0.3 < np.abs((moved - clean)[60:].mean(0)).mean()
    assert left[60:].std(0) / left[:60].std(0) == pytest.approx(1, abs=0.25)
    slopes = [np.polyfit(np.tile(age, 40), part.T.ravel(), 1)[0] for part in (moved, made)]
    assert slopes[0] > 3  # the shift that goes with age is taken for age
    assert slopes[1] == pytest.approx(2, abs=0.15)


def test_the_target_stays_as_it_is(study):
    _, moved, age, sites = study
    made = adjusted(moved, sites, age[:, None], "a")
    np.testing.assert_array_equal(made[:60], moved[:60])
    assert (made - 2 * age[:, None])[60:].mean() == pytest.approx((moved - 2 * age[:, None])[:60].mean(), abs=0.1)


def test_one_region_is_brought_to_equal_means_and_deviations():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 1, 60), rng.normal(5, 3, 60)])[:, None]
    made = adjusted(values, ["a"] * 60 + ["b"] * 60, NONE)
    assert made[:60].mean() == pytest.approx(made[60:].mean())
    assert made[:60].std() == pytest.approx(made[60:].std())


def test_few_scans_are_pulled_towards_what_regions_have_in_common():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(64, 50))
    values[60:] += 2  # four scans: means of regions are off by half of a deviation
    made = adjusted(values, ["a"] * 60 + ["b"] * 4, np.zeros((64, 0)), "a")
    plain = values[60:].mean(0) - values[:60].mean(0)
    removed = (values[60:] - made[60:]).mean(0)
    assert removed.mean() == pytest.approx(2, abs=0.15)
    assert removed.std() < 0.8 * plain.std()


def test_a_table_in_and_a_table_out(study, tmp_path):
    _, moved, age, sites = study
    path, out = tmp_path / "regions.csv", tmp_path / "out.csv"
    lines = ["subject,site,age,sex,left,right"]
    lines += [f"s{i},{sites[i]},{age[i]},{'mf'[i % 2]},{moved[i, 0]},{moved[i, 1]}" for i in range(120)]
    path.write_text("\n".join(lines))
    found = combat(None, [path], out, covariates=("age", "sex"))
    assert found == {"rows": 120, "sites": 2, "regions": 2, "covariates": ["age", "sex"]}
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert rows[0] == lines[0].split(",")
    assert [row[:4] for row in rows[1:]] == [line.split(",")[:4] for line in lines[1:]]
    design = np.column_stack([age, [i % 2 == 0 for i in range(120)]]).astype(float)
    np.testing.assert_allclose(
        np.array(rows[1:])[:, 4:].astype(float), adjusted(moved[:, :2], sites, design), rtol=1e-9
    )
    for options, words in (
        ({"site": "scanner"}, "no column 'scanner'; it has subject, site, age"),
        ({"target": "c"}, "no row of site=c; it has a, b"),
        ({"leave": ("age", "left", "right")}, "no column of numbers besides"),
    ):
        with pytest.raises(InputError, match=words):
            combat(None, [path], None, **options)
    path.write_text("site,group,x\n" + "".join(f"{s},{s},{v}\n" for s in "ab" for v in (1, 2, 4)))
    with pytest.raises(InputError, match="a covariate tells the same as site"):
        combat(None, [path], None, covariates=("group",))
    path.write_text("site,x\na,1\na,2\na,3\nb,1\n")
    with pytest.raises(InputError, match="has 1 rows of site=b; a scale takes three"):
        combat(None, [path], None)
