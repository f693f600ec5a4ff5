import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flowcore.data import Rows
from flowcore.errors import IntegrityError, MachineError
from flowcore.files import sha256
from flowcore.seeds import generator
from flowcore.training.checkpoints import MANIFEST, latest, load, load_weights, save, verify
from flowcore.training.loop import TrainState, begin, fit
from flowcore.training.settings import TrainSettings

FILES = ["model.safetensors", "ema.safetensors", "optim.safetensors", "state.json"]
each_file = pytest.mark.parametrize("name", FILES)
SETTINGS = TrainSettings(steps=20, batch_size=8, lr=0.01, ema=0.6, warmup=3, schedule="cosine")
DATA = Rows(torch.randn(30, 3, generator=generator(0, "data")))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SELU(), nn.Dropout(0.2), nn.Linear(8, 3))


def loss(network, batch, g):
    x = batch.x1 + torch.randn(batch.x1.shape, generator=g)
    return (network(x) - batch.x1).square().mean(1)


def trained(steps, state=None, settings=SETTINGS):
    """A state after ``steps`` of the 20 steps."""

    class Enough(Exception):  # noqa: N818
        pass

    def stop(step):
        if step == steps:
            raise Enough

    state = state or begin(network(), settings)
    with contextlib.suppress(Enough):
        fit(state, loss, DATA, settings, 0, lambda row: None, lambda state: None, stop)
    return state


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Checkpoints of steps 5 and 10, to be copied."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = trained(5)
    save(folder, state)
    save(folder, trained(10, state))
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "checkpoints")


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


# what is stored


def test_a_checkpoint_is_a_folder_of_plain_files_and_the_latest_is_named(tmp_path):
    state = trained(3)
    final = save(tmp_path / "deep" / "down", state)
    assert final == tmp_path / "deep" / "down" / "step-00000003"
    assert sorted(path.name for path in final.iterdir()) == sorted([*FILES, MANIFEST])
    assert (final.parent / "latest").read_text() == "step-00000003\n"
    assert sorted(path.name for path in final.parent.iterdir()) == ["latest", "step-00000003"]
    record = json.loads((final / "state.json").read_text())
    assert (record["step"], record["ema_updates"]) == (3, 3)


def test_the_manifest_holds_the_sha256_of_every_file(folder):
    for checkpoint in folder.glob("step-*"):
        hashes = json.loads((checkpoint / MANIFEST).read_text())
        assert hashes == {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in FILES}
        assert hashes["state.json"] == sha256(checkpoint / "state.json")
        verify(checkpoint)


def test_raw_and_averaged_weights_come_back_to_the_last_bit(tmp_path):
    state = trained(4)
    final = save(tmp_path, state)
    for averaged, wanted in ((True, state.ema.module), (False, state.network)):
        loaded = network(seed=9)
        load_weights(final, loaded, averaged)
        assert equal(loaded.state_dict(), wanted.state_dict())
    assert not equal(state.network.state_dict(), state.ema.module.state_dict())
    by_default = network(seed=9)
    load_weights(final, by_default)
    assert equal(by_default.state_dict(), state.ema.module.state_dict())


