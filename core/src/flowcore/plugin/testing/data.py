"""Checks of a data set. ``make()`` builds it; what is looked at is its ``tiny()``, so no check reads a user's files."""

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowcore.data import Batch, Source
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Data
from flowcore.plugin.testing.offline import no_network
from flowcore.plugin.testing.trees import apart, fault, must, same, shapes
from flowcore.seeds import generator
from flowcore.state import tree_map

Make = Callable[[], Data]


def _drawn(source: Source, count: int = 8) -> Batch:
    return source.batch(torch.arange(count) % len(source), generator(0, "check"))


def tiny_is_offline(make: Make) -> None:
    """``tiny()`` and what is read from it ask the network for nothing, not even in vain."""
    with no_network() as asked:
        try:
            tiny = make().tiny()
            _drawn(tiny.train())
            _drawn(tiny.val())
        except ConnectionError:
            if not asked:
                raise
    must(not asked, f"tiny() asked the network for {asked[:1]}; ship a small sample with the package, or draw one")


def tiny_takes_under_a_second(make: Make) -> None:
    """``tiny()`` and one batch of it take less than a second of the processor; imports are not counted."""
    took = []
    for _ in range(2):
        start = time.process_time()
        _drawn(make().tiny().train())
        took.append(time.process_time() - start)
    must(min(took) < 1, f"tiny() took {min(took):.1f} s; it should take less than one: read or draw fewer samples")


def tiny_is_the_same_twice(make: Make) -> None:
    """Two data sets that are built alike hold the same bytes, whatever the global seed."""
    batches = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            tiny = make().tiny()
            batches.append([_drawn(part) for part in (tiny.train(), tiny.val())])
    must(
        all(same(vars(a), vars(b)) for a, b in zip(*batches, strict=True)),
        "tiny() differs from one time to the next; draw it by flowcore.seeds.generator, not by a global seed",
    )


def tiny_has_the_same_spec(make: Make) -> None:
    """``tiny()`` has the spec of the data set it stands for, so that one network fits both."""
    whole, tiny = make().spec(), make().tiny().spec()
    must(whole == tiny, f"tiny().spec() is {tiny}; it should be that of the data set, {whole}")


def samples_are_as_the_spec_says(make: Make) -> None:
    """Shapes, types and values of training and held-out samples are those of ``spec()``, and none is NaN."""
    tiny = make().tiny()
    spec = tiny.spec()
    for name, source in (("train", tiny.train()), ("val", tiny.val())):
        batch = _drawn(source)
        rows = 8 if batch.samples is None else tree_map(len, batch.index)
        wrong = fault(spec.state, batch.x1, rows, f"{name}().batch().x1")
        if not wrong and spec.condition is not None:
            wrong = fault(spec.condition, batch.condition, 8, f"{name}().batch().condition")
        if not wrong and spec.condition is None and batch.condition is not None:
            wrong = f"{name}().batch() has a condition {shapes(batch.condition)}; spec().condition is None"
        must(not wrong, wrong)


def there_are_samples_to_train_on_and_to_hold_out(make: Make) -> None:
    """Neither ``train()`` nor ``val()`` is empty."""
    tiny = make().tiny()
    train, val = len(tiny.train()), len(tiny.val())
    must(train > 0, "tiny().train() is empty; it needs samples to train on")
    must(val > 0, "tiny().val() is empty; hold samples out, or give the training samples where there are too few")


def a_batch_depends_on_its_rows_and_generator_alone(make: Make) -> None:
    """``batch(rows, generator)`` is the same bytes each time, whatever was drawn before, and by what seed."""
    source = make().tiny().train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = _drawn(source)
        before = torch.random.get_rng_state()
        _drawn(source, 3)
        must(
            torch.equal(before, torch.random.get_rng_state()),
            "batch() draws from torch's global generator; draw from the generator it is given",
        )
        torch.manual_seed(2)
        again = _drawn(source)
    must(
        same(vars(first), vars(again)),
        "batch() gave other samples for the same rows and generator; let nothing but these decide",
    )


def its_fingerprint_is_a_hash_of_the_content(make: Make) -> None:
    """``fingerprint()`` is hexadecimal, of 8 digits or more, and the same for two data sets built alike."""
    one, other = make().tiny().fingerprint(), make().tiny().fingerprint()
    digits = isinstance(one, str) and len(one) >= 8 and set(one) <= set("0123456789abcdef")
    must(digits, f"fingerprint() is {one!r}; it should be a hex digest of the samples, such as sha256's")
    must(one == other, f"fingerprint() is {one} and then {other}; it should depend on the samples alone")


