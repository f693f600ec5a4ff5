"""Judges that know nothing, and one that has learned a text by heart."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from flowcore.data import Batch
from flowcore.errors import InputError
from flowcore.plugin.contracts import Measured
from flowplat_text.hugging import fast
from flowplat_text.judge import JudgeConfig, _example, generative_perplexity
from flowplat_text.vocabulary import Vocabulary


@pytest.fixture
def measured(small, tmp_path):
    return Measured(small.data, tmp_path, 0, torch.device("cpu"), small)


def measure(samples, measured, judge, **options):
    return generative_perplexity(JudgeConfig(judge=str(judge), **options), samples, measured)


def judge(folder, **changes) -> str:
    """A model of bytes, saved."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "n_positions": 256, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=257, eos_token_id=257, **changes))
    model.save_pretrained(folder)
    fast(Vocabulary(), 256).save_pretrained(folder)
    return str(folder)


def test_to_a_judge_that_knows_nothing_every_token_is_one_of_all(measured, small, tmp_path) -> None:
    model = GPT2LMHeadModel.from_pretrained(judge(tmp_path / "judge"))
    torch.nn.init.zeros_(model.transformer.wte.weight)
    model.save_pretrained(tmp_path / "judge")
    samples = Batch(small.data.val().batch(torch.arange(8), torch.Generator()).x1)
    figure = measure(samples, measured, str(tmp_path / "judge"))["generative_perplexity"]
    assert figure.value == pytest.approx(258, rel=1e-5) == figure.floor
    assert figure.better == "neither"
    assert "in float32" in figure.note
    assert "repetition" in figure.note


def test_it_is_the_cross_entropy_of_each_text_whatever_stands_beside_it(measured, small, tmp_path) -> None:
    folder = judge(tmp_path / "judge")
    x = torch.full((3, 32), 257)  # texts of 6, 32 and no bytes
    x[0, :6], x[1] = torch.arange(97, 103), torch.randint(97, 123, (32,), generator=torch.Generator().manual_seed(1))
    figure = measure(Batch(x), measured, folder, batch_size=2)["generative_perplexity"]
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        costs = [model(input_ids=row, labels=row).loss.item() * (row.shape[1] - 1) for row in (x[:1, :6], x[1:2])]
    assert figure.value == pytest.approx(torch.tensor(sum(costs) / (5 + 31)).exp().item(), rel=1e-4)


def test_the_order_of_tokens_matters_to_a_judge_that_has_read(measured, small, tmp_path) -> None:
    model = GPT2LMHeadModel.from_pretrained(judge(tmp_path / "judge", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    source, draws = small.data.train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        x = source.batch(torch.randint(len(source), (16,), generator=draws), draws).x1
        x = torch.where(x > 255, 32, x)
        optimizer.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "judge")
    samples = Batch(small.data.val().batch(torch.arange(8), torch.Generator()).x1)
    figure = measure(samples, measured, str(tmp_path / "judge"))["generative_perplexity"]
    assert figure.value == pytest.approx(figure.floor, rel=0.1)
    assert figure.value < figure.baselines["shuffled"] / 3


def test_what_is_no_judge_is_told_in_one_line(measured, small, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    samples = Batch(torch.zeros(2, 32, dtype=torch.long))
    for folder, line in ((tmp_path / "gone", "is no folder"), (tmp_path / "empty", "holds no causal model")):
        with pytest.raises(InputError, match=line) as told:
            measure(samples, measured, str(folder))
        assert "\n" not in str(told.value)
    (tmp_path / "example").mkdir()
    assert measure(samples, measured, _example(tmp_path / "example")["judge"])
