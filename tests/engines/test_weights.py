from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mpn.engines.weights import load_weights, read_weights_file, save_weights
from mpn.errors import EngineError, InputError, OutputError
from mpn.types import Float32Array


def weights() -> dict[str, Float32Array]:
    rng = np.random.default_rng(0)
    return {
        "backbone.conv1.weight": rng.standard_normal((4, 3, 3, 3), np.float32),
        "fuse.bias": rng.standard_normal(1, np.float32),
        "gain": np.float32(2.5).reshape(()),
    }


def test_saved_weights_load_equal(tmp_path: Path) -> None:
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


def test_transposed_array_loads_equal(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    save_weights(tmp_path / "w", {"t": values})
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["t"], values)


def test_saved_file_is_read_by_safetensors(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", weights())
    loaded = safetensors.numpy.load_file(tmp_path / "w")
    assert loaded.keys() == weights().keys()
    for name, values in weights().items():
        np.testing.assert_array_equal(loaded[name], values, strict=True)


def write_as_0_1(path: Path, values: dict[str, Float32Array]) -> None:
    """Write the format of version 0.1.0: data and digest in the order of the dict."""
    index: dict[str, object] = {}
    data = b""
    for name, array in values.items():
        span = [len(data), len(data) + array.nbytes]
        index[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    digest = hashlib.sha256(data).hexdigest()
    metadata = {"key": "abc", "format": "mpn-weights-1", "sha256": digest}
    header = json.dumps({"__metadata__": metadata, **index}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_file_of_0_1_0_loads_equal(tmp_path: Path) -> None:
    values = dict(reversed(weights().items()))
    assert list(values) != sorted(values)  # control: the order of the data matters
    write_as_0_1(tmp_path / "w", values)
    loaded, metadata = read_weights_file(tmp_path / "w")
    assert metadata == {"key": "abc"}
    assert loaded.keys() == values.keys()
    for name, array in values.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)
    content = bytearray((tmp_path / "w").read_bytes())
    content[-1] ^= 1
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(EngineError, match="its content differs from its digest"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "I32"])
def test_file_of_another_dtype_is_refused(tmp_path: Path, dtype: str) -> None:
    """NumPy has no bfloat16 and float8: safetensors raised other exceptions."""
    path, count = tmp_path / "w", {"F16": 6, "BF16": 6, "F8_E4M3": 12, "I32": 3}[dtype]
    tensor = {"dtype": dtype, "shape": [count], "data_offsets": [0, 12]}
    metadata = {"format": "mpn-weights-2", "sha256": hashlib.sha256(bytes(12)).hexdigest()}
    header = json.dumps({"gain": tensor, "__metadata__": metadata}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(EngineError, match=f"weight 'gain' is {dtype}, not F32"):
        load_weights(path)


def test_message_about_a_long_header_is_short(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(path, weights())
    data = path.read_bytes()[8:].replace(b'"F32"', b'"' + b"x" * 5000 + b'"')
    path.write_bytes((data.rindex(b"}") + 1).to_bytes(8, "little") + data)
    with pytest.raises(EngineError, match="is damaged") as caught:
        load_weights(path)
    assert len(str(caught.value)) < 1000


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(path, weights())
    with pytest.raises(InputError, match="'bad' must be float32, got float64"):
        save_weights(path, {"bad": np.zeros(2)})  # type: ignore[dict-item]
    assert load_weights(path).keys() == weights().keys()
    with pytest.raises(OutputError, match="cannot write"):
        save_weights(tmp_path / "missing" / "w", weights())
    assert [item.name for item in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("offset", [0, 9, -1, -20])
def test_flipped_byte_is_an_error(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "w"
    save_weights(path, weights())
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x20
    path.write_bytes(content)
    with pytest.raises(EngineError, match="holds no weights of this package, or is damaged"):
        load_weights(path)


@pytest.mark.parametrize("kept", [0, 5, 40, -4])
def test_file_cut_short_is_an_error(tmp_path: Path, kept: int) -> None:
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
        ({}, "its format is not"),
        ([], "invalid JSON in header"),
    ],
)
def test_other_file_is_an_error(tmp_path: Path, index: object, says: str) -> None:
    header = json.dumps(index).encode()
    path = tmp_path / "w"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(EngineError, match=says) as info:
        load_weights(path)
    assert "\n" not in str(info.value)


def test_offset_outside_the_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(path, {"gain": np.ones(2, np.float32)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"data_offsets":[0,8]', b'"data_offsets":[0,9]'))
    with pytest.raises(EngineError, match="is damaged"):
        load_weights(path)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        load_weights(tmp_path / "none")