def test_every_dtype_and_layout_comes_back(tmp_path):
    class Odd(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.narrow = nn.Parameter(torch.full((2, 3), value, dtype=torch.bfloat16))
            self.turned = nn.Parameter((torch.arange(6.0).view(2, 3) * value).T)  # not contiguous
            self.tied = self.turned
            self.register_buffer("count", torch.tensor(int(value)))
            self.register_buffer("mask", torch.tensor([value > 1, False]))
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("wide", torch.tensor(value / 3, dtype=torch.float64))

    odd = Odd(3.0)
    final = save(tmp_path, begin(odd, SETTINGS))
    other = Odd(1.0)
    load_weights(final, other, averaged=False)
    assert equal(other.state_dict(), odd.state_dict())
    assert other.tied is other.turned


def test_the_tensors_of_the_optimiser_are_stored(tmp_path):
    state = trained(4)
    tensors = load_file(save(tmp_path, state) / "optim.safetensors")
    kept = state.optimizer.state_dict()["state"]
    names = [name for name, _ in state.network.named_parameters()]
    wanted = {f"{names[p]}/{name}": value for p, entries in kept.items() for name, value in entries.items()}
    assert {name.split("/")[1] for name in wanted} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(wanted) == 3 * len(list(state.network.parameters()))
    assert equal(tensors, wanted)


def test_numbers_of_an_optimiser_are_stored_beside_its_tensors(tmp_path):
    """Rprop and others keep plain numbers; they go to the JSON, by the same names."""
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.state[net.weight] = {"calls": 7, "mean": torch.tensor([2.0])}
    state = TrainState(net, begin(net, SETTINGS).ema, optimizer, 3)
    final = save(tmp_path, state)
    record = json.loads((final / "state.json").read_text())["optimizer"]
    assert record["scalars"] == {"weight/calls": 7}
    assert record["groups"][0]["lr"] == 0.1
    assert load_file(final / "optim.safetensors")["weight/mean"].tolist() == [2.0]


def test_a_checkpoint_holds_all_that_a_run_needs_to_go_on_to_the_last_bit(tmp_path):
    """Rebuilt from the files alone, a run of 7 steps goes on to the weights of one that never stopped."""
    final = save(tmp_path, trained(7))
    state = begin(network(seed=9), SETTINGS)
    assert load(final, state) == {}
    resumed, whole = trained(20, state), trained(20)
    assert equal(resumed.network.state_dict(), whole.network.state_dict())
    assert equal(resumed.ema.module.state_dict(), whole.ema.module.state_dict())


def test_saving_does_not_disturb_the_run(tmp_path):
    state = trained(6)
    save(tmp_path, state)
    assert equal(trained(12, state).network.state_dict(), trained(12).network.state_dict())


# which one is used


def test_the_latest_is_the_one_of_most_steps(folder):
    assert latest(folder).name == "step-00000010"
    state = trained(1)
    for step in (9, 11, 100):
        state.step = step
        save(folder, state)
    assert latest(folder).name == "step-00000100"
    assert (folder / "latest").read_text() == "step-00000100\n"


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    save(tmp_path, trained(5))
    other = begin(network(seed=3), SETTINGS)
    other.step = 5
    final = save(tmp_path, other)
    assert equal(load_file(final / "model.safetensors"), other.network.state_dict())
    verify(final)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    for empty in (tmp_path, tmp_path / "not there"):
        with pytest.raises(IntegrityError, match="holds no checkpoint") as error:
            latest(empty)
        assert str(empty) in str(error.value)
        assert error.value.exit_code == 5


# damage


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x01
    path.write_bytes(data)


def remove_and_make_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "first byte flipped": lambda path: flip(path, 0.0),
    "middle byte flipped": flip,
    "last byte flipped": lambda path: flip(path, 1.0),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": remove_and_make_a_folder,
}


@each_file
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_to_a_file_is_noticed_and_named_and_the_checkpoint_before_is_used(folder, name, damage):
    newest = folder / "step-00000010"
    damage(newest / name)
    with pytest.raises(IntegrityError, match="damaged") as error:
        verify(newest)
    assert str(newest / name) in str(error.value)
    assert latest(folder).name == "step-00000005"


