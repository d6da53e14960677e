from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_worker.embedded.executor import TorchExecutor
from hyperflexis_worker.sample_model import FILES, SampleShape, write_sample_model
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_plan import Chunk

SMALL = SampleShape(hidden=128, layers=2, vocab=1_024, context=256)
TEXT = "A function is an object, as “every” name in Python — naïve or not."


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "sample"
    assert write_sample_model(path, SMALL)
    return path


def greedy(executor: TorchExecutor, prompt: list[int], count: int) -> list[int]:
    sequence = Sequence("s", NO_ATTEMPT, prompt, [], Sampling(), count, blocks=list(range(1, 20)))
    for _ in range(count):
        chunk = Chunk(sequence, sequence.computed, sequence.to_compute)
        sequence.output += executor.execute([chunk]).tokens
        sequence.computed += chunk.length
    return sequence.output


def test_transformers_loads_it_and_says_the_same(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double()
    executor = TorchExecutor(directory, num_blocks=20, dtype="float64")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert executor.eos_token_ids == {tokenizer.eos_token_id} == {model.generation_config.eos_token_id}
    assert (executor.vocab_size, executor.context_length) == (len(tokenizer), 256)
    prompt = tokenizer.encode(TEXT)
    with torch.inference_mode():
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, min_new_tokens=40, max_new_tokens=40)
    assert greedy(executor, prompt, 40) == theirs[0, len(prompt) :].tolist()


def test_its_text_is_likelier_than_noise(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokens = torch.tensor([tokenizer.encode("The value of the expression is the name of the function.")])
    with torch.inference_mode():
        loss = model(tokens, labels=tokens).loss.item()
        noise = model(torch.randint(2, 1_024, (1, 200)), labels=torch.randint(2, 1_024, (1, 200))).loss.item()
    assert loss < 4.5 < 6.9 < noise  # ln(1024) = 6.9


def test_the_output_depends_on_the_whole_context(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokens = torch.randint(2, 1_024, (1, 60), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 0] = 2
    with torch.inference_mode():
        change = (model(tokens).logits[0, -1] - model(other).logits[0, -1]).abs().max()
    assert change > 1e-3


def test_the_same_arguments_write_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    write_sample_model(tmp_path / "again", SMALL)
    write_sample_model(tmp_path / "other", SMALL, seed=1)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "other")]
    assert weights[0] != weights[1]


def test_a_complete_directory_is_left_alone_and_a_broken_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nested" / "sample"
    assert write_sample_model(path, SMALL)
    (path / "config.json").write_text("mine")
    assert not write_sample_model(path, SMALL)
    assert (path / "config.json").read_text() == "mine"
    (path / "model.safetensors").unlink()
    assert write_sample_model(path, SMALL)
    assert (path / "config.json").read_text() != "mine"
    assert write_sample_model(path, SMALL, force=True)
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert [p.name for p in path.parent.iterdir()] == ["sample"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose a vocab of at most"):
        write_sample_model(tmp_path / "sample", SampleShape(vocab=900_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [{"hidden": 100}, {"layers": 0}, {"vocab": 10}])
def test_shapes_that_make_no_model(shape: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SampleShape(**shape)


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['sample_model', {str(tmp_path / 'm')!r}, '--hidden', '128', '--layers', '1', '--vocab', '512']\n"
        "from hyperflexis_worker.sample_model import main; main(); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert [line.rsplit(": ")[1] for line in done.stdout.splitlines()] == ["written", "complete already"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == sorted(FILES)
