"""A tiny transformer with random weights, saved as sentence-transformers saves one; nothing is downloaded."""

import json
from pathlib import Path

import pytest

#: Built once for all tests that read it.
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"where is my card ? the money back i want please a refund lost".split()]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a two-layer BERT of width 8, whose tokens are averaged and scaled to length 1."""
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    import torch
    from tokenizers import models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    found = tokenizers.Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    found.enable_padding(length=12)  # as some are saved: what is told beside it counts
    found.enable_truncation(4)
    found.save(str(folder / "tokenizer.json"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
    )
    return folder
