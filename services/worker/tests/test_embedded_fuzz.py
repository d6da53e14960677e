"""Broken model directories: a clear error, no crash, no allocation that a file's numbers ask for."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken_files import json_values, mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_models import make_model, save

from hyperflexis_worker.embedded.executor import TorchExecutor
from hyperflexis_worker.embedded.model_config import ModelConfig

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GROWTH_KB = 300_000
"""Resident memory may grow by so much over a whole test: the model here has 100 kB."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model("llama-group-7-tied-llama3"), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


@pytest.fixture(autouse=True)
def no_giant_allocation() -> Any:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB


def opens_or_says_why(directory: Path) -> None:
    """Anything but ValueError and OSError would be a crash."""
    try:
        TorchExecutor(directory, num_blocks=4)
    except (ValueError, OSError) as error:
        assert str(error)


@FUZZ
@given(data=st.data())
def test_config_json(broken: Path, checkpoint: Path, data: st.DataObject) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    for field in data.draw(st.lists(st.sampled_from([*sorted(config), "rope_scaling", "mlp_bias"]), max_size=3)):
        config[field] = data.draw(json_values)
    text = json.dumps(config).encode()
    (broken / "config.json").write_bytes(mutated(text, data) if data.draw(st.booleans()) else text)
    opens_or_says_why(broken)


@FUZZ
@given(data=st.data())
def test_safetensors_header(broken: Path, checkpoint: Path, data: st.DataObject) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = data.draw(st.sampled_from(sorted(header)))
    entry = header[name]
    match data.draw(st.sampled_from(["shape", "offsets", "dtype", "any", "name", "bytes"])):
        case "shape":
            entry["shape"] = data.draw(st.lists(st.integers(-1, 2**63), max_size=4))
        case "offsets":
            entry["data_offsets"] = data.draw(st.lists(st.integers(-1, 2**63), max_size=3))
        case "dtype":
            entry["dtype"] = data.draw(st.sampled_from(["F64", "I8", "BOOL", "F8_E4M3", "U64", "x"]))
        case "any":
            header[name] = data.draw(json_values)
        case "name":
            header[data.draw(st.text(max_size=20))] = header.pop(name)
        case _:
            (broken / "model.safetensors").write_bytes(mutated(whole, data))
            return opens_or_says_why(broken)
    packed = json.dumps(header).encode()
    stated = data.draw(st.sampled_from([len(packed), len(packed) - 1, 2**63, 0]))
    (broken / "model.safetensors").write_bytes(struct.pack("<Q", stated) + packed + body)
    opens_or_says_why(broken)


@FUZZ
@given(index=json_values | st.builds(lambda files: {"weight_map": files}, json_values))
def test_shard_index(broken: Path, index: Any) -> None:
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    opens_or_says_why(broken)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: (path / "config.json").unlink(), "config.json"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe"), "config.json is not JSON"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "not a safetensors file"),
        (lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "x"),
        (lambda path: (path / "model.safetensors.index.json").write_text("[]"), "no index of shards"),
        (lambda path: (path / "generation_config.json").write_text("7"), "generation_config.json"),
    ],
)
def test_what_is_broken_is_named(broken: Path, break_it: Callable[[Path], object], says: str) -> None:
    break_it(broken)
    with pytest.raises((ValueError, OSError), match=says):
        TorchExecutor(broken, num_blocks=4)


def test_a_billion_layers_are_refused_at_once(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    with pytest.raises(ValueError, match="num_hidden_layers"):
        ModelConfig.from_hf(config | {"num_hidden_layers": 10**9})
