"""What equalization, crops and masks did to the baseline, from what windows.sh keeps.

    python -m recipes.lungs.windows results/lungs/windows

The folder gets winner.txt, windows.json and windows.md. The winner has the highest mean AUROC over
`CHOSEN_ON`; what it reaches on the tests is added once they were scored.
"""

import json
import sys
from pathlib import Path

import numpy as np

from evaluation.metrics import compute_metrics, format_metric
from evaluation.pages.wording import difference
from evaluation.predictions import write_text
from evaluation.table import markdown_table
from recipes.seeds import NUM_RESAMPLES, compare_arms, heat_in_lungs, read_arms

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


def files(folder: Path, name: str) -> list[Path]:
    """The tables of a set, a seed each."""
    return [folder / f"{name}-{seed}.csv" for seed in SEEDS]


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
    if not files(folder, TESTS[-1])[-1].exists():
        return ""
    rows = []
    for name in TESTS:
        for seed, run in zip(SEEDS, read_arms(*files(folder, name))[winner]):
            metrics = compute_metrics(run, NUM_RESAMPLES)
            shown = [format_metric(metrics[key]) for key in ("auroc", "sensitivity", "specificity")]
            rows.append([name, str(seed), str(len(run.image_id)), *shown])
    return markdown_table(["Test", "Seed", "n", "AUROC", "Sensitivity", "Specificity"], rows)


def main(folder: Path) -> None:
    """Writes the three files."""
    pairs = {arm: PLAIN for arm in ARMS if arm != PLAIN}
    found = {name: compare_arms(read_arms(*files(folder, name)), pairs) for name in SETS}
    heat = heat_in_lungs(files(folder, "validation-heat"), PLAIN)
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
blacked out: what is left tells a shortcut; lower is better, but where black lungs are no longer \
found a crop or a mask leaves the image whole. Intervals are over patients, not over seeds. Heat \
in the lungs: its share, and the lungs' share of what the network sees, which a crop enlarges.

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
