"""Compares our losses with TRL's trainers on random log-probs and writes the table of docs/methods.md.

`make parity` installs TRL into .venv-trl once. Each loss is the one of conf/loss with the settings of its row; its
value and its gradient in every token's log-prob are compared pair by pair, or summed where TRL ranks within a batch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, ROOT, peer_python, write_between

from choosy.methods.loss_inputs import Facts, Loss, LossInputs, TokenLogps, form_of

PAGE, START, END = (
    ROOT / "docs" / "methods.md",
    "<!-- parity: written by benchmarks/parity.py -->",
    "<!-- end of parity -->",
)
PAIRS, CLOSE = 32, 1e-5


class Row(NamedTuple):
    """A loss with settings of ours, and what TRL calls the same."""

    loss: str
    settings: tuple[str, ...]
    trainer: str
    types: tuple[str, ...]
    theirs: dict[str, Any]
    dtype: str = "float64"
    together: bool = False


ROWS = [
    Row("sigmoid", (), "dpo", ("sigmoid",), {}),
    Row("hinge", (), "dpo", ("hinge",), {}),
    Row("ipo_averaged", (), "dpo", ("ipo",), {}),
    Row("sigmoid_averaged", (), "dpo", ("sigmoid_norm",), {"beta": 2.0}),
    Row("robust", (), "dpo", ("robust",), {"label_smoothing": 0.1}),
    Row("exo", (), "dpo", ("exo_pair",), {"label_smoothing": 1e-3}),
    Row("nca", (), "dpo", ("nca_pair",), {}),
    Row("sppo", ("beta=0.1",), "dpo", ("sppo_hard",), {}),
    Row("apo_zero", (), "dpo", ("apo_zero",), {}),
    Row("apo_down", (), "dpo", ("apo_down",), {}),
    Row("discopop", (), "dpo", ("discopop",), {"beta": 0.05}),
    Row("aot", (), "dpo", ("aot",), {}, together=True),
    Row("aot", ("label_smoothing=0.2",), "dpo", ("aot",), {"label_smoothing": 0.2}, together=True),
    Row("aot_unpaired", (), "dpo", ("aot_unpaired",), {}, together=True),
    Row("aot_unpaired", ("label_smoothing=0.2",), "dpo", ("aot_unpaired",), {"label_smoothing": 0.2}, together=True),
    Row("f_dpo", ("divergence=forward_kl",), "dpo", ("sigmoid",), {"f_divergence_type": "forward_kl"}),
    Row("f_dpo", ("divergence=js",), "dpo", ("sigmoid",), {"f_divergence_type": "js_divergence"}),
    Row("f_dpo", ("divergence=alpha",), "dpo", ("sigmoid",), {"f_divergence_type": "alpha_divergence"}, "float32"),
    Row("ld_dpo", (), "dpo", ("sigmoid",), {"ld_alpha": 0.5}),
    Row("wpo", (), "dpo", ("sigmoid",), {"use_weighting": True}),
    Row("wpo", ("aligned=false",), "dpo", ("sigmoid",), {"use_weighting": True, "log_sum_sq_probs": 0}),
    Row("sft", (), "dpo", ("sft",), {}),
    Row("rpo", (), "dpo", ("sigmoid", "sft"), {"loss_weights": [1.0, 1.0]}),
    Row("bco", ("shift=zero",), "dpo", ("bco_pair",), {}),
    Row("kto", (), "kto", ("kto",), {"kl": 0.3}),
    Row("kto", ("reference_point=zero",), "kto", ("apo_zero_unpaired",), {}),
    Row("simpo", (), "cpo", ("simpo",), {"beta": 2.0, "simpo_gamma": 1.0}),
    Row("cpo", (), "cpo", ("sigmoid",), {"cpo_alpha": 1.0}),
    Row("orpo", (), "orpo", ("orpo",), {}, "float32"),
]


def random_pairs() -> tuple[list[Any], list[Any], list[Any]]:
    """Of the 1 to 12 tokens of chosen and rejected responses: log-probs under policy and reference, log sum p^2."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (PAIRS, 2), generator=random).tolist()
    one, two, three = (
        [[(-2 * torch.rand(n, generator=random)).tolist() for n in pair] for pair in lengths] for _ in range(3)
    )
    return one, two, three


