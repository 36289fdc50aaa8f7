"""What every test may use: a tiny policy, a few prompts, the shared data, a guarded environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before anything imports huggingface_hub, which reads them once.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as choosy does, before torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# As in an environment that is active, where commands are shown by their names.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import pytest
from small_models import SIZE

ROOT = Path(__file__).resolve().parents[1]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)

# What libraries set on import or when a Trainer starts: no leak of a test, and put back all the same.
SET_BY_LIBRARIES = {
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),  # scikit-learn
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "CUDA_MODULE_LOADING"),  # torch
    "HF_XET_HIGH_PERFORMANCE",  # lm-evaluation-harness
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",  # torch.compile, which vLLM uses
    *(
        "PL_GLOBAL_SEED",
        "PL_SEED_WORKERS",
        "CUBLAS_WORKSPACE_CONFIG",
    ),  # lightning: seed_everything, deterministic
    *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "NODE_RANK", "LOCAL_RANK"),  # lightning: DDP
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU, and torch finds none")


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """One thread a worker where there are several."""
    import torch  # here, since the process that only hands tests out to workers needs no torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """Fail a test that leaves environment variables changed, and put them back for the next one."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changed.discard("PYTEST_CURRENT_TEST")
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    if leaked := sorted(changed - SET_BY_LIBRARIES):
        pytest.fail(f"the test left the environment changed: {', '.join(leaked)}; use monkeypatch.setenv")


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a byte tokenizer, as save_pretrained leaves them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-policy")
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SIZE,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_policy_dir(tmp_path_factory: pytest.TempPathFactory, tiny_policy_dir: Path) -> Path:
    """The tiny policy with attention heads of 32, the least that vLLM has kernels for."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide-policy")
    config = LlamaConfig.from_pretrained(tiny_policy_dir, head_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(folder)
    return folder


def _byte_tokenizer():
    """One token a byte, plus `<|bos|>` (never added by itself), `<|end|>` and `<|pad|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data beside the checkout; without it the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}")
    return folder


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """Twelve short prompts, one JSON object a line."""
    things = [
        "tea",
        "rain",
        "bread",
        "snow",
        "music",
        "chess",
        "soup",
        "maps",
        "tides",
        "owls",
        "ink",
        "kites",
    ]
    rows = [{"id": f"p{i:02d}", "prompt": f"Tell me about {thing}."} for i, thing in enumerate(things)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
