"""The labelers, and the menu entries that build them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from small_models import MINILM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.contrastive import Contrastive
from choosy.labeling.dataset import Dataset
from choosy.labeling.function import Function
from choosy.labeling.judge.judge import Judge
from choosy.labeling.noisy import Noisy
from choosy.labeling.protocols import COMPARE, SCORE, Compares, ItemFailed, Scores
from choosy.labeling.relevance import Relevance
from choosy.labeling.reward_model import RewardModel
from choosy.labeling.vader import Vader
from choosy.labeling.weighted import Weighted
from choosy.main import compose
from choosy.types import Candidates, Message, Prompt, Response

PROMPT = Prompt("p", "How was the film?")
MENU = Path(__file__).parents[2] / "conf" / "labeler"


# --- VADER, functions, the data's own scores ---


def test_vader_prefers_positive_texts() -> None:
    vader = Vader()
    good, flat, bad = vader.score([(PROMPT, Response(t)) for t in ("I love it!", "It has a door.", "I hate it.")])
    assert 1 >= good > 0 == flat > bad >= -1
    assert vader.name.startswith("vader-3.")


def test_labelers_score_and_do_not_compare() -> None:
    for labeler in (Vader(), Dataset(), Function("math.hypot"), RewardModel("not/loaded")):
        assert isinstance(labeler, Scores)
        assert not isinstance(labeler, Compares)


@pytest.fixture
def my_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def longer(prompt, response):\n    return len(response) - len(prompt)\n\n\nnumber = 7\n"
    )
    (tmp_path / "my_broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)


def test_dataset_gives_the_scores_of_the_data() -> None:
    assert Dataset().score([(PROMPT, Response("a", gold=0.5)), (PROMPT, Response("b", gold=-2.0))]) == [
        0.5,
        -2.0,
    ]


def test_a_sampled_response_has_no_score_of_the_data() -> None:
    with pytest.raises(ItemFailed, match=r"prompt 'p' has no score: sampled responses have no gold; .*labeler=vader"):
        Dataset().score([(PROMPT, Response("a", gold=0.5)), (PROMPT, Response("b"))])


# --- relevance ---


@MINILM
def test_an_answer_on_the_subject_is_more_relevant() -> None:
    tea = Prompt("tea", "Why do people drink tea?")
    asked = Prompt("turns", "long", (Message("user", "Hello!"), Message("user", tea.text)))
    on, off, echo = Response("Tea is warm and calming."), Response("I'm happy to help!"), Response(tea.text)
    whole = Relevance(enough=1)
    of_tea = whole.score([(tea, r) for r in (on, off, echo)])
    assert of_tea[1] < 0.3 < 0.5 < of_tea[0] < of_tea[2] == pytest.approx(1.0)
    assert whole.score([(asked, on)]) == pytest.approx(of_tea[:1]), "the last turn is the prompt"
    assert Relevance(enough=0.5).score([(tea, r) for r in (on, off, echo)]) == pytest.approx([0.5, of_tea[1], 0.5])


def test_relevance_takes_no_language_model() -> None:
    for embedder in ("policy", "lm:some/model"):
        with pytest.raises(ValueError, match=rf"embedder={embedder} is a language model; type minilm"):
            Relevance(embedder)
    with pytest.raises(ValueError, match="not_there"):
        Relevance("./not_there")
    with pytest.raises(ValueError, match=r"enough=1.5 .*type a number in \(0, 1\]"):
        Relevance(enough=1.5)


# --- reward models: random weights, a vocabulary of letters ---

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\n"]
TEMPLATE = "{% for m in messages %}{{ m['role'][0] + ' ' + m['content'] + '[SEP]' }}{% endfor %}"
TEXTS = ["a", "a fine film", "no. no. no. never again.", "zzz", "it was", "a fine film indeed"]
ITEMS = [(Prompt("p", "how was it"), Response(text)) for text in TEXTS]


def save_tokenizer(folder: Path, **options: Any) -> None:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", vocabulary["[CLS]"])]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options).save_pretrained(folder)


SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 1.0,  # scores far apart
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """A reward model in a folder: saved("llama", num_labels=1, pad_token="[PAD]")."""

    def save(kind: str, num_labels: int = 1, **tokenizer: Any) -> str:
        torch.manual_seed(0)
        if kind == "bert":
            BertForSequenceClassification(BertConfig(num_labels=num_labels, **SIZES)).save_pretrained(tmp_path)
        elif kind == "llama":
            LlamaForSequenceClassification(LlamaConfig(num_labels=num_labels, **SIZES)).save_pretrained(tmp_path)
        else:
            LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
        save_tokenizer(tmp_path, **tokenizer)
        return str(tmp_path)

    return save


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("tokens", [{"pad_token": "[PAD]"}, {"eos_token": "[SEP]"}], ids=["pad", "eos as pad"])
@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_a_batch_scores_like_one_by_one(
    saved: Callable[..., str], kind: str, tokens: dict[str, str], template: str | None
) -> None:
    folder = saved(kind, chat_template=template, **tokens)
    alone = RewardModel(folder, batch_size=1).score(ITEMS)
    assert RewardModel(folder, batch_size=4).score(ITEMS) == pytest.approx(alone, abs=1e-3)
    assert len({round(score, 4) for score in alone}) == len(ITEMS), "the response matters"
    assert RewardModel(folder).score(ITEMS[::-1]) == pytest.approx(alone[::-1], abs=1e-3)
    assert RewardModel(folder).score([]) == []


def test_labels_of_a_reward_model_that_was_trained_further_in_its_folder_are_not_reused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    first = RewardModel(str(tmp_path)).terms.fingerprint
    assert RewardModel(str(tmp_path)).terms.fingerprint == first
    weights.write_bytes(bytes((3 << 20) - 1) + b"1")
    assert RewardModel(str(tmp_path)).terms.fingerprint != first
    assert RewardModel("owner/hub-id").terms.fingerprint == ""


def test_the_score_is_the_logit_of_the_text(saved: Callable[..., str]) -> None:
    """Without a template the text is prompt, newline, response; the special tokens are the tokenizer's."""
    folder = saved("bert", pad_token="[PAD]")
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = [2, *(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\n", *LETTERS].index(c) for c in "how was it\nzzz")]
    expected = model(torch.tensor([ids])).logits[0, 0].item()
    assert RewardModel(folder).score([ITEMS[3]]) == pytest.approx([expected], abs=1e-3)


def test_two_outputs_score_by_their_difference(saved: Callable[..., str]) -> None:
    folder = saved("llama", num_labels=2, pad_token="[PAD]", chat_template=TEMPLATE)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = 0
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = "u how was it[SEP]a zzz[SEP]"
    bad, good = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0].tolist()
    assert RewardModel(folder).score([ITEMS[3]]) == pytest.approx([good - bad], abs=1e-3)


def test_a_conversation_goes_through_the_template_turn_by_turn(saved: Callable[..., str]) -> None:
    labeler = RewardModel(saved("bert", pad_token="[PAD]", chat_template=TEMPLATE))
    turns = (Message("system", "be kind"), Message("user", "how was it"))
    one_turn, two_turns, other_text = labeler.score(
        [
            (Prompt("p", "how was it"), Response("fine")),
            (Prompt("p", "how was it", turns), Response("fine")),
            (Prompt("p", "as a person reads it", turns), Response("fine")),
        ]
    )
    assert one_turn != pytest.approx(two_turns)
    assert two_turns == pytest.approx(other_text)


def test_a_text_that_is_too_long_keeps_its_end(saved: Callable[..., str]) -> None:
    """The model takes 40 positions, less than max_length: the prompt is cut, the response is read."""
    labeler = RewardModel(saved("bert", pad_token="[PAD]"))
    long = Prompt("p", "a" * 200)
    one, other = labeler.score([(long, Response("zzz")), (long, Response("it was"))])
    assert one != pytest.approx(other)
    short = RewardModel(labeler.model, max_length=4).score([(long, Response("zzz")), (PROMPT, Response("zzz"))])
    assert short[0] == pytest.approx(short[1]), "[CLS] z z z"


def test_the_model_is_loaded_when_it_is_needed(saved: Callable[..., str]) -> None:
    labeler = RewardModel(saved("bert", pad_token="[PAD]"), dtype="bfloat16")
    assert "_loaded" not in vars(labeler)
    labeler.score(ITEMS)
    model, _, _ = labeler._loaded
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert labeler.name == f"reward_model:{labeler.model}@{labeler.max_length}"


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("bert", {"num_labels": 3, "pad_token": "[PAD]"}, r"has 3 outputs; wanted one \(the reward\) or two"),
        ("bert", {}, "neither a pad token nor an end-of-sequence token.*add a pad_token"),
        (
            "causal",
            {"pad_token": "[PAD]"},
            r"its weights lack \['score.weight'\].*noise; name a model trained",
        ),
    ],
)
def test_a_model_that_is_no_reward_model_is_an_error(
    saved: Callable[..., str], kind: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        RewardModel(saved(kind, **options)).score(ITEMS)


# --- the menu ---


@pytest.mark.usefixtures("my_rewards")
@pytest.mark.parametrize(
    ("entry", "required", "labeler"),
    [
        ("vader", {}, Vader),
        ("dataset", {}, Dataset),
        ("function", {"path": "my_rewards.longer"}, Function),
        ("reward_model", {"model": "not/loaded"}, RewardModel),
        ("noisy", {}, Noisy),
        pytest.param("relevance", {}, Relevance, marks=MINILM),
        pytest.param("cheerful_answer", {}, Weighted, marks=MINILM),
        ("judge", {"model": "toy", "base_url": "http://localhost:8000/v1"}, Judge),
        ("contrastive", {}, Contrastive),
    ],
)
def test_every_entry_of_the_menu_is_a_labeler(tmp_path: Path, entry: str, required: Any, labeler: type) -> None:
    typed = [f"labeler.{name}={value}" for name, value in required.items()]
    cfg = compose([f"labeler={entry}", *typed, f"run_dir={tmp_path}", "labels.budget=3"])
    buyer = instantiate(cfg.labels)
    assert isinstance(buyer, LabelBuyer)
    assert isinstance(buyer.labeler, labeler)
    assert (buyer.budget, buyer.evaluator) == (3, buyer)
    buyer.open("a")
    assert (tmp_path / "ledger.sqlite").exists()


def test_score_and_compare_list_the_labelers_of_the_menu() -> None:
    can: dict[str, set[str]] = {"score": set(), "compare": set()}
    for path in MENU.glob("*.yaml"):
        if path.stem in ("noisy", "mine"):  # which can what the labeler within can, or the user's class
            continue
        for method in can:
            if hasattr(get_class(OmegaConf.load(path)._target_), method):
                can[method].add(path.stem)
    assert can == {"score": set(SCORE), "compare": set(COMPARE)}, "mend SCORE and COMPARE in choosy.labeling.protocols"


def test_the_buyer_says_which_response_the_data_did_not_score(tmp_path: Path) -> None:
    buyer = LabelBuyer(Dataset(), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("a")
    with pytest.raises(ValueError, match=r"dataset gave no label for prompt 'p' .*response 1: 'sampled'.*no gold"):
        buyer.score([Candidates(PROMPT, (Response("given", gold=1.0), Response("sampled")))])