def ours(
    loss: Loss, logps: list[Any], refs: list[Any], collisions: list[Any], dtype: torch.dtype
) -> tuple[list[float], list[float]]:
    """The loss of each pair, a pair's two single responses added up, and the gradient in the tokens."""
    responses = [row for pair in logps for row in pair]
    length_R = torch.tensor([len(row) for row in responses])
    response_T = torch.repeat_interleave(length_R)
    logp_T = torch.tensor([x for row in responses for x in row], dtype=dtype, requires_grad=True)
    ref_T = torch.tensor([x for pair in refs for row in pair for x in row], dtype=dtype)
    none_R = torch.zeros(len(responses), dtype=dtype)
    single = form_of(loss.needs) == "single"
    s = LossInputs(
        none_R.index_add(0, response_T, logp_T),
        none_R.index_add(0, response_T, ref_T),
        sizes=[1] * len(responses) if single else [2] * len(logps),
        length_R=length_R,
        collision_R=torch.tensor([sum(row) for pair in collisions for row in pair], dtype=dtype),
        good_R=torch.tensor([True, False] * len(logps)) if single else None,
        facts=Facts(kl=0.3),
        tokens=TokenLogps(logp_T, ref_T, torch.arange(len(response_T)), response_T),
    )
    values = loss.items(s)
    values.sum().backward()
    assert logp_T.grad is not None
    return (values.view(-1, 2).sum(1) if single else values).tolist(), logp_T.grad.tolist()


def furthest(one: list[float], two: list[float]) -> float:
    """The largest difference, relative to the size of the larger number where that is above 1."""
    return max(abs(a - b) / max(1.0, abs(a), abs(b)) for a, b in zip(one, two, strict=True))


def main() -> None:
    logps, refs, collisions = random_pairs()
    given = {"logps": logps, "refs": refs, "collisions": collisions}
    cases = [{**row._asdict(), "settings": row.theirs, **given} for row in ROWS]
    peer = [peer_python(), str(ROOT / "benchmarks" / "peers" / "trl_losses.py")]
    said = subprocess.run(peer, input=json.dumps(cases), text=True, capture_output=True)
    if said.returncode != 0:
        sys.exit(said.stderr)
    lines = ["| loss | TRL | pairs | value | gradient |", "|---|---|---|---|---|"]
    found = {}
    for row, theirs in zip(ROWS, json.loads(said.stdout.splitlines()[-1]), strict=True):
        menu = OmegaConf.load(ROOT / "conf" / "loss" / f"{row.loss}.yaml")
        loss = instantiate(OmegaConf.merge(menu, OmegaConf.from_dotlist(list(row.settings))), _convert_="object")
        values, gradients = ours(loss, logps, refs, collisions, getattr(torch, row.dtype))
        values = [sum(values)] if row.together else values
        value, gradient = furthest(values, theirs["values"]), furthest(gradients, theirs["gradients"])
        name = " ".join([f"loss={row.loss}", *(f"loss.{setting}" for setting in row.settings)])
        called = " + ".join(row.types) + "".join(f" {k}={v}" for k, v in row.theirs.items())
        lines.append(f"| `{name}` | {row.trainer.upper()} `{called}` | {len(logps)} | {value:.0e} | {gradient:.0e} |")
        found[name] = {"value": value, "gradient": gradient, "first": theirs["values"][:2]}
    write_between(PAGE, START, END, lines)
    (RESULTS / "parity.json").write_text(json.dumps({"trl": "1.16.0", "losses": found}, indent=1) + "\n")
    print("\n".join(lines))
    if far := [name for name, each in found.items() if max(each["value"], each["gradient"]) > CLOSE]:
        sys.exit(f"further than {CLOSE} from TRL: {', '.join(far)}")


if __name__ == "__main__":
    main()
