"""`pipeline("image-classification")` on the model's own preprocessing."""

from huggingface_hub import get_session
from transformers import ImageClassificationPipeline


class CxrImageClassificationPipeline(ImageClassificationPipeline):
    """Gives the image processor the file itself.

    The parent class converts every image to 8-bit RGB first, which crushes 16-bit X-rays; here a
    path, URL, PIL image or array reaches the one preprocessing path as it is.
    """

    def preprocess(self, image, timeout=None):
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            response = get_session().get(image, timeout=timeout, follow_redirects=True)
            response.raise_for_status()
            image = response.content
        return self.image_processor(image, return_tensors="pt").to(self.dtype)