MANIFESTS = {
    "missing": None,
    "empty": b"",
    "truncated": b'{"model.safetensors": "ab',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "nothing": b"null",
    "no files": b"{}",
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_damage_to_the_manifest_is_noticed_and_named_and_the_checkpoint_before_is_used(folder, content):
    manifest = folder / "step-00000010" / MANIFEST
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    with pytest.raises(IntegrityError) as error:
        verify(manifest.parent)
    assert str(manifest) in str(error.value)
    assert latest(folder).name == "step-00000005"


def test_a_flipped_byte_of_the_manifest_is_noticed_wherever_it_is(folder):
    manifest = folder / "step-00000010" / MANIFEST
    whole = manifest.read_bytes()
    for place in range(0, len(whole), 3):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        with pytest.raises(IntegrityError):
            verify(manifest.parent)


def test_a_file_where_a_checkpoint_should_be_is_no_checkpoint(folder):
    (folder / "step-00000099").write_text("")
    (folder / "step-00000098").mkdir()
    assert latest(folder).name == "step-00000010"


def test_when_no_checkpoint_is_whole_all_are_named(folder):
    for step in ("step-00000005", "step-00000010"):
        flip(folder / step / "ema.safetensors")
    with pytest.raises(IntegrityError) as error:
        latest(folder)
    for step in ("step-00000005", "step-00000010"):
        assert str(folder / step / "ema.safetensors") in str(error.value)


def test_a_lost_or_wrong_latest_file_loses_nothing(folder):
    (folder / "latest").unlink()
    assert latest(folder).name == "step-00000010"
    (folder / "latest").write_text("step-00000777\n")
    assert latest(folder).name == "step-00000010"


# pickles


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@each_file
@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("signed", [False, True], ids=["hash wrong", "hash right"])
def test_a_pickle_in_place_of_a_file_never_runs(folder, tmp_path, name, zipped, signed):
    ran, newest = tmp_path / "ran", folder / "step-00000010"
    if zipped:
        torch.save(Payload(ran), newest / name)
    else:
        (newest / name).write_bytes(pickle.dumps(Payload(ran)))
    if signed:
        hashes = json.loads((newest / MANIFEST).read_text()) | {name: sha256(newest / name)}
        (newest / MANIFEST).write_text(json.dumps(hashes))
    else:
        with pytest.raises(IntegrityError):
            verify(newest)
    chosen = latest(folder)
    assert chosen.name == ("step-00000010" if signed else "step-00000005")
    for averaged in (True, False):
        wanted = "ema.safetensors" if averaged else "model.safetensors"
        if signed and name == wanted:
            with pytest.raises(Exception, match="header"):
                load_weights(chosen, network(), averaged)
        else:
            load_weights(chosen, network(), averaged)
    assert not ran.exists()


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


# interruption


def leave_temporary(folder, step):
    """What a save that was killed leaves behind."""
    temporary = folder / f".step-{step:08d}.tmp"
    temporary.mkdir()
    (temporary / "model.safetensors").write_bytes(b"half")
    return temporary


@pytest.mark.parametrize("step", [15, 12], ids=["of the same step", "of another step"])
def test_an_interrupted_save_is_ignored_and_cleaned_by_the_next(folder, step):
    temporary = leave_temporary(folder, step)
    assert latest(folder).name == "step-00000010"
    state = trained(1)
    state.step = 15
    verify(save(folder, state))
    assert latest(folder).name == "step-00000015"
    assert not temporary.exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step saved before"])
def test_a_disk_that_fills_up_at_any_moment_loses_nothing_that_was_saved(folder, monkeypatch, again):
    """The n-th sync fails, for every n, until a save needs no more of them."""
    state, sync = trained(1), os.fsync
    state.step = 10 if again else 15
    for n in range(50):
        left = n

        def full(descriptor):
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, "no space left on device")
            left -= 1
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            save(folder, state)
        except MachineError:
            assert latest(folder).name in ("step-00000010", "step-00000015")
            verify(folder / "step-00000005")
            verify(folder / "step-00000010")
        else:
            break
    assert n >= len(FILES) + 1  # every file is synced before the checkpoint has its name
    monkeypatch.undo()
    verify(save(folder, state))
    assert not list(folder.glob(".*"))


def test_every_file_is_on_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    final, synced, sync = tmp_path / "step-00000003", [], os.fsync

    def watch(descriptor):
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), final.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    save(tmp_path, trained(3))
    assert {name for name, named in synced if not named} == {*FILES, MANIFEST, ".step-00000003.tmp"}
    assert (tmp_path.name, True) in synced  # and the folder that holds the name, after