def conditions_fit_the_spec(make: Make) -> None:
    """``condition(count, None)`` is ``count`` conditions as ``spec()`` says, or None where there are none; ``null`` is
    the value of one of them."""
    tiny = make().tiny()
    spec, given = tiny.spec(), tiny.condition(5, None)
    if spec.condition is None:
        must(given is None, f"condition(5, None) is {shapes(given)}; spec().condition is None, so it should be None")
        return
    wrong = fault(spec.condition, given, 5, "condition(5, None)")
    must(not wrong, wrong)
    if spec.null is not None:
        try:
            tree_map(lambda c, n: torch.as_tensor(n).to(c).expand_as(c), given, spec.null)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise AssertionError(
                f"spec().null is {spec.null!r}, which is no value of one condition of {shapes(given)}: {error}"
            ) from error


def any_wish_is_met_or_refused(make: Make) -> None:
    """What a user asks for in words is understood, or refused by ``UsageError``; never by another error."""
    tiny = make().tiny()
    try:
        given = tiny.condition(2, "no-such-condition")
    except UsageError:
        return
    except Exception as error:
        raise AssertionError(
            f"condition(2, 'no-such-condition') raised {type(error).__name__}: {error}; raise UsageError with a way out"
        ) from error
    described = tiny.spec().condition
    wrong = "" if described is None else fault(described, given, 2, "condition(2, 'no-such-condition')")
    must(not wrong, wrong)


def _written(data: Data, samples: Batch, look: Callable[[Path], None]) -> None:
    """``look`` at the folder that ``samples`` were written to, the working directory being beside it."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        folder, here = base / "samples", base / "here"
        folder.mkdir()
        here.mkdir()
        with contextlib.chdir(here):
            data.write(samples, folder)
        strays = sorted({path.relative_to(base).parts[0] for path in base.rglob("*")} - {"samples", "here"})
        strays += sorted(f"./{path.name}" for path in here.iterdir())
        must(not strays, f"write(samples, folder) wrote {strays[:1]} outside of the folder it was given")
        look(folder)


def _samples(data: Data) -> Batch:
    """Samples as a run hands them to be written: nothing but the state, the condition and the count of calls."""
    real = _drawn(data.val())
    return Batch(real.x1, real.condition, index=real.index, samples=real.samples, extra={"calls": 1})


def samples_are_written(make: Make) -> None:
    """``write(samples, folder)`` makes at least one file that is not empty, in the folder and nowhere else."""

    def look(folder: Path) -> None:
        found = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
        must(bool(found), "write(samples, folder) wrote no file; write the samples in the formats of the field")

    tiny = make().tiny()
    _written(tiny, _samples(tiny), look)


def written_samples_read_back(make: Make) -> None:
    """``read_back(folder)`` gives what ``write`` wrote there, to a hundredth; see ``contracts.Checkable``."""
    tiny: Any = make().tiny()
    samples = _samples(tiny)

    def look(folder: Path) -> None:
        again = tiny.read_back(folder)
        must(
            shapes(again.x1) == shapes(samples.x1), f"read back is {shapes(again.x1)}; written was {shapes(samples.x1)}"
        )
        miss = apart(samples.x1, again.x1)
        must(
            miss < 0.01,
            f"samples that were written and read back differ by {miss:.3g}; write() and read_back() must agree",
        )

    _written(tiny, samples, look)


def noise_is_augmented_as_its_samples_are(make: Make) -> None:
    """What ``augment(batch, generator)`` does to x1 it does to x0; see ``contracts.Augmenting``."""
    tiny: Any = make().tiny()
    batch = _drawn(tiny.val())
    turned = tiny.augment(replace(batch, x0=batch.x1), generator(0, "check"))
    must(
        shapes(turned.x1) == shapes(batch.x1),
        f"augment() makes {shapes(turned.x1)} of {shapes(batch.x1)}; it should keep shapes and types",
    )
    must(
        same(turned.x0, turned.x1),
        "augment() does other things to x0 than to x1; it should turn both alike, so that they stay a pair",
    )


def samples_are_shown(make: Make) -> None:
    """``show(samples)`` is one PNG, and the same each time."""
    tiny = make().tiny()
    picture, again = tiny.show(_samples(tiny)), tiny.show(_samples(tiny))
    png = isinstance(picture, bytes) and picture.startswith(b"\x89PNG\r\n\x1a\n")
    must(png, f"show(samples) returned {type(picture).__name__} that is no PNG; return the bytes of one picture")
    hashes = hashlib.sha256(picture).hexdigest() == hashlib.sha256(again).hexdigest()
    must(hashes, "show(samples) drew another picture the second time; draw from a generator with a seed of its own")


ALWAYS = (
    tiny_is_offline, tiny_takes_under_a_second, tiny_is_the_same_twice, tiny_has_the_same_spec,
    samples_are_as_the_spec_says, there_are_samples_to_train_on_and_to_hold_out,
    a_batch_depends_on_its_rows_and_generator_alone, its_fingerprint_is_a_hash_of_the_content,
    conditions_fit_the_spec, any_wish_is_met_or_refused, samples_are_written, samples_are_shown,
)  # fmt: skip
