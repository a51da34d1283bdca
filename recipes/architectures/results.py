"""The table of architectures and what it says of the survey's claims, from what study.sh keeps.

python -m recipes.architectures.results results/architectures
"""

import json
import sys
from pathlib import Path

import numpy as np

from evaluation.compare import delong
from evaluation.metrics import compute_metrics, format_metric, one_vs_rest
from evaluation.pages.wording import difference
from evaluation.predictions import Predictions, write_text
from evaluation.table import markdown_table, read_json
from recipes.seeds import NUM_RESAMPLES, compare_arms, heat_in_lungs, read_arms

REFERENCE = "densenet121"
SETS = {
    "validation": "Validation",
    "shift": "Shifted",
    "adults": "Another hospital's adults",
    "test": "Official test",
}
PRETRAINED, SCRATCH = "efficientnet_lite0_imagenet", "efficientnet_lite0"
# What the survey says, as pairs: the first is claimed to be above the second.
CLAIMS = {
    "Pretrained networks end higher": [(PRETRAINED, SCRATCH)],
    "Vision transformers need more data than there are": [
        (REFERENCE, "vit_tiny"),
        (REFERENCE, "vit_without_both"),
    ],
    "Shifted patch tokenization helps on small sets": [("small_vit", "vit_without_spt")],
    "Locality self-attention helps on small sets": [("small_vit", "vit_without_lsa")],
    "A CNN-ViT hybrid is above both": [
        ("conformer_mini", REFERENCE),
        ("conformer_mini", "vit_without_both"),
    ],
    "DenseNet-121 is the strong default": [
        (REFERENCE, other)
        for other in ("baseline", "resnet18", "resnet50", "efficientnet_b0", "inception_v3")
    ],
}


def p_values(arms: dict[str, list[Predictions]]) -> dict[str, float]:
    """DeLong's p, patients as clusters, of each arm's first seed against that of DenseNet-121.

    Corrected for their number (Holm 1979).
    """
    (_, first), found = one_vs_rest(arms[REFERENCE][0]).popitem(), {}
    for arm, runs in arms.items():
        if arm != REFERENCE:
            (_, own) = one_vs_rest(runs[0]).popitem()
            scores = (first.positive, own.log_odds, first.log_odds)
            p = delong(*scores, runs[0].patient_id[own.image])["p"]
            found[arm] = 1.0 if p is None else p  # None where both rank alike
    least = 0.0
    for rank, arm in enumerate(sorted(found, key=found.get)):
        least = max(least, min(1.0, (len(found) - rank) * found[arm]))
        found[arm] = least
    return found


def architectures_table(
    found: dict[str, dict], speeds: dict[str, dict], heat: dict[str, dict], p: dict[str, float]
) -> str:
    """A row an arm, by its mean AUROC on the first three sets."""
    chosen_on = list(SETS)[:3]
    means = {arm: np.mean([found[name][arm]["value"] for name in chosen_on]) for arm in speeds}
    rows = []
    for arm in sorted(means, key=means.get, reverse=True):
        speed = speeds[arm]
        row = [f"`{arm}`", f"{speed['parameters'] / 1e6:.2f}", f"{speed['macs'] / 1e6:,.0f}"]
        row += [f"{speed[kind]:.0f}" for kind in ("train", "predict")]
        row.append(str(len(found["test"][arm]["seeds"])))
        row += [format_metric(found[name][arm]) for name in SETS]
        row.append(f"{p[arm]:.3f}" if arm in p else "")
        row.append(f"{found['test'][arm]['ece']:.3f}")
        row.append(f"{heat[arm]['energy']['value']:.3f}" if arm in heat else "-")
        rows.append(row)
    header = ["Network", "Parameters (M)", "MACs (M)", "Training images/s", "Prediction images/s"]
    header += ["Seeds", *SETS.values(), "p, Holm", "ECE", "Heat in the lungs"]
    return markdown_table(header, rows)


def verdicts(found: dict[str, dict], arms: dict[str, dict[str, list[Predictions]]]) -> str:
    """A line a claim: on which set each pair holds, is reversed, or cannot be told."""
    lines = []
    for claim, pairs in CLAIMS.items():
        lines.append(f"- **{claim}.**")
        for first, second in pairs:
            if first not in found["test"] or second not in found["test"]:
                continue
            parts = {"holds": [], "is reversed": [], "cannot be told": []}
            for name, words in SETS.items():
                two = {arm: arms[name][arm] for arm in (first, second)}
                gain = compare_arms(two, {first: second})[first]["gain"]
                kind = "holds" if (gain["low"] or 0) > 0 else "cannot be told"
                kind = "is reversed" if (gain["high"] or 0) < 0 else kind
                parts[kind].append(f"{words.lower()} {difference(gain)}")
            told = "; ".join(f"{kind}: {', '.join(sets)}" for kind, sets in parts.items() if sets)
            lines.append(f"  `{first}` above `{second}` {told}.")
    return "\n".join(lines)


def convergence(folder: Path) -> str:
    """Validation AUROC after each epoch, from ImageNet and from scratch; a sentence."""
    parts = []
    for arm in (PRETRAINED, SCRATCH):
        history = folder / "runs" / f"{arm}-42" / "history.csv"
        if not history.exists():
            return ""
        table = np.genfromtxt(history, delimiter=",", names=True)
        parts.append(f"`{arm}` {', '.join(f'{auroc:.3f}' for auroc in table['validation_auroc'])}")
    return f"Validation AUROC after each epoch: {'; '.join(parts)}."


def main(folder: Path) -> None:
    """Writes architectures.json and architectures.md."""
    arms = {name: read_arms(folder / f"{name}.csv") for name in SETS}
    found = {name: compare_arms(arms[name], {}) for name in SETS}
    for arm, runs in arms["test"].items():
        errors = [compute_metrics(run, 0)["ece"]["value"] for run in runs]
        found["test"][arm]["ece"] = float(np.mean(errors))
    speed = read_json(folder / "speed.json", ("threads", "models"), "speed.py")
    heat = heat_in_lungs([folder / "validation-heat.csv"], REFERENCE)
    p = p_values(arms["test"])
    args = read_json(folder / "runs" / f"{REFERENCE}-42" / "training_args.json", ("image_size",))
    page = f"""# Architectures

All at {args["image_size"]} pixels for {args["num_train_epochs"]} epochs, alike but for the \
network and the learning rate, on the paediatric training images; \
{speed["threads"]} threads, speeds measured in turns. AUROC is the mean over seeds with a 95 % \
interval over patients ({NUM_RESAMPLES:,} resamples); p: DeLong against `{REFERENCE}` on the \
official test, first seeds, corrected for their number; ECE there after the temperature was fitted \
on shifted validation images. Intervals are over patients, not over seeds, and one in twenty \
verdicts would be wrong by chance alone. In the order of the mean over the first three sets.

{architectures_table(found, speed["models"], heat, p)}

## What the survey says

{convergence(folder)}

{verdicts(found, arms)}
"""
    write_text(folder / "architectures.md", page)
    kept = {"auroc": found, "heat": heat, "p": p}
    write_text(folder / "architectures.json", json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
