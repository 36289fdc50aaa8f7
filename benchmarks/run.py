"""Runs the benchmarks and writes what they found into docs/benchmarks.md.

`make bench` runs those of `OF_THE_TABLE`, the peer beside us in each run; `make bench ONLY=pool_ranks,kill` those that
are named, and `ONLY=all` every script. Rows about labels are of `make evidence`. A result that is there already and was
not asked for stays in the table, with the machine it was measured on.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, ROOT

HERE = Path(__file__).parent
WITH_VLLM = ROOT / ".venv-vllm" / "bin" / "python"  # made by `make test-vllm`
NOT_HERE = ("run", "gpu")  # gpu.py wants a GPU, and writes a table of its own
SCRIPTS = sorted(
    path.stem for path in HERE.glob("*.py") if path.stem not in NOT_HERE and "\ndef main()" in path.read_text()
)
OF_THE_TABLE = ("trajectory", "dpo_step", "online_round", "choosing", "engines", "top_p")
START, END = "<!-- measured: written by benchmarks/run.py -->", "<!-- end of measured -->"


def found(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def summary() -> dict[str, float]:
    """The ratios by name; what has no result is not in it."""
    ratios: dict[str, float] = {}
    if step := found("dpo_step"):
        for kind in ("full", "lora"):
            if kind in step:
                ratios[f"dpo_step_{kind}"] = step[kind]["ratio"]
        kinds = [step[kind] for kind in ("full", "lora") if kind in step]
        ratios["dpo_memory"] = max(kind["memory_ratio"] for kind in kinds)
        ratios["flop_share"] = min(kind["flop_share"] for kind in kinds)
    if rounds := found("online_round"):
        kinds_of = {"": "ratio", "_flop_share": "flop_share", "_at_peak": "ratio_at_peak"}
        for name in ("online_round", "online_round_optune03"):
            ratios |= {name + end: rounds[name][kind] for end, kind in kinds_of.items() if kind in rounds[name]}
    if choosing := found("choosing"):
        ratios["selection_share"] = max(v["share"] for k, v in choosing.items() if k not in ("machine", "entropy"))
        ratios["selection_share_entropy"] = choosing["entropy"]["share"]
    if all_pairs := found("all_pairs"):
        ratios["all_pairs"] = all_pairs["ratio"]
    if top_p := found("top_p"):
        ratios["top_p"] = top_p["price"]
    if "ratio" in (to_reward := found("seconds_to_reward") or {}):
        ratios["seconds_to_reward_vs_trl"] = to_reward["ratio"]
    return ratios | {name: share for name, (share, *_) in of_choosing().items()}


def paid(task: str, cost: str) -> dict[str, tuple[float, float, float]]:
    """What each arm of a task paid, as a share of what the baseline paid for its final quality; interval."""
    arms = (found("evidence") or {}).get(task, {}).get("beside_random", {})
    ratios = {arm: costs[cost]["ratio"] for arm, costs in arms.items() if arm not in CONTROLS}
    return {
        arm: (ends[0], ends[1], ends[2])
        for arm, ratio in ratios.items()
        if ratio[0] and (ends := [math.inf if end in (None, "never") else end for end in ratio])
    }


def of_choosing() -> dict[str, tuple[float, float, float]]:
    """What the best arm of each task paid, as a share of what the baseline paid for its final quality; interval."""

    def least(task: str, cost: str) -> tuple[float, float, float] | None:
        return min(paid(task, cost).values(), default=None)

    shares = {f"labels_ratio_{task}": least(task, "labels") for task in ("film", "chat", "pools")}
    speedups = {f"optune_{cost}_speedup": least("film_prompts", cost) for cost in ("tokens", "seconds")}
    return {name: share for name, share in shares.items() if share} | {
        name: (1 / share[0], 1 / share[2], 1 / share[1]) for name, share in speedups.items() if share
    }


def arms_of(cost: str) -> str:
    """The best selector of prompts, and what OPTune saves by itself."""
    arms = paid("film_prompts", cost)
    best = min(arms, key=lambda arm: arms[arm])
    own = arms.get("optune", (math.inf,))[0]
    return f"`{best}`; `optune` itself: {'never' if math.isinf(own) else f'{1 / own:.3g}'}"


CONTROLS = ("random", "length_matched")
GOALS: dict[str, tuple[str, str, Callable[[float], bool] | None]] = {  # None: no goal, but what one goes by
    "dpo_step_full": ("DPO step, all weights: pairs/s against TRL's DPOTrainer", ">= 5", lambda x: x >= 5),
    "dpo_step_lora": ("DPO step, LoRA: the same", ">= 5", lambda x: x >= 5),
    "dpo_memory": ("peak memory of these, the larger ratio", "<= 0.5", lambda x: x <= 0.5),
    "flop_share": ("share of the machine's bf16 matrix-product peak, the smaller", ">= 0.35", lambda x: x >= 0.35),
    "online_round": ("online round against TRL's OnlineDPOTrainer", ">= 6", lambda x: x >= 6),
    "online_round_flop_share": ("the round's share of the bf16 matrix-product peak", "", None),
    "online_round_at_peak": ("ratio if only the useful matrix products took time, at the peak rate", "", None),
    "online_round_optune03": ("the same with OPTune at 0.3, rounds after the first", ">= 8", lambda x: x >= 8),
    "online_round_optune03_flop_share": ("its share of the peak", "", None),
    "online_round_optune03_at_peak": ("the same ratio for it", "", None),
    "selection_share": (
        "time for choosing as a share of a round; the largest of all selectors measured but entropy",
        "<= 0.05",
        lambda x: x <= 0.05,
    ),
    "selection_share_entropy": ("the same for the entropy filter: 8 samples a prompt", "<= 0.05", lambda x: x <= 0.05),
    "all_pairs": (
        "time for all pairs of four responses divided by the time for as many separate pairs",
        "<= 0.4",
        lambda x: x <= 0.4,
    ),
    "labels_ratio_film": ("labels of the best selector over random choice's, on film", "<= 0.4", lambda x: x <= 0.4),
    "labels_ratio_chat": ("the same on chat", "<= 0.6", lambda x: x <= 0.6),
    "labels_ratio_pools": ("the same on pools", "<= 0.6", lambda x: x <= 0.6),
    "optune_tokens_speedup": (
        "tokens of sampling all prompts divided by those of the best selector of prompts ({arms})",
        ">= 1.56",
        lambda x: x >= 1.56,
    ),
    "optune_seconds_speedup": ("the same for seconds ({arms})", ">= 1.3", lambda x: x >= 1.3),
    "seconds_to_reward_vs_trl": ("OnlineDPOTrainer's seconds to reward 0.6 over ours", ">= 6", lambda x: x >= 6),
    "top_p": ("price of a token with top_p=0.9, as a share of one without", "<= 0.05", lambda x: x <= 0.05),
}


def table(ratios: dict[str, float]) -> str:
    lines = ["| measured | goal | found | met |", "|---|---|---|---|"]
    intervals = {name: ends for name, (_, *ends) in of_choosing().items()}
    for name, (what, goal, met) in GOALS.items():
        if name in ratios:
            is_met = "" if met is None else "yes" if met(ratios[name]) else "no"
            value = f"{ratios[name]:.3g}"
            if name in intervals:
                low, high = intervals[name]
                value += f" ({low:.2g} to {'never' if math.isinf(high) else f'{high:.2g}'})"
                if is_met == "yes" and low <= 1 <= high:
                    is_met = "not shown"
            if name.startswith("optune_"):
                what = what.format(arms=arms_of(cost=name.split("_")[1]))
            lines.append(f"| `{name}`: {what} | {goal} | {value} | {is_met} |")
    if len(lines) == 2:
        return "No ratio has been measured to the end yet; `make bench` takes a quiet hour."
    machines = {json.dumps(r["machine"], sort_keys=True) for n in SCRIPTS if (r := found(n)) and "machine" in r}
    if engines := found("engines"):
        speeds = ", ".join(f"`{name}` {speed:.0f}" for name, speed in engines["tokens_per_second"].items())
        lines += ["", f"Tokens a second of the sampling engines ({engines['what']}): {speeds}."]
    lines += ["", "Measured on:", *(f"- {about(json.loads(m))}" for m in sorted(machines))]
    return "\n".join(lines)


def about(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cores']} cores of {machine['cpu']} (bf16: {machine['bf16']}); {versions}"


def write(ratios: dict[str, float]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "summary.json").write_text(json.dumps(ratios, indent=1) + "\n")
    page = ROOT / "docs" / "benchmarks.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(f"{before}{START}\n{table(ratios)}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help=f"all, or some of {','.join(SCRIPTS)}, with commas")
    parser.add_argument("--table", action="store_true", help="run nothing; write the table from the results there are")
    typed = parser.parse_args()
    wanted = SCRIPTS if typed.only == "all" else [name for name in typed.only.split(",") if name] or list(OF_THE_TABLE)
    if unknown := set(wanted) - set(SCRIPTS):
        sys.exit(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    failed = []
    for number, name in enumerate([] if typed.table else wanted, start=1):
        print(f"[{number}/{len(wanted)}] {name}", flush=True)
        started = time.perf_counter()
        python = WITH_VLLM if name == "engines" and WITH_VLLM.exists() else sys.executable
        if subprocess.run([python, HERE / f"{name}.py"], cwd=ROOT).returncode != 0:
            failed.append(name)
        print(f"[{number}/{len(wanted)}] {name}: {time.perf_counter() - started:.0f} s", flush=True)
    ratios = summary()
    write(ratios)
    print(json.dumps(ratios, indent=1))
    if failed:
        sys.exit(f"these benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
