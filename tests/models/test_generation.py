import pytest
import transformers

from coserve.errors import ModelError
from coserve.models import GenerationConfig
from tests.tiny import write_json


def test_suggestions_are_read_as_transformers_writes_them(tmp_path):
    theirs = transformers.GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, eos_token_id=[2, 5])
    theirs.save_pretrained(tmp_path)
    assert GenerationConfig.from_directory(tmp_path) == GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, eos_token_ids=(2, 5)
    )


def test_without_the_file_nothing_is_suggested(tmp_path):
    assert GenerationConfig.from_directory(tmp_path) == GenerationConfig()


@pytest.mark.parametrize("change", [{"temperature": "hot"}, {"eos_token_id": "</s>"}, {"top_k": True}])
def test_a_malformed_field_is_named(tmp_path, change):
    write_json(tmp_path / "generation_config.json", change)
    with pytest.raises(ModelError, match=next(iter(change))):
        GenerationConfig.from_directory(tmp_path)
