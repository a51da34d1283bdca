"""What equalization, crops and masks did to the baseline, from what windows.sh keeps.

    python -m recipes.lungs.windows results/lungs/windows

The folder gets winner.txt, windows.json and windows.md. The winner has the highest mean AUROC over
`CHOSEN_ON`; what it reaches on the tests is added once they were scored.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from evaluation.bootstrap import interval, mean_entries
from evaluation.metrics import bootstrap_statistics, compute_metrics, format_metric
from evaluation.pages.wording import difference
from evaluation.predictions import Predictions, read_predictions_by_model, write_text
from evaluation.table import markdown_table

PLAIN = "plain"
ARMS = {
    PLAIN: "nothing",
    "histogram": "histogram equalization",
    "clahe": "CLAHE",
    "crop": "cut to the lungs",
    "mask": "all but the lungs one grey",
    "swap": "in training, half of the lungs on another image's background",
}
CHOSEN_ON = {"validation": "Validation", "shift": "Shifted", "adults": "Another hospital's adults"}
SETS = {**CHOSEN_ON, "no_lungs": "Lungs blacked out"}
TESTS = ("test", "actualmed", "openist")
SEEDS = (42, 43, 44)
NUM_RESAMPLES = 1000


def read_set(folder: Path, name: str) -> dict[str, list[Predictions]]:
    """The predictions of each arm on a set, a seed each.

    Raises:
        ValueError, OSError: a table is missing or damaged.
    """
    found: dict[str, list[Predictions]] = {}
    for seed in SEEDS:
        models = read_predictions_by_model(folder / f"{name}-{seed}.csv")
        for arm in ARMS:
            if f"{arm}-{seed}" in models:
                found.setdefault(arm, []).append(models[f"{arm}-{seed}"])
    return found


def mean_auroc(runs: list[Predictions]) -> tuple[float, np.ndarray]:
    """The seeds' mean AUROC, and that of each resample of patients, float (R,)."""
    stored = [bootstrap_statistics(run, NUM_RESAMPLES) for run in runs]
    (key,) = (key for key in stored[0].values if key[1] == "auroc")
    value = np.mean([one.values[key] for one in stored])
    return float(value), np.mean([one.resampled[key] for one in stored], axis=0)


def compare(arms: dict[str, list[Predictions]]) -> dict[str, dict]:
    """Of each arm its mean AUROC, that of each seed, and what it gains on plain."""
    measured = {arm: mean_auroc(runs) for arm, runs in arms.items()}
    plain, of_plain = measured[PLAIN]
    patients = len(np.unique(arms[PLAIN][0].patient_id))
    found = {}
    for arm, (value, resampled) in measured.items():
        seeds = [compute_metrics(run, 0)["auroc"]["value"] for run in arms[arm]]
        found[arm] = {"value": value, "seeds": seeds}
        if arm != PLAIN:
            bounds = interval(value - plain, resampled - of_plain, patients, "linear")
            found[arm]["gain"] = {"value": value - plain, **bounds}
    return found


def heat_in_lungs(folder: Path) -> dict[str, dict]:
    """Of each arm the mean share of heat in the lungs, their share of the image, and the gain."""
    rows: dict[str, dict[str, list]] = {}
    for seed in SEEDS:
        with open(folder / f"validation-{seed}-heat.csv", newline="") as file:
            for row in csv.DictReader(file):
                arm = rows.setdefault(row["model"].removesuffix(f"-{seed}"), {})
                numbers = [float(row[key] or "nan") for key in ("energy_in_lungs", "lung_area")]
                arm.setdefault((row["image_id"], row["patient_id"]), []).append(numbers)
    keys = list(rows[PLAIN])
    means = {arm: np.array([np.mean(rows[arm][key], 0) for key in keys]) for arm in rows}
    patients, found = np.array([patient for _, patient in keys]), {}
    for arm, values in means.items():
        columns = np.column_stack([values, values[:, 0] - means[PLAIN][:, 0]])
        energy, area, gain = mean_entries(columns, patients, NUM_RESAMPLES, 0)
        found[arm] = {"energy": energy, "area": area, "gain": gain}
    return found


def windows_table(found: dict[str, dict], heat: dict[str, dict]) -> str:
    """A row an arm: AUROC and gain on each set, heat in the lungs and their share of the image."""
    rows = []
    for arm, words in ARMS.items():
        row = [f"`{arm}`: {words}"]
        for name in SETS:
            entry = found[name][arm]
            gain = f" ({difference(entry['gain'])})" if "gain" in entry else ""
            row.append(f"{entry['value']:.3f}{gain}")
        own = heat[arm]
        row.append(f"{own['energy']['value']:.3f} of {own['area']['value']:.3f}")
        rows.append(row)
    return markdown_table(["Images", *SETS.values(), "Heat in the lungs"], rows)


def tests_table(folder: Path, winner: str) -> str:
    """A row a seed of the winner on the tests; empty where these were not scored."""
    if not (folder / f"{TESTS[-1]}-{SEEDS[-1]}.csv").exists():
        return ""
    rows = []
    for name in TESTS:
        for seed, run in zip(SEEDS, read_set(folder, name)[winner]):
            metrics = compute_metrics(run, NUM_RESAMPLES)
            shown = [format_metric(metrics[key]) for key in ("auroc", "sensitivity", "specificity")]
            rows.append([name, str(seed), str(len(run.image_id)), *shown])
    return markdown_table(
        ["Test", "Seed", "n", "AUROC", "Sensitivity", "Specificity"], rows, left=1
    )


def main(folder: Path) -> None:
    """Writes the three files."""
    found = {name: compare(read_set(folder, name)) for name in SETS}
    heat = heat_in_lungs(folder)
    means = {arm: np.mean([found[name][arm]["value"] for name in CHOSEN_ON]) for arm in ARMS}
    winner = max(means, key=means.get)
    tests = tests_table(folder, winner)
    page = f"""# What windows on the lungs and equalization do

The baseline CNN at 64 pixels, {len(SEEDS)} seeds an arm, alike but for what its images went \
through. AUROC, mean over seeds; in brackets the gain on `{PLAIN}` with a 95 % interval over \
patients.

{windows_table(found, heat)}

Shifted: validation images under a random exposure, crop, rotation and blur. Another hospital: \
Pneumonia of ChestX-ray14 and the RSNA challenge's normals, which no run was trained on. Lungs \
blacked out: what is left tells a shortcut; lower is better. Heat in the lungs: its share, and the \
lungs' share of what the network sees, which a crop enlarges.

By the mean over {", ".join(SETS[name].lower() for name in CHOSEN_ON)} the first is `{winner}`\
{"; it alone saw the tests:" if tests else "."}

{tests}
"""
    write_text(folder / "windows.md", page.rstrip() + "\n")
    kept = {"auroc": found, "heat": heat, "means": means, "winner": winner}
    write_text(folder / "windows.json", json.dumps(kept, indent=2) + "\n")
    write_text(folder / "winner.txt", f"{winner}\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
