"""`pipeline("image-classification")` on the model's own preprocessing and probabilities."""

from huggingface_hub import get_session
from transformers import ImageClassificationPipeline


class CxrImageClassificationPipeline(ImageClassificationPipeline):
    """Gives the image processor the file itself, and the caller calibrated probabilities.

    The parent class converts every image to 8-bit RGB first, which crushes 16-bit X-rays; here a
    path, URL, PIL image or array reaches the one preprocessing path as it is.

    An answer is a list of `{"label", "score", "logit"}`, highest score first: the calibrated
    probability in [0, 1] and the raw logit. A model with an outlier detector adds `outlier`: True
    where the image is no chest X-ray that it knows, and the score means nothing. `top_k` (5 by
    default) shortens the list; `prevalence` moves the scores to the share of class 1, or of each
    class, where the images come from.
    """

    def _sanitize_parameters(self, prevalence=None, function_to_apply=None, **kwargs):
        if function_to_apply is not None:
            raise ValueError(
                f"function_to_apply is {function_to_apply!r}; this model's scores are calibrated "
                "probabilities already, and each answer holds the raw logit: leave it out."
            )
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if prevalence is not None:
            postprocess["prevalence"] = prevalence
        return preprocess, forward, postprocess

    def preprocess(self, image, timeout=None):
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            response = get_session().get(image, timeout=timeout, follow_redirects=True)
            response.raise_for_status()
            image = response.content
        return self.image_processor(image, return_tensors="pt").to(self.dtype)

    def postprocess(self, model_outputs, prevalence=None, top_k=5):
        logits = model_outputs["logits"]
        scores = self.model.probabilities(logits, prevalence)[0].tolist()
        labels = [self.model.config.id2label[index] for index in range(len(scores))]
        rows = [
            {"label": label, "score": score, "logit": logit}
            for label, score, logit in zip(labels, scores, logits[0].tolist())
        ]
        if "outlier_score" in model_outputs:
            outlier = model_outputs["outlier_score"].item() > self.model.config.outlier_threshold
            rows = [{**row, "outlier": outlier} for row in rows]
        return sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]
