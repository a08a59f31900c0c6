import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from coserve.errors import ModelError
from coserve.models import load_weights
from tests.tiny import tiny_checkpoint, write_json

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("single"))


@pytest.fixture
def sharded(tmp_path):
    """Two shards: a and b in the first, c in the second."""
    save_file({"a": torch.arange(4.0), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(3)}, tmp_path / "two.safetensors")
    places = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    write_json(tmp_path / INDEX, {"metadata": {}, "weight_map": places})
    return tmp_path


def test_a_single_file_gives_every_tensor_as_it_is(checkpoint):
    expected = load_file(checkpoint / "model.safetensors")
    weights = dict(load_weights(checkpoint))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == expected[name].dtype
        assert torch.equal(weight, expected[name])


def test_shards_give_the_same_tensors_as_the_single_file(checkpoint, tmp_path):
    tiny_checkpoint(tmp_path, sharded=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    single, shards = dict(load_weights(checkpoint)), dict(load_weights(tmp_path))
    assert single.keys() == shards.keys()
    assert all(torch.equal(single[name], shards[name]) for name in single)


def test_the_number_format_of_the_file_is_kept(tmp_path):
    save_file({"w": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert dict(load_weights(tmp_path))["w"].dtype == torch.bfloat16


def test_a_tensor_outlives_the_reading_of_its_file(checkpoint):
    name, weight = next(load_weights(checkpoint))
    assert torch.equal(weight, load_file(checkpoint / "model.safetensors")[name])


def test_a_missing_shard_is_named_before_anything_is_read(sharded):
    (sharded / "two.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks two\.safetensors"):
        load_weights(sharded)


def test_a_tensor_that_the_index_promises_in_vain_is_named_with_its_shard(sharded):
    save_file({"a": torch.arange(4.0)}, sharded / "one.safetensors")
    with pytest.raises(ModelError, match=r"one\.safetensors lacks the tensor b"):
        list(load_weights(sharded))


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_truncated_file_is_named(sharded, kept):
    file = sharded / "two.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"two\.safetensors is truncated or corrupt"):
        list(load_weights(sharded))


def test_a_corrupt_header_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or corrupt"):
        list(load_weights(tmp_path))


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        list(load_weights(tmp_path))


@pytest.mark.parametrize("place", ["../one.safetensors", "/etc/passwd", 3])
def test_an_index_cannot_point_out_of_its_directory(sharded, place):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["a"] = place
    write_json(sharded / INDEX, index)
    with pytest.raises(ModelError, match="not the name of a file in this directory"):
        load_weights(sharded)


def test_an_index_without_a_map_is_refused(tmp_path):
    write_json(tmp_path / INDEX, {"metadata": {}})
    with pytest.raises(ModelError, match="has no weight_map"):
        load_weights(tmp_path)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only as pytorch_model\.bin.*convert it to safetensors"):
        load_weights(tmp_path)


def test_an_empty_or_absent_directory_is_said_to_be_that(tmp_path):
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        load_weights(tmp_path)
    with pytest.raises(ModelError, match="there is no directory"):
        load_weights(tmp_path / "nowhere")
