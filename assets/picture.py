"""The README's picture: a phantom, what it hides, and where the demo's model looked.

python assets/picture.py runs/demo/densenet121 assets/heatmap.png
"""

import sys

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from transformers import AutoImageProcessor, AutoModel

from datasets_scripts.phantom import FIRST_INDEX, generate

model_id, path = sys.argv[1:]
model = AutoModel.from_pretrained(model_id, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=True)
# Of the first test phantoms, the one whose opacity the model is surest of.
phantoms = [generate(FIRST_INDEX["test"] + index, size=384) for index in range(1, 40, 2)]
images = [phantom.image for phantom in phantoms]
output = model.explain(processor(images)["pixel_values"], target=1)
probabilities = output.probabilities[:, 1]
best = int(torch.argmax(probabilities))
heatmap = processor.restore(output.heatmaps[best], *images[best].shape)

figure = Figure(figsize=(8, 4.3), layout="constrained")
left, right = figure.subplots(1, 2)
for axes in (left, right):
    axes.imshow(images[best], cmap="gray")
    axes.set_axis_off()
for x, y, width, height in phantoms[best].boxes:
    left.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#56B4E9"))
left.set_title("Phantom, its opacities boxed")
right.imshow(heatmap, cmap="inferno", alpha=0.6 * heatmap, vmin=0, vmax=1)
right.set_title(f"Grad-CAM, P({model.config.id2label[1]}) = {probabilities[best]:.2f}")
figure.savefig(path, dpi=110)
