"""A tiny random model in a folder, for commands that load one."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from trivium.language.export import export_folder
    from trivium.language.pretrained import LanguageModel
    from trivium.language.tokenizer import Tokenizer
    from trivium.language.transformer import Transformer, TransformerConfig

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["Anna met Ben in Rome. 0123456789 日本 🙂\n"] * 20, 320)
    config = TransformerConfig(
        tokenizer.vocab_size, context=128, width=32, layers=2, heads=4, groups=2, hidden=64
    )
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    export_folder(LanguageModel("tiny", model, tokenizer, None, "float32"), folder)
    return folder
