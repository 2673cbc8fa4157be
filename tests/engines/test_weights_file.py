from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from mpn.engines.weights_file import load_weights, read_weights_file, save_weights
from mpn.errors import EngineError, InputError, OutputError
from mpn.types import Float32Array


def weights() -> dict[str, Float32Array]:
    rng = np.random.default_rng(0)
    return {
        "backbone.conv1.weight": rng.standard_normal((4, 3, 3, 3), np.float32),
        "fuse.bias": rng.standard_normal(1, np.float32),
        "gain": np.float32(2.5).reshape(()),
    }


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "object-1.weights"
    save_weights(path, weights(), {"key": "abc"})
    loaded, metadata = read_weights_file(path)
    assert metadata == {"key": "abc"}
    assert loaded.keys() == weights().keys()
    for name, values in weights().items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], values)
        loaded[name] += 1  # the caller's own
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_view_of_any_order_is_saved_as_it_reads(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    save_weights(tmp_path / "w", {"t": values})
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["t"], values)


def test_the_layout_is_that_of_safetensors(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", weights())
    content = (tmp_path / "w").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert length % 8 == 0
    index = json.loads(content[8 : 8 + length])
    assert index.pop("__metadata__")["format"] == "mpn-weights-1"
    for name, values in weights().items():
        begin, end = index[name]["data_offsets"]
        assert (index[name]["dtype"], index[name]["shape"]) == ("F32", list(values.shape))
        data = np.frombuffer(content[8 + length :][begin:end], "<f4")
        np.testing.assert_array_equal(data.reshape(values.shape), values)


def test_saving_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(path, weights())
    with pytest.raises(InputError, match="'bad' must be float32, got float64"):
        save_weights(path, {"bad": np.zeros(2)})  # type: ignore[dict-item]
    assert load_weights(path).keys() == weights().keys()
    with pytest.raises(OutputError, match="cannot write"):
        save_weights(tmp_path / "missing" / "w", weights())
    assert [item.name for item in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("offset", [0, 9, -1, -20])
def test_a_flipped_byte_is_found(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "w"
    save_weights(path, weights())
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x20
    path.write_bytes(content)
    with pytest.raises(EngineError, match="holds no weights of this package, or is damaged"):
        load_weights(path)


@pytest.mark.parametrize("kept", [0, 5, 40, -4])
def test_a_file_cut_short_is_found(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w"
    save_weights(path, weights())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EngineError, match="is damaged"):
        load_weights(path)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"__metadata__": {"format": "other"}}, "its format is not"),
        ({"__metadata__": {"format": "mpn-weights-1", "sha256": "0" * 64}}, "differs from"),
        ({}, "'__metadata__' is missing"),
        ([], "must be a JSON object"),
    ],
)
def test_another_file_is_not_taken_for_weights(tmp_path: Path, index: object, says: str) -> None:
    header = json.dumps(index).encode()
    path = tmp_path / "w"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(EngineError, match=says) as info:
        load_weights(path)
    assert "\n" not in str(info.value)


def test_offsets_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(path, {"gain": np.ones(2, np.float32)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"data_offsets": [0, 8]', b'"data_offsets": [0,99]'))
    with pytest.raises(EngineError, match="lie outside of it"):
        load_weights(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        load_weights(tmp_path / "none")
